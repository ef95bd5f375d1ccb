"""Counted products of traced programs, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinterp.explain.products import Kind, product_flops

F32 = Kind("float32", "default")


def counted(function, *shapes, dtype=jnp.float32):
    return dict(product_flops(jax.make_jaxpr(function)(*(jnp.ones(shape, dtype) for shape in shapes))))


def test_products_by_type_and_precision() -> None:
    assert counted(lambda a, b: a @ b, (2, 3), (3, 5)) == {F32: 2 * 2 * 3 * 5}
    assert counted(lambda a, b: a @ b, (2, 3), (3, 5), dtype=jnp.bfloat16) == {Kind("bfloat16", "default"): 60}
    with jax.default_matmul_precision("highest"):
        assert counted(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 2, 3), (7, 3, 5)) == {
            Kind("float32", "highest"): 420
        }


@pytest.mark.parametrize(
    ("stride", "padding", "holes", "spread"), [(1, 0, 1, 1), (2, 1, 1, 1), (1, 2, 2, 1), (1, 1, 1, 2), (3, 2, 2, 2)]
)
def test_convolutions_count_taps_that_meet_the_input(stride, padding, holes, spread) -> None:
    """Convolving ones with ones counts them; of padding and of holes are zeros."""

    def convolve(x, k):
        return lax.conv_general_dilated(
            x, k, (stride, stride), [(padding, padding)] * 2, (holes, holes), (spread, spread),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip

    shapes = (2, 9, 8, 3), (3, 2, 3, 5)
    terms = float(convolve(*(jnp.ones(shape) for shape in shapes)).sum())
    assert counted(convolve, *shapes) == {F32: 2 * terms}


def test_groups_divide_the_work_and_gradients_cost_twice_as_much() -> None:
    x, k = (2, 6, 6, 8), (3, 3, 2, 12)

    def grouped(x, k):
        return lax.conv_general_dilated(
            x, k, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        )

    forward = 2 * 2 * 4 * 4 * 12 * 9 * 2
    assert counted(grouped, x, k) == {F32: forward}
    assert counted(jax.grad(lambda x, k: (grouped(x, k) ** 2).sum(), (0, 1)), x, k) == {F32: 3 * forward}


def test_loops_and_branches() -> None:
    a = np.ones((4, 4), np.float32)

    def scanned(x):
        return lax.map(lambda row: row @ a, x)

    def branched(x):
        return lax.cond(x.sum() > 0, lambda x: x @ a, lambda x: x @ a @ a, x)

    assert counted(jax.jit(scanned), (3, 2, 4)) == {F32: 3 * 64}
    assert counted(branched, (2, 4)) == {F32: 128}
