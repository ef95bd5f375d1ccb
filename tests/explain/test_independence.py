"""Examples that depend on one another are noticed by every method, whatever the batch and the tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp import decompose, explainable
from jaxinterp.explain.attribute import gradient, integrated_gradients, occlusion

W = jax.random.normal(jax.random.key(0), (4, 3))
X = jax.random.normal(jax.random.key(1), (4, 4))


def centered(x):
    return (x - x.mean(0, keepdims=True)) @ W + 1.0


def turned(x):
    return (x + 0.5 * jnp.roll(x, 2, 0)) @ W


def halves(x):
    return (x + jnp.concatenate([x[len(x) // 2 :], x[: len(x) // 2]])) @ W if len(x) > 1 else x @ W


@pytest.mark.parametrize("network", [centered, turned, halves])
@pytest.mark.parametrize(
    "explain",
    [decompose, gradient, integrated_gradients],
)
def test_a_network_that_mixes_examples_is_refused(network, explain):
    with pytest.raises(ValueError, match=r"\Anetwork: got logits that change"):
        explain(network, X)


def test_tiles_of_one_example_are_tried_as_two():
    with pytest.raises(ValueError, match=r"\Anetwork: got logits that change"):
        decompose(centered, X, max_bytes=1)


def test_a_single_example_is_tried_beside_another():
    with pytest.raises(ValueError, match=r"\Anetwork: got logits that change"):
        decompose(centered, X[:1])
    fixed = explainable(lambda x: x.reshape(1, -1) @ jnp.tile(W, (1, 1)))  # reads one example only
    assert decompose(fixed, X[:1]).logits.shape == (1, 3)


def test_images_are_tried_too():
    with pytest.raises(ValueError, match=r"\Anetwork: got logits that change"):
        occlusion(lambda x: (x - x.mean(0, keepdims=True)).sum((1, 2)), np.ones((2, 6, 6, 1), np.float32), window=3)


def test_changed_variables_are_tried_again():
    def mixing(share, x):
        return (x + share * x.mean(0, keepdims=True)) @ W

    assert decompose(explainable(mixing, jnp.float32(0)), X).residual.max() < 1e-5
    with pytest.raises(ValueError, match=r"\Anetwork: got logits that change"):
        decompose(explainable(mixing, jnp.float32(1)), X)


def test_logits_that_depend_on_the_size_of_the_batch_are_refused():
    for batch in (1, 3, 4):
        with pytest.raises(ValueError, match=r"\Anetwork: got logits that change .* another size"):
            gradient(lambda x: x @ W * len(x), X[:batch])


def test_equal_examples_are_tried_with_others():
    stages = {"embed": lambda v, t: v[t], "head": lambda v, e: e.mean(1) + e.mean((0, 1))[None]}
    explained = explainable(stages, W)
    with pytest.raises(ValueError, match=r"\Anetwork: got logits that change"):
        decompose(explained, jnp.ones((4, 3), int), layer="embed")
