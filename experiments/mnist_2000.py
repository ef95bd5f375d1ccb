"""Makes the 2,000 test images of MNIST that the package holds: 200 of each class, drawn by a seed.

    python experiments/mnist_2000.py [--data-dir DIR]     # writes jaxinterp/data/mnist_2000.npz

The test set is read as `jaxinterp.data.load("mnist", "test")` reads it: prepared by tensorflow-datasets, or the
official files, whose md5 sums are checked. `positions` are the images' places in it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from jaxinterp.data import load
from jaxinterp.data.embedded import MNIST_2000
from jaxinterp.files import write_arrays

PER_CLASS, SEED = 200, 0


@dataclass(frozen=True)
class Options:
    """Options of the script."""

    data_dir: Path | None = None
    """Folder of the data sets; default $TFDS_DATA_DIR, then ~/tensorflow_datasets."""
    out: Path = MNIST_2000
    """The file to write."""


def main(options: Options) -> None:
    """Draw the images and write them, in the order of the test set."""
    test = load("mnist", "test", options.data_dir)
    # Raw bits are stable across NumPy versions; `permutation` is not.
    order = np.argsort(np.random.PCG64(SEED).random_raw(len(test)), kind="stable")
    chosen = np.concatenate([order[test.labels[order] == label][:PER_CLASS] for label in range(len(test.classes))])
    positions = np.sort(chosen)
    arrays = {"images": test.images[positions, :, :, 0], "labels": test.labels[positions].astype(np.uint8)}
    write_arrays(options.out, {**arrays, "positions": positions.astype(np.uint16)})
    print(f"{options.out}: {len(positions)} images, {options.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(tyro.cli(Options))
