"""Training examples that a prediction came from: TracIn along checkpoints, and influence functions at the last of them.

    TracIn       influence(z', z) = Σ_c η_c ∇ℓ(w_c, z') · ∇ℓ(w_c, z)
    influence    influence(z', z) = ∇ℓ(w, z')ᵀ (H + damping)⁻¹ ∇ℓ(w, z)          H: Hessian of the mean training loss

of a training example z on a test example z'; positive where z lowers the loss of z'. Over all steps of full-batch
gradient descent on a model that is linear in its weights, TracIn is the exact split of the change of a prediction, as
the shares of a kernel regression are. Gradients of examples are never all there at once: of some test examples, and
beside them of some training examples at a time, of which only the inner products are kept.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, Int

from jaxinterp.checks import (
    require,
    require_at_least,
    require_finite,
    require_labels,
    require_number,
    require_one_of,
    require_whole,
)
from jaxinterp.explain.batches import MAX_BYTES
from jaxinterp.explain.explainable import Explainable, with_batch
from jaxinterp.explain.program import Model

Loss = Callable[[Array, Array], Array]
"""(logits (n, classes), y (n, ...)) ↦ losses (n,); a function of a module, as it is compiled once for each."""
Trained = Callable[[str], bool]
Leaves = list[Array]
UNSOLVED = 0.01
"""Largest relative residual of the conjugate gradients that is not warned of."""


def softmax_loss(logits: Float[Array, "n classes"], y: Int[Array, " n"]) -> Float[Array, " n"]:
    """Return the cross-entropy of the softmax."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, y)  # type: ignore[no-any-return]


def sigmoid_loss(logits: Float[Array, "n classes"], y: Int[Array, " n"]) -> Float[Array, " n"]:
    """Return the binary cross-entropy, summed over the classes."""
    labels = jax.nn.one_hot(y, logits.shape[1], dtype=logits.dtype)
    return optax.sigmoid_binary_cross_entropy(logits, labels).sum(1)  # type: ignore[no-any-return]


def tracin(
    net: Any,
    checkpoints: Sequence[Any],
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    rates: float | Sequence[float] = 1.0,
    loss: Loss | None = None,
    test_loss: Loss | None = None,
    trained: Trained | None = None,
    max_bytes: int = MAX_BYTES,
) -> Float[np.ndarray, "n_test n_train"]:
    """Sum the inner products of test and training gradients over checkpoints.

        influence(z', z) = Σ_c η_c ∇ℓ(w_c, z') · ∇ℓ(w_c, z)

    Args:
        net: a network with variables, see `explainable`.
        checkpoints: variables during training, each a pytree as `net.variables`.
        train: examples (n, ...), and their labels (n,), integers, or what `loss` takes.
        test: the same of test examples.
        rates: η_c, learning rates: one, or one for each checkpoint. With a mean loss over n examples, η/n.
        loss: (logits, y) ↦ losses; by default cross-entropy of softmax or sigmoid, as `net.probability` says.
        test_loss: of the test examples, `loss` by default; such as the negative logit of a class, for its prediction.
        trained: path of a leaf of the variables ↦ whether it was trained; by default the collection "params" where
            there is one, else all floating arrays.
        max_bytes: bytes that one pass may take by estimate.

    Returns:
        Influences, (n_test, n_train).

    Example:
        >>> from jaxinterp.explain.explainable import explainable
        >>> net, squares = explainable(lambda w, x: x @ w, jnp.zeros((1, 1))), lambda f, y: (f[:, 0] - y) ** 2 / 2
        >>> train, test = (jnp.array([[1.0], [2.0]]), jnp.array([1.0, 1.0])), (jnp.array([[3.0]]), jnp.array([3.0]))
        >>> tracin(net, [net.variables], train, test, loss=squares).tolist()
        [[9.0, 18.0]]

    Source: Pruthi, Liu, Sundararajan, Kale, arXiv 2002.08484, Sec. 3.2 (TracInCP).
    """
    require(len(checkpoints), "checkpoints", "none", "at least one pytree of variables")
    steps = np.broadcast_to(np.asarray(rates, float), len(checkpoints)) if np.ndim(rates) == 0 else np.asarray(rates)
    require(steps.shape == (len(checkpoints),), "rates", f"shape {steps.shape}", f"one, or {len(checkpoints)}")
    task = _task(net, train, test, loss, test_loss, trained, max_bytes)
    structure: Any = jax.tree.structure(task.net.variables)
    total = np.zeros((len(task.test[0]), len(task.train[0])))
    with jax.default_matmul_precision("highest"):
        for i, variables in enumerate(checkpoints):
            same = structure == jax.tree.structure(variables)
            require(same, "checkpoints", f"number {i} of another structure", "pytrees as net.variables")
            model = replace(task.net, variables=variables).program("logits", task.example)
            total += steps[i] * _gram(task, model, lambda vectors: vectors, max_bytes)
    return total


def influence_functions(
    net: Any,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    *,
    damping: float = 1e-3,
    steps: int = 100,
    matrix: Literal["gauss-newton", "hessian"] = "hessian",
    loss: Loss | None = None,
    test_loss: Loss | None = None,
    trained: Trained | None = None,
    max_bytes: int = MAX_BYTES,
) -> Float[np.ndarray, "n_test n_train"]:
    """Estimate how the loss of test examples falls with the weight of each training example, at the optimum.

        influence(z', z) = ∇ℓ(z')ᵀ (H + damping)⁻¹ ∇ℓ(z) = −dℓ(z')/dε          for the loss mean_i ℓ(z_i) + ε ℓ(z)

    by conjugate gradients on products of H with vectors, over the whole training set; H is never formed. Leaving
    z out of n training examples raises the loss of z' by influence/n, to first order.

    Args:
        net: a network with its variables, those at the optimum, see `explainable`.
        train: examples (n, ...), and their labels (n,), integers, or what `loss` takes.
        test: the same of test examples.
        damping: added to the diagonal of H, at least 0; large enough that the sum is positive definite.
        steps: of the conjugate gradients at most, ≥ 1, each a pass over the training set.
        matrix: H, "hessian", or the "gauss-newton" matrix JᵀH_f J, which is never indefinite.
        loss: see `tracin`; convex in the logits for "gauss-newton".
        test_loss: see `tracin`.
        trained: see `tracin`.
        max_bytes: bytes that one pass may take by estimate.

    Returns:
        Influences, (n_test, n_train), with the sign of `tracin`.

    Warns:
        UserWarning: the conjugate gradients have not converged for some test examples.

    Example:
        >>> from jaxinterp.explain.explainable import explainable
        >>> net, squares = explainable(lambda w, x: x @ w, jnp.zeros((1, 1))), lambda f, y: (f[:, 0] - y) ** 2 / 2
        >>> train, test = (jnp.array([[1.0], [2.0]]), jnp.array([1.0, 1.0])), (jnp.array([[3.0]]), jnp.array([3.0]))
        >>> influence_functions(net, train, test, loss=squares, damping=0.0).round(4).tolist()  # H = 5/2
        [[3.6, 7.2]]

    Source: Koh, Liang, arXiv 1703.04730, Eq. 2 with the opposite sign; Gauss–Newton: Grosse et al., arXiv 2308.03296.
    """
    require_number("damping", damping, "at least 0", lambda v: v >= 0)
    require_whole("steps", steps, 1)
    require_one_of("matrix", matrix, ("gauss-newton", "hessian"))
    task = _task(net, train, test, loss, test_loss, trained, max_bytes)
    model = task.net.program("logits", task.example)
    count = len(task.train[0])
    size = max(1, min(count, int(max_bytes // (2 * task.each))))
    parts = -(-count // size)
    size = -(-count // parts)
    order = np.minimum(np.arange(parts * size), count - 1)  # the last example again, of weight zero
    weights = jnp.asarray((np.arange(parts * size) < count).reshape(parts, size) / count, float)
    x, y = (jnp.asarray(array[order].reshape(parts, size, *array.shape[1:])) for array in task.train)
    whole = task.net.program("logits", x[0])
    missed: list[np.ndarray] = []

    def solve(vectors: Leaves) -> Leaves:
        solved, far = _solve(task.loss, task.leaves, matrix, steps, whole, x, y, weights, damping, vectors)
        missed.append(np.asarray(far))
        return solved

    with jax.default_matmul_precision("highest"):
        found = _gram(task, model, solve, max_bytes)
    worst = max(float(far.max()) for far in missed)
    if not worst <= UNSOLVED:
        warnings.warn(
            f"steps: conjugate gradients left a relative residual of {worst:.1e}; more steps, or more damping where "
            "the matrix is not positive definite",
            stacklevel=2,
        )
    return found


class _Task(NamedTuple):
    """Checked arguments.

    Attributes:
        leaves: places of the trained leaves of the variables.
        example: one training example, (1, ...).
        each: bytes that the gradient of an example takes as it is computed.
    """

    net: Explainable
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    loss: Loss
    test_loss: Loss
    leaves: tuple[int, ...]
    example: Array
    each: float


def _task(
    net: Any,
    train: tuple[Any, Any],
    test: tuple[Any, Any],
    loss: Loss | None,
    test_loss: Loss | None,
    trained: Trained | None,
    max_bytes: int,
) -> _Task:
    require_at_least("max_bytes", max_bytes, 1)
    sides: list[tuple[np.ndarray, np.ndarray]] = []
    for name, side in (("train", train), ("test", test)):
        require(isinstance(side, tuple | list) and len(side) == 2, name, type(side).__name__, "a pair (x, y)")
        x, y = map(np.asarray, side)
        sides.append((x, y))
    net, example = with_batch(net, jnp.asarray(sides[0][0][:1]))
    classes = net.program("logits", example).program.output.shape[1]
    for name, (x, y), own in zip(("train", "test"), sides, (loss, test_loss or loss), strict=True):
        wanted = f"(n, {', '.join(map(str, example.shape[1:]))}), n at least 1"
        require(x.shape[1:] == example.shape[1:] and len(x), name, f"x of shape {x.shape}", wanted)
        if np.issubdtype(x.dtype, np.floating):
            require_finite(name, x)
        if own is None:
            require_labels(name, y, len(x), classes)
        require(y.shape[:1] == x.shape[:1], name, f"y of shape {y.shape}", f"({len(x)}, ...)")
    standard = sigmoid_loss if net.probability == "sigmoid" else softmax_loss
    leaves = _trained_leaves(net.variables, trained)
    total, most = net.program("logits", example).program.memory
    values = jax.tree.leaves(net.variables)
    each = total + 2 * most + 2 * sum(values[i].nbytes for i in leaves)
    loss = loss or standard
    return _Task(net, sides[0], sides[1], loss, test_loss or loss, leaves, example, each)


def _trained_leaves(variables: Any, trained: Trained | None) -> tuple[int, ...]:
    """Return the places of the leaves that were trained, in the order of the pytree."""
    known = jax.tree_util.tree_leaves_with_path(variables)
    if trained is None:
        own = isinstance(variables, Mapping) and "params" in variables
        trained = (lambda path: path.startswith("params/")) if own else lambda path: True
    places = [
        i
        for i, (path, leaf) in enumerate(known)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and trained(jax.tree_util.keystr(path, simple=True, separator="/"))
    ]
    require(places, "trained", "no floating array", "at least one of the network's variables")
    return tuple(places)


def _gram(
    task: _Task, model: Model, change: Callable[[Leaves], Leaves], max_bytes: int
) -> Float[np.ndarray, "n_test n_train"]:
    """Return the inner products of test gradients, changed, with training gradients, block by block."""
    tests, trains = len(task.test[0]), len(task.train[0])
    whole = np.zeros((tests, trains))
    most = max(1, int(max_bytes // (2 * task.each)))
    for rows, given in _blocks(task.test, most):
        vectors = change(_gradients(task.test_loss, task.leaves, model, *given))
        for columns, examples in _blocks(task.train, most):
            whole[rows, columns] = np.asarray(_products(task.loss, task.leaves, model, vectors, *examples))
    return whole


def _blocks(arrays: tuple[np.ndarray, np.ndarray], most: int) -> Iterator[tuple[slice, tuple[Array, Array]]]:
    """Yield parts of one size, at most that given; the last reaches back."""
    count = len(arrays[0])
    size = -(-count // -(-count // min(most, count)))
    for start in range(0, count, size):
        start = min(start, count - size)
        part = slice(start, start + size)
        yield part, (jnp.asarray(arrays[0][part]), jnp.asarray(arrays[1][part]))


def _with_leaves(model: Model, places: tuple[int, ...], values: Leaves) -> Model:
    """Return a network with some leaves of its variables exchanged."""
    leaves, structure = jax.tree.flatten(model.variables)
    for place, value in zip(places, values, strict=True):
        leaves[place] = value
    return replace(model, variables=jax.tree.unflatten(structure, leaves))


def _leaves(model: Model, places: tuple[int, ...]) -> Leaves:
    leaves = jax.tree.leaves(model.variables)
    return [leaves[place] for place in places]


@partial(jax.jit, static_argnums=(0, 1))
def _gradients(loss: Loss, places: tuple[int, ...], model: Model, x: Array, y: Array) -> Leaves:
    """Return the gradient of each example's loss, (n, ...) for each trained leaf; the model reads one example."""

    def one(values: Leaves, x: Array, y: Array) -> Array:
        return loss(_with_leaves(model, places, values)(x[None]), y[None])[0]

    return jax.vmap(jax.grad(one), in_axes=(None, 0, 0))(_leaves(model, places), x, y)


@partial(jax.jit, static_argnums=(0, 1))
def _products(
    loss: Loss, places: tuple[int, ...], model: Model, vectors: Leaves, x: Array, y: Array
) -> Float[Array, "m n"]:
    """Return the inner products of vectors with examples' gradients."""
    gradients = _gradients(loss, places, model, x, y)
    flat = ((v.reshape(len(v), -1), g.reshape(len(g), -1)) for v, g in zip(vectors, gradients, strict=True))
    return jnp.stack([v @ g.T for v, g in flat]).sum(0)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _solve(
    loss: Loss,
    places: tuple[int, ...],
    matrix: str,
    steps: int,
    model: Model,
    x: Array,
    y: Array,
    weights: Float[Array, "parts size"],
    damping: float | Array,
    vectors: Leaves,
) -> tuple[Leaves, Float[Array, " m"]]:
    """Solve (H + damping) s = v for each vector by conjugate gradients, and return the relative residuals."""
    values = _leaves(model, places)

    def product(v: Leaves) -> Leaves:
        def add(total: Leaves, part: tuple[Array, Array, Array]) -> tuple[Leaves, None]:
            x, y, weight = part

            def logits(values: Leaves) -> Array:
                return _with_leaves(model, places, values)(x)  # type: ignore[no-any-return]

            def mean_loss(out: Array) -> Array:
                return (loss(out, y) * weight.astype(out.dtype)).sum()

            if matrix == "hessian":
                _, moved = jax.jvp(jax.grad(lambda values: mean_loss(logits(values))), (values,), (v,))
            else:
                out, pullback = jax.vjp(logits, values)
                _, tangent = jax.jvp(logits, (values,), (v,))
                _, bent = jax.jvp(jax.grad(mean_loss), (out,), (tangent,))
                (moved,) = pullback(bent)
            return jax.tree.map(jnp.add, total, moved), None

        start = [value * jnp.asarray(damping, value.dtype) for value in v]
        return jax.lax.scan(add, start, (x, y, weights))[0]

    def one(v: Leaves) -> tuple[Leaves, Array]:
        solved, _ = cg(product, v, tol=1e-6, maxiter=steps)
        rest = jax.tree.map(jnp.subtract, product(solved), v)
        return solved, optax.tree.norm(rest) / jnp.maximum(optax.tree.norm(v), jnp.finfo(v[0].dtype).tiny)

    return jax.lax.map(one, vectors)
