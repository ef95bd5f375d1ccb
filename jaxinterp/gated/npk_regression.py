"""Kernel ridge regression with the neural path kernel of a trained gated network, beside the network itself.

A kernel that fits in memory is solved by Cholesky. A larger one lies in tiles on disk, is solved by conjugate
gradients with a Nyström preconditioner, and is gone on with after a kill; λ is then chosen on a part of the images.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped

from jaxinterp.gated.kernels.path import PathKernel
from jaxinterp.gated.kernels.regression import Ridge, conjugate_gradients, kernel_ridge, nystrom, one_hot
from jaxinterp.gated.kernels.tiles import Tiles
from jaxinterp.provenance import crc32

Block = tuple[np.ndarray, tuple[np.ndarray, ...]]
Log = Callable[[str], None]
CHOSEN = 4_000  # images on which λ is chosen where the kernel is in tiles
LANDMARKS = 1_000  # columns of the preconditioner
TILE = 2_048  # most images along a side of a tile
GATES = 1 << 28  # most bytes of float32 gates that one side of a tile may ask for
TOLERANCE = 1e-5
TOLD = 20  # products after which the solver says how far it is


@dataclass(frozen=True)
class Side:
    """Images as a kernel sees them.

    Attributes:
        x: value inputs, (n, ...).
        gates: one for each `Gate`, (n, ...); booleans where they are hard.
        labels: classes, (n,).
    """

    x: Shaped[np.ndarray, "n ..."]
    gates: tuple[Shaped[np.ndarray, "n ..."], ...]
    labels: Int[np.ndarray, " n"]

    @property
    def tile(self) -> int:
        """Images along a side of a tile: fewer where there are many gates."""
        units = sum(int(np.prod(gate.shape[1:])) for gate in self.gates)
        return max(1, min(TILE, GATES // (4 * units)))

    def blocks(self) -> list[slice]:
        """All images, tile by tile."""
        return [slice(i, i + self.tile) for i in range(0, len(self.labels), self.tile)]

    def __getitem__(self, index: Any) -> Block:
        """Inputs and gates of some images."""
        return self.x[index], tuple(gate[index] for gate in self.gates)

    @classmethod
    def of(
        cls,
        images: Float[np.ndarray, "n h w c"],
        labels: Int[np.ndarray, " n"],
        inputs: Callable[[Array], Array],
        gates: Callable[[Array], tuple[Array, ...]],
        batch: int,
    ) -> "Side":
        """Read inputs and gates of images, batch by batch (the last one enlarged, so that all are of one size)."""
        parts = []
        for i in range(0, len(images), batch):
            rows = np.arange(i, i + batch) % len(images)
            x = jnp.asarray(images[rows])
            keep = slice(0, min(batch, len(images) - i))
            parts.append([np.asarray(inputs(x))[keep], *(np.asarray(gate)[keep] for gate in gates(x))])
        read = [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]
        return cls(read[0], tuple(read[1:]), labels)


def regress(
    kernel: PathKernel,
    train: Side,
    test: Side,
    classes: int,
    folder: Path,
    identity: Mapping[str, Any],
    *,
    memory: float,
    seed: int,
    shown: Int[np.ndarray, " shown"],
    log: Log,
) -> dict[str, Any]:
    """Learn classes from training images by kernel ridge regression, and predict test images.

    Args:
        kernel: of the value network.
        train: training images.
        test: test images.
        classes: how many classes.
        folder: of the tiles.
        identity: JSON values that tell this kernel from others.
        memory: GiB that the kernel of the training images may take in memory, in float64; of a larger one so many
            GiB of tiles are held.
        seed: of the images on which λ is chosen, and of the preconditioner's.
        shown: test images of which the training images that decided are found.
        log: told what was measured.

    Returns:
        JSON values: `metrics` (name → number) and, for each of `shown`, its prediction and the signed shares of all
        training images in it: the largest, and their sum.

    Raises:
        ConfigError: the folder holds tiles of another kernel.
        DataError: a tile could not be computed or written.
    """
    start, n = time.perf_counter(), len(train.labels)
    targets = one_hot(train.labels, classes)
    if n * n * 8 <= memory * 2**30:
        ridge, steps = kernel_ridge(np.asarray(kernel(*train[:])), targets), "kernel in memory"
    else:
        same = {**identity, "gates": [crc32(gate) for gate in train.gates]}
        ridge, steps = _in_tiles(
            kernel, train, targets, memory=memory, seed=seed, log=log, folder=folder, identity=same
        )
    logits = np.concatenate([_predict(kernel, ridge, train, test[rows]) for rows in test.blocks()])
    metrics = {
        "npk_test_accuracy": float((logits.argmax(1) == test.labels).mean()),
        "npk_ridge": ridge.ridge,
        "npk_images": float(n),
        "npk_test_images": float(len(test.labels)),
    }
    seconds = time.perf_counter() - start
    log(
        f"NPK regression, {n} x {len(test.labels)} images: accuracy {metrics['npk_test_accuracy']:.4f}, ridge "
        f"{ridge.ridge:g}, {steps} ({seconds:.1f} s)"
    )
    deciding = [_deciding(kernel, ridge, train, test, int(i), logits[i]) for i in shown]
    return {"metrics": metrics, "deciding": deciding}


def _in_tiles(
    kernel: PathKernel,
    train: Side,
    targets: Float[np.ndarray, "n classes"],
    *,
    memory: float,
    seed: int,
    log: Log,
    folder: Path,
    identity: Mapping[str, Any],
) -> tuple[Ridge, str]:
    n, start = len(targets), time.perf_counter()
    tiles = Tiles(folder, (n, n), tile=train.tile, symmetric=True, identity=identity, keep=int(memory * 2**30))
    computed = tiles.compute(lambda rows, columns: _between(kernel, train[rows], train[columns]))
    log(f"{computed} tiles of the kernel of {n} images computed ({time.perf_counter() - start:.1f} s)")
    draw = np.random.default_rng(seed).permutation(n)
    some, landmarks = np.sort(draw[:CHOSEN]), np.sort(draw[:LANDMARKS])
    chosen = kernel_ridge(np.asarray(kernel(*train[some])), targets[some])
    log(f"ridge {chosen.ridge:g} by leaving one out of {len(some)} images")
    columns = np.concatenate([_between(kernel, train[rows], train[landmarks]) for rows in train.blocks()])
    diagonal = float(np.concatenate([np.diagonal(tiles[i, i]) for i in range(tiles.counts[0])]).mean())
    offset, absolute = targets.mean(0), chosen.ridge * diagonal
    done, begun = 0, time.perf_counter()

    def multiplied(y: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
        nonlocal done
        done += 1
        if done % TOLD == 0:
            log(f"{done} products with the kernel ({time.perf_counter() - begun:.1f} s)")
        return tiles.product(y.astype(np.float32))

    alpha, products = conjugate_gradients(
        multiplied,
        targets - offset,
        absolute,
        nystrom(columns, landmarks),
        tolerance=TOLERANCE,
    )
    return Ridge(alpha, offset, chosen.ridge, chosen.errors), f"{products} products with the kernel"


def _between(kernel: PathKernel, block: Block, other: Block) -> Float[Array, "n m"]:
    return kernel(block[0], block[1], other[0], other[1])


def _predict(kernel: PathKernel, ridge: Ridge, train: Side, block: Block) -> Float[np.ndarray, "m classes"]:
    """Predictions of a block of test images, the kernel made and forgotten piece by piece."""
    total = ridge.offset
    for rows in train.blocks():
        total = total + np.asarray(_between(kernel, block, train[rows]), np.float64) @ ridge.alpha[rows]
    return total


def _deciding(
    kernel: PathKernel,
    ridge: Ridge,
    train: Side,
    test: Side,
    index: int,
    logits: Float[np.ndarray, " classes"],
    count: int = 4,
) -> dict[str, Any]:
    """The training images that decided a prediction: those with the largest shares in it, for and against."""
    best, block = int(logits.argmax()), test[index : index + 1]
    k = np.concatenate([_between(kernel, block, train[rows]) for rows in train.blocks()], axis=1)
    shares = ridge.shares(k)[0, :, best]
    order = np.argsort(-np.abs(shares), kind="stable")
    speaking = [order[shares[order] > 0][:count], order[shares[order] < 0][:count]]
    return {
        "image": index,
        "class": best,
        "prediction": float(logits[best]),
        "offset": float(ridge.offset[best]),
        "sum": float(shares.sum()),
        "for": [[int(i), float(shares[i])] for i in speaking[0]],
        "against": [[int(i), float(shares[i])] for i in speaking[1]],
    }
