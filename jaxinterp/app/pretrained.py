"""Images explained without a run: by a pretrained network that fits them."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxinterp.app.weights import inputs, load_trained
from jaxinterp.data.images import read_images
from jaxinterp.data.pictures import quiet, read_file, size_of
from jaxinterp.errors import ConfigError
from jaxinterp.files import printable
from jaxinterp.recipe.family import TrainedRun

GRAY = 0.02  # largest difference of the channels of an image without color
LARGER = 8  # times a network's side that an image may have: a drawing of a digit, but no photograph


def choose(paths: Sequence[Path], runs: Path = Path("runs"), name: str = "") -> TrainedRun[Any]:
    """Return the pretrained network that fits images, or the one of a name.

    Args:
        paths: image files.
        runs: folder of the user's runs, which an error names where their images are of the kind.
        name: of a pretrained network, or an exported one's file; the first pretrained one that fits if empty.

    Raises:
        DataError: a file is missing or is not an image.
        ConfigError: none fits; the line says why, and which runs could explain the images.
    """
    known = inputs()
    if name:
        return load_trained(name)[0]
    path, sides, gray = _kind(paths)
    for network, (_, (height, width, channels)) in known.items():
        if gray == (channels == 1) and max(sides) <= LARGER * max(height, width):
            return load_trained(network)[0]
    size = "x".join(map(str, sides))
    could, quoted = list(_fitting(runs, gray)), shlex.quote(str(paths[0]))
    read = ", ".join(f"{one} reads {data} of {shape[0]}x{shape[1]}" for one, (data, shape) in known.items())
    hints = [
        *([f"a run, as in `jaxinterp explain {could[0]} {quoted}` (or {', '.join(could[1:])})"] if could[1:] else []),
        *([f"a run, as in `jaxinterp explain {could[0]} {quoted}`"] if len(could) == 1 else []),
        *(["a network trained on such images, by `jaxinterp train coda --data ...`"] if not could else []),
        "one of your own by --net",
    ]
    got = f"a {'gray' if gray else 'color'} image of {size}, which no pretrained network takes"
    raise ConfigError(f"{printable(path)}: got {got} ({read or 'there is none'}), expected {' or '.join(hints)}")


def _kind(paths: Sequence[Path]) -> tuple[Path, tuple[int, int], bool]:
    """Return the image that is hardest to take, the largest of those in color, its width and height, and if it is gray.

    So if it is gray, all are.
    """
    images, _ = read_images(list(paths), 32, 32, 3)
    colored = dict(zip(paths, np.ptp(images, axis=-1).max((1, 2)) > GRAY, strict=True))
    with quiet():
        shapes = {path: shape for path in paths if (shape := size_of(read_file(path)))}
    path = max(shapes, key=lambda one: (colored[one], max(shapes[one][:2])))
    height, width, _ = shapes[path]
    return path, (width, height), not colored[path]


def _fitting(runs: Path, gray: bool) -> list[str]:
    """Return the folders of trained runs on images with, or without, color."""
    found = []
    for file in sorted(runs.glob("*/config.json")):
        try:  # without the run's family, which may be code
            channels = json.loads(file.read_text(encoding="utf-8"))["config"]["data"]["channels"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if (channels == 1) == gray and any((file.parent / "checkpoints").glob("[0-9]*")):
            found.append(str(file.parent))
    return found
