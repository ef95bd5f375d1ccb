import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxinterp.explain.explainable import explainable
from jaxinterp.glassbox.templates import shares, template_shares


class Filters(nn.Module):
    """Templates, ReLU, the mean over positions, and a linear classifier."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="classifier")(nn.relu(nn.Conv(4, (3, 3), name="templates")(x)).mean((1, 2)))


def test_shares_of_templates_sum_to_the_logit():
    net, x = Filters(), jax.random.uniform(jax.random.key(0), (2, 5, 5, 3))
    variables = jax.jit(net.init)(jax.random.key(1), x)
    rows = jnp.array([[1, 2], [2, 0]])
    parts = template_shares(explainable(net, variables), x, rows, layer="templates")
    logits = jnp.take_along_axis(net.apply(variables, x), rows, 1)
    np.testing.assert_allclose(parts.contributions.sum(-1) + parts.bias, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(shares(parts.contributions).sum(-1), 1.0, rtol=1e-5)
    silent = jax.tree.map(lambda a: a, variables)
    silent["params"]["templates"]["kernel"] = variables["params"]["templates"]["kernel"].at[..., 2].set(0)
    parts = template_shares(explainable(net, silent), x, layer="templates")
    # A template that answers nothing has no share.
    np.testing.assert_array_equal(shares(parts.contributions)[..., 2], 0)
