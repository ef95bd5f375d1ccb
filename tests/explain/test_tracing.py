"""What is read off a function in the abstract: names of layers, and memory."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.coda.network import CoDANet, encode
from jaxinterp.explain.tracing import activation_names, footprint

MODEL = CoDANet((4, 5, 3), (3, 2, 2), (3, 3, 1), (1, 2, 1), temperature=2.0)
IMAGES = jax.random.uniform(jax.random.key(0), (5, 6, 6, 1))


def test_what_decides_a_shape_is_not_taken_for_another():
    variables = jax.jit(MODEL.init)(jax.random.key(1), IMAGES)

    def cut(variables, count, x):
        return MODEL.apply(variables, x[:, :, :, :count], encoded=True, frozen=True)

    def whole(variables, x):
        return MODEL.apply(variables, x, encoded=True, frozen=True)

    e = encode(IMAGES)
    named = {"layer_0": (5, 6, 6, 4), "layer_1": (5, 3, 3, 5), "layer_2": (5, 3, 3, 3)}
    for call in (jax.tree_util.Partial(cut, variables, 2), jax.tree_util.Partial(whole, variables)):
        found = activation_names(call, e)
        assert found == named
        found.clear()
        assert activation_names(call, e) == named

    def wide(variables, x):
        return jnp.zeros(x.shape, float) + variables.astype(float)

    sizes = []
    for on in (False, True):
        with jax.enable_x64(on):
            sizes.append(footprint(jax.tree_util.Partial(wide, np.float32(1.0)), np.ones((2, 3), np.float32)))
    assert sizes[1].largest == 2 * sizes[0].largest
