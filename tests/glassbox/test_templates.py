import jax
import jax.numpy as jnp
import numpy as np

from jaxinterp.glassbox.templates import template_shares
from jaxinterp.nn.baselines import CifarResNet


def test_shares_of_templates_sum_to_the_logit():
    net, x = CifarResNet(8, classes=3, width=4), jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    variables = jax.jit(net.init)(jax.random.key(1), x)
    parts = template_shares(net.apply, x, "trunk/stem/conv", [1, 2], variables=variables)
    logits = net.apply(variables, x)[jnp.arange(2), jnp.array([1, 2])][:, None]
    np.testing.assert_allclose(parts.contributions.sum(-1) + parts.bias, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(parts.shares.sum(-1), 1.0, rtol=1e-5)
    kernel = variables["params"]["trunk"]["stem"]["conv"]["kernel"]
    silent = jax.tree.map(lambda a: a, variables)
    silent["params"]["trunk"]["stem"]["conv"]["kernel"] = kernel.at[..., 2].set(0)
    parts = template_shares(net.apply, x, "trunk/stem/conv", variables=silent)
    np.testing.assert_array_equal(parts.shares[..., 2], 0)  # a template that answers nothing has no share
