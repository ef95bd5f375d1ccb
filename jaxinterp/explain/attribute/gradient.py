"""Gradient and Input × Gradient: the local slope of a logit, and the slope times the input."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from jaxinterp.explain.attribute.attribution import MAX_BYTES, Attribution, target_gradients
from jaxinterp.explain.decompose import Targets, bind
from jaxinterp.explain.tracing import in_chunks


def gradient(
    model: Callable[..., Float[Array, "batch classes"]],
    x: Array,
    targets: Targets = None,
    *,
    variables: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute the signed gradient ∂f_k/∂x of each target's logit, for all targets in one pass.

    No absolute value is taken: the sign tells whether an entry raises or lowers the logit.

    Args:
        model: x ↦ logits (batch, classes), examples independent of one another; or (variables, x) ↦ logits where
            `variables` is given. With `variables` the computation is compiled once and reused for as long as the
            same function object is passed; a closure runs operation by operation, or inside the caller's own jit.
        x: input, (batch, ...), floating.
        targets: None for all classes, an int, (batch,) or (batch, T) classes.
        variables: the model's variables, any pytree.
        max_bytes: bytes that one pass may take by estimate; larger batches run in equal chunks.

    Returns:
        An `Attribution` on the shape of `x`, without a gap.

    Example:
        >>> import jax.numpy as jnp
        >>> gradient(lambda x: x**2, jnp.array([[1.0, -3.0]]), 1).contributions.tolist()
        [[[0.0, -6.0]]]

    Source: Simonyan, Vedaldi, Zisserman, arXiv 1312.6034, Sec. 3 (there with the absolute value).
    """
    with jax.default_matmul_precision("highest"):
        bound, rows, size = bind(model, x, targets, variables)

        def explain(x: Array, rows: Array) -> Attribution:
            return Attribution(target_gradients(bound, x, rows, variables is not None))

        return in_chunks(explain, (x, rows), size.bytes_each(rows.shape[1]), max_bytes)


def input_x_gradient(
    model: Callable[..., Float[Array, "batch classes"]],
    x: Array,
    targets: Targets = None,
    *,
    variables: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Attribution:
    """Compute input times gradient, x ⊙ ∂f_k/∂x.

    The exact decomposition of a network that is linear around `x`, and of no other: on a CoDA Net the gradient also
    runs through the dynamic weights, and the products do not sum to the logit. Arguments and result are those of
    `gradient`.

    Example:
        >>> import jax.numpy as jnp
        >>> input_x_gradient(lambda x: x**2, jnp.array([[1.0, -3.0]]), 1).contributions.tolist()
        [[[0.0, 18.0]]]

    Source: Shrikumar, Greenside, Shcherbina, Kundaje, arXiv 1605.01713, Sec. 2.
    """
    slopes = gradient(model, x, targets, variables=variables, max_bytes=max_bytes).contributions
    return Attribution(slopes * x[:, None])
