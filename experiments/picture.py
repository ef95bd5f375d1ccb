"""`python experiments/picture.py RUN_DIR FILE.png`: the picture of the README, made from a trained run."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxinterp.app.console import errors_in_one_line
from jaxinterp.app.stages import trained
from jaxinterp.checks import require
from jaxinterp.explain.decompose import decompose
from jaxinterp.figures.html import picture
from jaxinterp.files import write_bytes
from jaxinterp.recipe.page import first_of_each_class, likeliest, top_maps


def main(arguments: Sequence[str]) -> None:
    """Draw the first test images of four classes and their contribution maps; status 2 if the run cannot be read."""
    with errors_in_one_line():
        require(len(arguments) == 2, "arguments", " ".join(arguments), "RUN_DIR FILE.png")
        run = trained(Path(arguments[0]))
        net, (images, labels) = run.explainable, run.test_data
        chosen = first_of_each_class(labels, 4)
        logits = np.asarray(net.logits(images[chosen]))
        names = [f"label {run.classes[label]}" for label in labels[chosen]]
        maps = np.asarray(decompose(net, images[chosen], likeliest(logits)).maps(images.shape[1:3]))
        figure = top_maps(net, images[chosen], names, logits, run.classes, maps)
        write_bytes(Path(arguments[1]), picture(figure, "", "").png)


if __name__ == "__main__":
    main(sys.argv[1:])
