"""The empirical tangent kernel against Jacobians, and the theorem that it tends to the path kernel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.gated.architecture import fc, gate_shapes
from jaxinterp.gated.kernels.path import PathKernel
from jaxinterp.gated.kernels.tangent import tangent_kernel
from jaxinterp.gated.network import GatingNetwork, Network, open_gates

KEYS = jax.random.split(jax.random.key(0), 4)


def test_parameters_that_cannot_be_differentiated_are_named():
    with pytest.raises(ValueError, match=r"params\['n'\]: "):
        tangent_kernel(lambda p, x: x @ p["w"], {"w": jnp.ones((2, 1)), "n": jnp.arange(3)}, jnp.ones((2, 2)))


def test_products_equal_the_jacobians():
    with jax.enable_x64(True):
        layers = fc(5, 2, classes=3, bias=True)
        net, x = Network(layers, param_dtype=jnp.float64), jax.random.normal(KEYS[0], (4, 2), jnp.float64)
        params = net.init(KEYS[1], x)["params"]

        def function(params, x):
            return net.apply({"params": params}, x)

        leaves = jax.tree.leaves(jax.jacrev(function)(params, x))
        jacobian = jnp.concatenate([leaf.reshape(4, 3, -1) for leaf in leaves], -1)
        want = jnp.einsum("ncp,mdp->nmcd", jacobian, jacobian)
        every = tangent_kernel(function, params, x, x[:2], classes="all")
        np.testing.assert_allclose(every, want[:, :2], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(
            tangent_kernel(function, params, x), jnp.einsum("nmcc->nm", want) / 3, rtol=1e-12, atol=1e-12
        )


def relative_errors(depth, widths, dependent=False, draws=6):
    """Of the NTK of one value network of each width against its limit, gates from a ReLU network, mean over draws."""
    x = jax.random.normal(KEYS[0], (8, 7))
    errors = []
    for width in widths:
        layers = fc(width, depth - 1, classes=1)
        variance = 2 / width
        features = GatingNetwork(layers, gating="relu", variance=variance)
        value = Network(layers, weights="rademacher", variance=variance)

        def error(key, features=features, value=value, layers=layers, variance=variance):
            keys = jax.random.split(key)
            variables = value.init(keys[1], x)
            own = {"params": {k: variables["params"][k] for k in list(variables["params"])[:-1]}}
            gates = open_gates(features.apply(own if dependent else features.init(keys[0], x), x))
            limit = PathKernel(layers, get="ntk", weight_variances=variance)(x, gates)
            found = tangent_kernel(
                lambda p, inputs: value.apply({"params": p}, *inputs), variables["params"], (x, gates)
            )
            return jnp.linalg.norm(found - limit) / jnp.linalg.norm(limit)

        found = jax.lax.map(jax.jit(error), jax.random.split(KEYS[2], draws))
        errors.append(float(found.mean()))
    return np.array(errors)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [3, 5])
def test_the_error_falls_with_the_root_of_the_width(depth):
    """NPF, Thm 5.1: the NTK of independent value weights tends to the kernel of the given gates."""
    widths = [32, 64, 128, 256]
    errors = relative_errors(depth, widths)
    slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35
    assert errors[-1] < 0.3


def test_gates_of_the_same_weights_do_not_converge():
    """The negative control: a ReLU network's own NTK is another kernel, at every width."""
    errors = relative_errors(3, [64, 256], dependent=True)
    assert (errors > 0.4).all()


@pytest.mark.slow
def test_a_padded_gating_network_tends_to_its_own_kernel():
    """NPF, App. C: each gate of a given network repeated m times, value width m w."""
    x = jax.random.normal(KEYS[0], (6, 5))
    narrow = fc(16, 3, classes=1)
    features = GatingNetwork(narrow, gating="relu")
    gates = open_gates(features.apply(features.init(KEYS[1], x), x))
    assert [g.shape for g in gates] == [(6, *s) for s in gate_shapes(narrow, (5,))]
    limit = PathKernel(narrow, get="ntk", weight_variances=2 / 16)(x, gates)
    errors = []
    for m in (1, 4, 16):
        layers, variance = fc(16 * m, 3, classes=1), 2 / (16 * m)
        padded = tuple(jnp.repeat(g, m, axis=1) for g in gates)
        np.testing.assert_allclose(
            PathKernel(layers, get="ntk", weight_variances=variance)(x, padded), limit, rtol=1e-4, atol=1e-4
        )
        value = Network(layers, weights="rademacher", variance=variance)

        def error(key, value=value, padded=padded):
            params = value.init(key, x)["params"]
            found = tangent_kernel(lambda p, inputs: value.apply({"params": p}, *inputs), params, (x, padded))
            return jnp.linalg.norm(found - limit) / jnp.linalg.norm(limit)

        errors.append(float(jax.lax.map(jax.jit(error), jax.random.split(KEYS[2], 6)).mean()))
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2]
