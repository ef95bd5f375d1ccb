"""Matrix products and convolutions of a traced program: how many operations, of which type, at which precision."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class Kind(NamedTuple):
    """The type of a product's factors, and its precision: default, high or highest."""

    dtype: str
    precision: str


def product_flops(jaxpr: Any) -> Counter[Kind]:
    """Count a program's products: two operations, a multiplication and an addition, for each pair of factors.

    Padding, and the zeros between the entries of a dilated array, are no factors. What is called is counted as often
    as it runs: the body of a scan once a turn, of other loops once, as nobody knows; of branches the largest one.

    Args:
        jaxpr: as `jax.make_jaxpr` or `jax.jit(f).trace(...)` gives it.

    Returns:
        Operations by the kind of product.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> dict(product_flops(jax.make_jaxpr(lambda a, b: a @ b)(jnp.ones((2, 3)), jnp.ones((3, 5)))))
        {Kind(dtype='float32', precision='default'): 60}
    """
    found = Counter[Kind]()
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            found[_kind(eqn)] += _dot(eqn)
        elif name == "conv_general_dilated":
            found[_kind(eqn)] += _convolution(eqn)
        elif name == "cond":
            costliest = max(map(product_flops, params["branches"]), key=Counter.total)
            found += costliest
        else:
            times = params["length"] if name == "scan" else 1
            for inner in _inner(params):
                for kind, count in product_flops(inner).items():
                    found[kind] += times * count
    return found


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """Yield the programs that an operation calls."""
    for value in params.values():
        for one in value if isinstance(value, list | tuple) else (value,):
            if hasattr(getattr(one, "jaxpr", one), "eqns"):
                yield one


def _kind(eqn: Any) -> Kind:
    precision = eqn.params["precision"]
    one = precision[0] if isinstance(precision, tuple) else precision
    return Kind(str(eqn.invars[0].aval.dtype), "default" if one is None else getattr(one, "name", str(one)).lower())


def _dot(eqn: Any) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return 2 * int(eqn.outvars[0].aval.size) * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)


def _convolution(eqn: Any) -> int:
    """Output entries times input channels times the taps that meet an entry of the input, axis by axis."""
    lhs, rhs, params = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, eqn.params
    out, numbers = eqn.outvars[0].aval.shape, eqn.params["dimension_numbers"]
    taps = 1
    for axis, (i, k, o) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        stride, (low, _) = params["window_strides"][axis], params["padding"][axis]
        holes, spread = params["lhs_dilation"][axis], params["rhs_dilation"][axis]
        places = np.arange(out[o])[:, None] * stride + np.arange(rhs[k])[None] * spread - low
        taps *= int(((places >= 0) & (places % holes == 0) & (places // holes < lhs[i])).sum())
    outputs = out[numbers.out_spec[0]] * out[numbers.out_spec[1]]
    return 2 * outputs * rhs[numbers.rhs_spec[1]] * taps
