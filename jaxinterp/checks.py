"""Argument checks at the public border, in one grammar: `name: got A, expected B`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array


def require_labels(name: str, labels: Any, count: int, classes: int | None = None) -> None:
    """Refuse labels that are not `count` integers, at least one, in [0, classes).

    Raises:
        ValueError: they are not.
    """
    found = np.asarray(labels)
    if found.shape != (count,) or not count or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"{name}: got {found.dtype}{found.shape}, expected {max(count, 1)} integers, one for each image"
        )
    if found.min() < 0 or (classes is not None and found.max() >= classes):
        wanted = "from 0 on" if classes is None else f"in [0, {classes})"
        raise ValueError(f"{name}: got {found.min()}..{found.max()}, expected classes {wanted}")


def require_batch(x: Array) -> None:
    """Refuse an input `x` that is not a batch of floating arrays.

    Raises:
        ValueError: `x` is not floating, or has no batch axis or no example.
    """
    if x.ndim < 2 or len(x) == 0 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x: got {x.dtype}{x.shape}, expected a floating array (batch, ...) of at least one example")


def require_variables(apply: Callable[..., Array], variables: Any, name: str) -> None:
    """Refuse a Flax model in place of its `apply`, and that without the model's variables.

    Raises:
        ValueError: one of these came.
    """
    if isinstance(apply, nn.Module) and apply.scope is None:
        raise ValueError(f"{name}: got the model {type(apply).__name__}, expected its function: model.apply")
    if variables is None and getattr(apply, "__func__", None) is nn.Module.apply:
        raise ValueError(f"variables: got none with {name}=model.apply, expected the model's variables")


def require_finite(name: str, values: Array | np.ndarray) -> None:
    """Refuse NaN and infinite values of an argument; values that are being traced are not known and pass.

    Raises:
        ValueError: a value is not finite.
    """
    if isinstance(values, jax.core.Tracer):
        return
    if isinstance(values, np.ndarray) and values.size and np.isfinite([values.min(), values.max()]).all():
        return  # without a copy on the device, or a mask of the array's size
    wrong = values.size - int(jnp.isfinite(values).sum())
    if wrong:
        raise ValueError(f"{name}: got {wrong} of {values.size} values NaN or infinite, expected finite values")
