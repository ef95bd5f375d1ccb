"""Small convolutions as products: the values and gradients of XLA's own, in every layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.program import as_written

CASES = {
    "same": ((3, 2, 2, 4), (3, 3, 4, 5), {"padding": "SAME"}, ("NHWC", "HWIO", "NHWC")),
    "strides": ((2, 4, 3, 2), (3, 3, 2, 3), {"padding": ((1, 1), (1, 0)), "strides": (2, 1)}, ("NHWC", "HWIO", "NHWC")),
    "first": ((2, 3, 2, 2), (4, 3, 3, 3), {"padding": ((1, 1), (1, 1))}, ("NCHW", "OIHW", "NCHW")),
    "dilated": ((2, 3, 3, 2), (3, 3, 2, 3), {"padding": ((1, 2), (2, 1)), "dilate": (2, 2)}, ("NHWC", "HWIO", "NCHW")),
    "negative": ((2, 5, 5, 2), (3, 3, 2, 3), {"padding": ((-1, -1), (0, -1))}, ("NHWC", "HWIO", "NHWC")),
    "one axis": ((2, 2, 3), (3, 3, 4), {"padding": ((1, 1),)}, ("NHC", "HIO", "NHC")),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_convolution(name):
    shape, kernel, options, numbers = CASES[name]
    axes = len(shape) - 2

    def conv(w, x):
        strides = options.get("strides", (1,) * axes)
        padding, dilation = options["padding"], options.get("dilate", (1,) * axes)
        return lax.conv_general_dilated(x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers)

    def logits(w, x):
        return conv(w, x).reshape(len(x), -1)

    with jax.enable_x64(True):
        x, w = (jax.random.normal(jax.random.key(i), size) for i, size in enumerate((shape, kernel)))
        model = explainable(logits, w).program("logits", x)
        names = {str(eqn.primitive) for eqn in jax.make_jaxpr(model)(x).eqns}
        assert "conv_general_dilated" not in names
        with as_written():
            assert "conv_general_dilated" in {str(eqn.primitive) for eqn in jax.make_jaxpr(lambda x: model(x))(x).eqns}
        want, pullback = jax.vjp(lambda x: logits(w, x), x)
        got, ours = jax.vjp(model, x)
        np.testing.assert_allclose(got, want, rtol=1e-12)
        cotangent = jax.random.normal(jax.random.key(2), want.shape)
        np.testing.assert_allclose(ours(cotangent)[0], pullback(cotangent)[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("groups", [1, 2])
def test_others_stay_convolutions(groups):
    side = 8 if groups == 1 else 2

    def logits(w, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        found = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)
        return found.mean((1, 2))

    x = jnp.ones((1, side, side, 4))
    model = explainable(logits, jnp.ones((3, 3, 4 // groups, 4))).program("logits", x)
    assert "conv_general_dilated" in {str(eqn.primitive) for eqn in jax.make_jaxpr(model)(x).eqns}
