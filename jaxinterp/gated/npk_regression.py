"""Kernel ridge regression with the neural path kernel of a trained network, as a scikit-learn estimator.

A kernel that fits in memory is solved by Cholesky. A larger one is kept in tiles on disk, resumed after a kill, and
solved by conjugate gradients with a Nyström preconditioner; λ is then chosen on a part of the images.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Shaped
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from jaxinterp.checks import require, require_at_least, require_finite, require_labels
from jaxinterp.errors import ConfigError
from jaxinterp.explain.meshes import on_host
from jaxinterp.gated.kernels.regression import RIDGES, Ridge, conjugate_gradients, kernel_ridge, nystrom, one_hot
from jaxinterp.gated.kernels.tiles import Tiles
from jaxinterp.gated.path_network import PathNetwork
from jaxinterp.gated.paths import class_overlap
from jaxinterp.provenance import crc32

RIDGE_IMAGES = 4_000  # on which λ is chosen if the kernel is in tiles
LANDMARKS = 1_000  # columns of the preconditioner
MAX_TILE_SIZE = 2_048
MAX_GATE_BYTES = 1 << 28  # of the float32 gates of one side of a tile
TOLERANCE = 1e-5  # of conjugate gradients
LOG_EVERY = 20  # products with the kernel

Images = Float[Array | np.ndarray, "m ..."]
Side = tuple[np.ndarray, tuple[np.ndarray, ...]]  # value inputs and gates


class NPKRegressor(ClassifierMixin, BaseEstimator):
    """Classify by kernel ridge regression of class indicators with a neural path kernel.

    A prediction is a sum over training images, so the share of each of them is known exactly (`shares`).

    Args:
        network: kernel, and value inputs and gates of images; `PathNetwork.of` reads it off a trained network.
        classes: number of classes 0, ..., classes − 1; None takes the distinct labels of `fit`.
        ridges: λ to choose from, relative to the kernel's mean diagonal.
        max_bytes: memory for the kernel in float64. A larger one is kept in tiles, as many bytes of them in memory.
        folder: of the tiles; needed for a larger kernel. Fitting the same images again resumes it.
        seed: of the choice of images for λ and for the preconditioner of a larger kernel.
        batch_size: images whose inputs and gates are computed at a time.
        log: called with lines of progress.
        mesh: devices that share the work on a kernel in memory, those of predictions included; of one process or of
            several, each of which makes the same calls. Tiles are always shared by all devices.

    Attributes:
        classes_: labels, in the order of the outputs.
        n_features_in_: numbers of an image.
        shape_in_: shape of an image.
        inputs_: value inputs of the training images.
        gates_: gates of the training images.
        solution_: the `Ridge` solution: coefficients, offset, λ and leave-one-out errors.

    Example:
        >>> import jax
        >>> from jaxinterp.gated import GatedNetwork, fc
        >>> x = jax.random.normal(jax.random.key(1), (60, 5))
        >>> dlgn = GatedNetwork(fc(16, 2, classes=2), hard=True)
        >>> network = PathNetwork.of(dlgn, dlgn.init(jax.random.key(0), x))
        >>> regressor = NPKRegressor(network).fit(x[:40], np.asarray(x[:40, 0] > 0))
        >>> shares = regressor.shares(x[40:])
        >>> shares.shape, regressor.predict(x[40:]).shape
        ((20, 40, 2), (20,))
        >>> outputs = shares.sum(1) + regressor.solution_.offset
        >>> bool(np.allclose(outputs[:, 1] - outputs[:, 0], regressor.decision_function(x[40:])))
        True
    """

    def __init__(
        self,
        network: PathNetwork,
        classes: int | None = None,
        ridges: Sequence[float] = RIDGES,
        max_bytes: int = 4 << 30,
        folder: str | Path | None = None,
        seed: int = 0,
        batch_size: int = 256,
        log: Callable[[str], None] | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        self.network, self.classes, self.ridges, self.log = network, classes, ridges, log
        self.max_bytes, self.folder, self.seed = max_bytes, folder, seed
        self.batch_size, self.mesh = batch_size, mesh

    def fit(self, x: Any, y: Any) -> "NPKRegressor":
        """Fit to training images, a floating array (n, ...), and their labels, (n,), of two classes at least.

        Raises:
            ConfigError: images or labels that do not fit, a kernel larger than `max_bytes` without a `folder`, or a
                folder with tiles of another kernel.
            DataError: a tile cannot be computed, read or written.
        """
        start, wanted = time.perf_counter(), "a PathNetwork, such as PathNetwork.of(network, variables)"
        require(isinstance(self.network, PathNetwork), "network", f"a {type(self.network).__name__}", wanted)
        several = isinstance(self.ridges, Sequence | np.ndarray) and all(isinstance(r, Real) for r in self.ridges)
        require(several, "ridges", self.ridges, "a sequence of positive numbers")
        require_at_least("batch_size", self.batch_size, 1)
        _require_images(x)
        n = len(x)
        classes, labels = self._labels(y, n)
        try:
            inputs, gates = self.network.read(x, self.batch_size)
        except (ValueError, TypeError, ArithmeticError, IndexError, FlaxError) as error:
            fault = " ".join(str(error).split())
            raise ConfigError(f"x: got shape {x.shape}, expected what the network reads: {fault}") from error
        self.classes_, self.inputs_, self.gates_ = classes, inputs, gates
        self.shape_in_, self.n_features_in_ = x.shape[1:], math.prod(x.shape[1:])
        targets = one_hot(labels, len(self.classes_))
        if n * n * 8 <= self.max_bytes:
            kernel = on_host(self.network.kernel(self.inputs_, self.gates_, mesh=self.mesh))
            self.solution_, how = kernel_ridge(kernel, targets, self.ridges), "kernel in memory"
        else:
            self.solution_, how = self._fit_tiles(targets)
        seconds = time.perf_counter() - start
        self._log(f"NPK regression of {n} images: ridge {self.solution_.ridge:g}, {how} ({seconds:.1f} s)")
        return self

    def _labels(self, y: Any, count: int) -> tuple[Shaped[np.ndarray, " classes"], Int[np.ndarray, " n"]]:
        """Return the classes, and the place of every label among them."""
        y = np.asarray(y)
        require(y.shape == (count,), "y", f"shape {y.shape}", f"({count},), a label for each image")
        try:
            check_classification_targets(y)
        except ValueError as error:
            raise ConfigError(f"y: {' '.join(str(error).split())}") from error
        found, labels = np.unique(y, return_inverse=True)
        require(len(found) > 1, "y", f"the one class {found[0]}", "at least two classes")
        if self.classes is None:
            return found, labels
        require_labels("y", y, count, self.classes)
        return np.arange(self.classes), y

    def decision_function(self, x: Any) -> Float[np.ndarray, " m"] | Float[np.ndarray, "m classes"]:
        """Predict the regression targets of images, one column per class of `classes_`, without holding the kernel.

        Of two classes it is the second's less the first's, (m,), as scikit-learn wants it.
        """
        logits = self._decide(self._read(x))
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def _decide(self, side: Side) -> Float[np.ndarray, "m classes"]:
        solution, logits = self.solution_, []
        for rows in self._blocks(len(side[0])):
            total = solution.offset
            for columns in self._blocks(len(self.inputs_)):
                k = self._between(_rows(side, rows), columns).astype(np.float64)
                total = total + k @ solution.alpha[columns]
            logits.append(total)
        return np.concatenate(logits)

    def predict(self, x: Any) -> Shaped[np.ndarray, " m"]:
        """Predict the labels of images."""
        best = self._decide(self._read(x)).argmax(1)
        return np.asarray(self.classes_[best])

    def shares(self, x: Any) -> Float[np.ndarray, "m n classes"]:
        """Compute the signed share of each training image in each output, one for each class.

        With the offset, `solution_.offset`, the shares of an image sum to its outputs: to `decision_function`, or, of
        two classes, to two outputs whose difference it is.
        """
        return self._share(self._read(x))

    def _share(self, side: Side) -> Float[np.ndarray, "m n classes"]:
        blocks = self._blocks(len(self.inputs_))
        return self.solution_.shares(np.concatenate([self._between(side, columns) for columns in blocks], axis=1))

    def _fit_tiles(self, targets: Float[np.ndarray, "n classes"]) -> tuple[Ridge, str]:
        n, start, kernel = len(targets), time.perf_counter(), self.network.kernel
        require(self.folder, "folder", self.folder, f"one for the kernel of {n} images, larger than max_bytes")
        identity = {
            "kernel": repr(replace(kernel, norms=())),
            "norms": [crc32(array) for norm in kernel.norms for array in norm],
            "inputs": crc32(self.inputs_),
            "gates": [crc32(gate) for gate in self.gates_],
        }
        options: dict[str, Any] = {"symmetric": True, "identity": identity, "cache_bytes": self.max_bytes}
        tiles = Tiles(str(self.folder), (n, n), tile_size=self._tile_size, **options)
        computed = tiles.compute(lambda rows, columns: kernel(*self._train(rows), *self._train(columns)))
        self._log(f"{computed} tiles of the kernel of {n} images computed ({time.perf_counter() - start:.1f} s)")
        draw = np.random.default_rng(self.seed).permutation(n)
        some, landmarks = np.sort(draw[:RIDGE_IMAGES]), np.sort(draw[:LANDMARKS])
        part = kernel_ridge(np.asarray(kernel(*self._train(some))), targets[some], self.ridges)
        self._log(f"ridge {part.ridge:g} by leaving one out of {len(some)} images")
        columns = np.concatenate([self._between(self._train(rows), landmarks) for rows in self._blocks(n)])
        diagonal = float(np.concatenate([np.diagonal(tiles[i, i]) for i in range(tiles.counts[0])]).mean())
        offset, products, start = targets.mean(0), 0, time.perf_counter()

        def multiply(y: Float[np.ndarray, "n classes"]) -> Float[np.ndarray, "n classes"]:
            nonlocal products
            products += 1
            if products % LOG_EVERY == 0:
                self._log(f"{products} products with the kernel ({time.perf_counter() - start:.1f} s)")
            return tiles.product(y.astype(np.float32))

        ridge, approximation = part.ridge * diagonal, nystrom(columns, landmarks)
        alpha, products = conjugate_gradients(multiply, targets - offset, ridge, approximation, tolerance=TOLERANCE)
        return Ridge(alpha, offset, part.ridge, part.errors), f"{products} products with the kernel"

    def _read(self, x: Any) -> Side:
        check_is_fitted(self, "solution_")
        _require_images(x)
        require(x.shape[1:] == self.shape_in_, "x", f"shape {x.shape}", f"(n, {', '.join(map(str, self.shape_in_))})")
        return self.network.read(x, self.batch_size)

    def _train(self, rows: Any) -> Side:
        return _rows((self.inputs_, self.gates_), rows)

    def _between(self, side: Side, rows: Any) -> Float[np.ndarray, "m n"]:
        """Compute the kernel between images and rows of the training images."""
        return on_host(self.network.kernel(*side, *self._train(rows), mesh=self.mesh))

    @property
    def _tile_size(self) -> int:
        """Images along a side of a tile, fewer if there are many gates."""
        return tile_size([gate.shape[1:] for gate in self.gates_])

    def _blocks(self, count: int) -> list[slice]:
        return [slice(start, start + self._tile_size) for start in range(0, count, self._tile_size)]

    def _log(self, line: str) -> None:
        if self.log is not None:
            self.log(line)


def tile_size(gates: Sequence[tuple[int, ...]]) -> int:
    """Return images along a side of a tile, fewer if there are many gates; of one image they have these shapes."""
    units = sum(math.prod(gate) for gate in gates)
    return max(1, min(MAX_TILE_SIZE, MAX_GATE_BYTES // max(1, 4 * units)))


def _require_images(x: Any) -> None:
    """Raise unless x is a floating array of at least one image, finite."""
    wanted = "a floating array (n, ...) of at least one image"
    require(isinstance(x, np.ndarray | jax.Array), "x", f"a {type(x).__name__}", wanted)
    fits = x.ndim >= 2 and len(x) and jnp.issubdtype(x.dtype, jnp.floating)
    require(fits, "x", f"{x.dtype}{x.shape}", wanted)
    require_finite("x", x)


def _rows(side: Side, rows: Any) -> Side:
    return side[0][rows], tuple(gate[rows] for gate in side[1])


def evaluate(
    regressor: NPKRegressor,
    images: Images,
    labels: Int[np.ndarray, " m"],
    shown: Int[np.ndarray, " shown"],
    count: int = 4,
) -> dict[str, Any]:
    """Evaluate on test images a regressor fitted with labels 0, ..., classes − 1.

    Returns:
        JSON values: `metrics` (name → number); `deciding`, for each test image of the indices `shown` its prediction,
        the sum of all shares, of those for it (`gain`) and against it (`loss`), and the `count` largest for and against
        it as [training image, share]; and `overlap`, see `class_overlap`, (gates, classes, classes).
    """
    start, side = time.perf_counter(), regressor._read(images)  # gates are computed once for all measures
    logits, solution, deciding = regressor._decide(side), regressor.solution_, []
    accuracy = float((logits.argmax(1) == labels).mean())
    regressor._log(f"accuracy {accuracy:.4f} on {len(labels)} images ({time.perf_counter() - start:.1f} s)")
    for index, every in zip(shown.tolist(), regressor._share(_rows(side, shown)), strict=True):
        best = int(logits[index].argmax())
        shares = every[:, best]
        order = np.argsort(-np.abs(shares), kind="stable")
        numbers = {"prediction": logits[index, best], "offset": solution.offset[best], "sum": shares.sum()}
        numbers |= {"gain": shares[shares > 0].sum(), "loss": shares[shares < 0].sum()}
        decisive = {"for": order[shares[order] > 0], "against": order[shares[order] < 0]}
        deciding.append(
            {"image": index, "class": best}
            | {name: float(number) for name, number in numbers.items()}
            | {name: [[int(i), float(shares[i])] for i in indices[:count]] for name, indices in decisive.items()}
        )
    metrics = {
        "npk_test_accuracy": accuracy,
        "npk_ridge": solution.ridge,
        "npk_images": float(len(regressor.inputs_)),
        "npk_test_images": float(len(labels)),
    }
    overlap = class_overlap(side[1], labels, len(regressor.classes_)).round(6).tolist()
    return {"metrics": metrics, "deciding": deciding, "overlap": overlap}
