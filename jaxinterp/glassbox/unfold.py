"""A conventional CNN unfolded: every convolution written as patches × templates.

    y[p, k] = ⟨patch_p(x), t_k⟩ + b_k        patch_p(x): the s × s × C values under the filter at p

which is the representation layer of the glass box for the group of shifts. `unfolded` runs any Flax model so, with the
model's own parameters; how much each template has in a logit is `jaxinterp.glassbox.templates`.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array

from jaxinterp.nn.patches import patches


def unfolded(apply: Callable[..., Array]) -> Callable[..., Array]:
    """The same function with every `nn.Conv` that it calls written as patches × templates.

    Args:
        apply: such as `model.apply`, not jitted.

    Returns:
        A function of the same arguments with the same values, up to rounding.

    Raises:
        ValueError: when called, on a convolution over other than two axes, transposed, masked or circular. Group
            convolutions (`jaxinterp.glassbox.gcnn`) are left as they are: they are patches × moved templates already.

    Example:
        >>> import jax
        >>> conv = nn.Conv(3, (3, 3), padding=((1, 1), (1, 1)))
        >>> x = jax.random.normal(jax.random.key(0), (2, 5, 5, 2))
        >>> variables = conv.init(jax.random.key(1), x)
        >>> bool(jnp.allclose(unfolded(conv.apply)(variables, x), conv.apply(variables, x), atol=1e-5))
        True
    """

    def run(*args: Any, **kwargs: Any) -> Array:
        with nn.intercept_methods(_convolve):
            return apply(*args, **kwargs)

    return run


def _convolve(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    """Interceptor: what `nn.Conv` does, by its parameters."""
    conv = context.module
    if isinstance(conv, nn.ConvTranspose):
        raise ValueError(f"apply: {'/'.join(conv.path)} is a transposed convolution, expected nn.Conv")
    if not isinstance(conv, nn.Conv) or context.method_name != "__call__" or conv.is_initializing():
        return run(*args, **kwargs)
    x = args[0] if args else kwargs["inputs"]
    kernel: Any = conv.get_variable("params", "kernel")
    if kernel.ndim != 4 or x.ndim != 4 or not _plain(conv.input_dilation):
        raise ValueError(f"apply: {'/'.join(conv.path)} convolves {x.shape}, expected images (n, h, w, c), not dilated")
    if conv.mask is not None or (isinstance(conv.padding, str) and conv.padding not in ("SAME", "VALID")):
        raise ValueError(f"apply: {'/'.join(conv.path)} has a mask or padding={conv.padding!r}, expected zeros around")
    bias = conv.get_variable("params", "bias") if conv.use_bias else None
    x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=conv.dtype)
    sides, strides, dilation = kernel.shape[:2], _two(conv.strides), _two(conv.kernel_dilation)
    spans = [d * (s - 1) + 1 for s, d in zip(sides, dilation, strict=True)]
    padding: Any = conv.padding
    if isinstance(padding, int):
        padding = [(padding, padding)] * 2
    elif isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], spans, strides, padding)
    else:
        padding = [(part, part) if isinstance(part, int) else tuple(part) for part in padding]
    found = patches(x, sides, strides, padding, dilation)
    groups, (_, _, depth, features) = conv.feature_group_count, kernel.shape
    split = found.reshape(*found.shape[:3], sides[0] * sides[1], groups, depth)
    templates = kernel.reshape(sides[0] * sides[1], depth, groups, features // groups)
    y = jnp.einsum("nhwsgd,sdgk->nhwgk", split, templates, precision=conv.precision).reshape(*found.shape[:3], features)
    return y if bias is None else y + bias[None, None, None]


def _two(value: Any) -> tuple[int, int]:
    """A number for both axes, or one for each; 1 where there is none."""
    return (value, value) if isinstance(value, int) else (1, 1) if value is None else tuple(value)


def _plain(dilation: Any) -> bool:
    return _two(dilation) == (1, 1)
