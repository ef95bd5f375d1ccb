"""`python -m experiments.picture RUN_DIR FILE.png`: the picture of the README, made from a trained run."""

import sys
from pathlib import Path

import numpy as np

from jaxinterp.app.stages import class_names, test_images, trained
from jaxinterp.errors import JaxInterpError
from jaxinterp.figures.html import picture
from jaxinterp.files import write_bytes
from jaxinterp.recipe.page import first_of_each_class, likeliest, top_maps
from jaxinterp.train import predict


def main(arguments: list[str]) -> int:
    """Draw the first test images of four classes and their contribution maps; 2 where the run cannot be read."""
    if len(arguments) != 2:
        print("usage: python -m experiments.picture RUN_DIR FILE.png", file=sys.stderr)
        return 2
    try:
        _, config, subject = trained(Path(arguments[0]))
        images, labels = test_images(config, None)
    except JaxInterpError as error:
        print(f"experiments.picture: {error}", file=sys.stderr)
        return 2
    chosen = first_of_each_class(labels, 4)
    classes = class_names(config)
    logits = predict(subject.apply, subject.variables, images[chosen])
    names = [f"label {classes[label]}" for label in labels[chosen]]
    maps = np.asarray(subject.maps(images[chosen], likeliest(logits)))
    figure = top_maps(subject, images[chosen], names, logits, classes, maps)
    write_bytes(Path(arguments[1]), picture(figure, "", "").png)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
