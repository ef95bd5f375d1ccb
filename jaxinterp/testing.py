"""The contracts that every network here keeps, as a test for networks of one's own."""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxinterp.checks import require
from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import Explainable, with_batch
from jaxinterp.lazy import public

__all__ = ["Contract", "check_explainable"]

__dir__ = public(__all__)

TOLERANCES = {"float32": 1e-4, "float64": 1e-10}


class Contract(NamedTuple):
    """What was measured of one promise; it is kept where `measured` is at most `tolerance`."""

    promise: str
    measured: float
    tolerance: float

    @property
    def kept(self) -> bool:
        """Whether the promise is kept; NaN is not."""
        return self.measured <= self.tolerance


def check_explainable(net: Any, x: Any, *, tolerance: float | None = None) -> list[Contract]:
    """Check that a network is explained exactly: at its own layer, and at each of its `levels`.

        contributions + bias = logits · no curvature · frozen = free · one example = the batch · jit = eager ·
        W v by contraction = W v by a forward derivative

    Args:
        net: a network, see `explainable`.
        x: a batch of at least two different examples, (batch, ...).
        tolerance: largest relative error; by default 1e-4 in float32, 1e-10 in float64, 0.05 in half precision.

    Returns:
        Every promise with what was measured.

    Raises:
        ConfigError: a promise is not kept; the line names all of them.

    Example:
        >>> from jaxinterp import explainable
        >>> w = jnp.array([[1.0, -1.0], [2.0, 1.0]])
        >>> found = check_explainable(lambda x: jax.nn.relu(x @ w) + 0.5, jnp.array([[1.0, 3.0], [-1.0, 2.0]]))
        >>> all(contract.kept for contract in found), found[0].promise
        (True, "contributions and bias sum to the logits at 'input'")
        >>> curved = explainable(lambda x: jax.nn.gelu(x @ w), freeze=False)
        >>> try:
        ...     check_explainable(curved, jnp.array([[1.0, 3.0], [-1.0, 2.0]]))
        ... except ConfigError as error:
        ...     print(str(error)[:29])
        net: got curvature at 'input'
    """
    net, x = with_batch(net, x)
    require(len(x) > 1, "x", f"{len(x)} example", "at least two")
    layers = list(dict.fromkeys([net.layer, *net.levels]))
    found: list[Contract] = []
    whole = decompose(net, x, layer=layers, check=False)
    exact = TOLERANCES.get(str(whole[0].logits.dtype), 5e-2) if tolerance is None else tolerance

    def measure(promise: str, *errors: Any) -> None:
        found.append(Contract(promise, float(max(np.max(np.asarray(error)) for error in errors)), exact))

    for part in whole:
        at = f"at {part.layer!r}"
        measure(f"contributions and bias sum to the logits {at}", part.relative_residual)
        measure(f"curvature {at}", part.curvature)
        measure(f"a derivative backward is one forward {at}", _transposed(net, x, part))
    measure("frozen logits are the free ones", whole[0].discrepancy)
    alone = [decompose(net, x[i : i + 1], layer=layers, check=False) for i in range(min(len(x), 3))]
    measure("an example alone is as in the batch", *(_apart(one, _row(whole, i)) for i, one in enumerate(alone)))
    compiled = jax.jit(lambda v, x: decompose(replace(net, variables=v), x, layer=layers, check=False))
    measure("in jit as without", _apart(compiled(net.variables, x), whole))
    broken = [f"{c.promise} {c.measured:.1e} (at most {c.tolerance:.1e})" for c in found if not c.kept]
    if broken:
        raise ConfigError(f"net: got {', '.join(broken)}, expected every promise kept")
    return found


def _transposed(net: Explainable, x: Array, part: Attribution) -> Array:
    """Return how far W v is from a forward derivative along a random v, over its size."""
    model, name = net.program("frozen", x), part.layer
    here = model.value(name, x)
    step = jnp.asarray(np.random.default_rng(1).standard_normal(here.shape), here.dtype)

    def moved(delta: Array) -> Array:
        return model(x, taps={name: lambda value: value + delta})  # type: ignore[no-any-return]

    with jax.default_matmul_precision("highest"):
        forward = jax.jit(lambda: jax.jvp(moved, (jnp.zeros_like(here),), (step,))[1])()
    forward = jnp.take_along_axis(forward, part.targets, axis=1)
    backward = (part.weights * step[:, None]).reshape(*forward.shape, -1).sum(-1)
    return jnp.abs(forward - backward) / jnp.maximum(jnp.abs(forward).max(), jnp.finfo(forward.dtype).tiny)


def _row(parts: list[Attribution], i: int) -> list[Attribution]:
    return [jax.tree.map(lambda leaf: leaf[i : i + 1], part) for part in parts]


def _apart(some: list[Attribution], others: list[Attribution]) -> float:
    """Return the largest difference of contributions, over the largest contribution."""
    sizes = [float(jnp.abs(part.contributions).max()) or 1.0 for part in others]
    gaps = [float(jnp.abs(a.contributions - b.contributions).max()) for a, b in zip(some, others, strict=True)]
    return max(gap / size for gap, size in zip(gaps, sizes, strict=True))
