"""What every post-hoc method promises; the methods' own tests are in the files beside this one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.explain import attribute as posthoc
from jaxinterp.explain.attribute import grad_cam, gradient, input_x_gradient, integrated_gradients, occlusion


def features(v, x):
    return jax.lax.conv_general_dilated(x, v["conv"], (2, 2), ((1, 1),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def head(v, maps):
    return jnp.tanh(maps).mean((1, 2)) @ v["dense"]


def net(v, x):
    return head(v, features(v, x))


METHODS = {
    "gradient": (gradient, net),
    "input_x_gradient": (input_x_gradient, net),
    "integrated_gradients": (partial(integrated_gradients, steps=3), net),
    "occlusion": (partial(occlusion, window=3, stride=2), net),
    "grad_cam": (grad_cam, (features, head)),
}
each_method = pytest.mark.parametrize(("method", "apply"), METHODS.values(), ids=METHODS)


@pytest.fixture
def given():
    keys = jax.random.split(jax.random.key(0), 3)
    variables = {"conv": jax.random.normal(keys[0], (3, 3, 2, 4)), "dense": jax.random.normal(keys[1], (4, 3))}
    return variables, jax.random.uniform(keys[2], (5, 6, 6, 2))


def test_every_public_method_is_listed_and_tested_here():
    assert set(posthoc.__all__) == {"Attribution", *METHODS}
    assert all(callable(getattr(posthoc, name)) for name in posthoc.__all__)


@each_method
def test_no_example_and_no_memory_are_refused(method, apply, given):
    variables, x = given
    with pytest.raises(ValueError, match="x: got"):
        method(apply, x[:0], variables=variables)
    with pytest.raises(ValueError, match="max_bytes"):
        method(apply, x, variables=variables, max_bytes=0)


@each_method
def test_jit_is_eager_and_reads_nothing_back(method, apply, given):
    """Inside jit a value that is copied to the host is an error."""
    variables, x = given
    closed = tuple(partial(f, variables) for f in apply) if isinstance(apply, tuple) else partial(apply, variables)
    compiled = method(apply, x, variables=variables)
    for other in (method(closed, x), jax.jit(lambda x: method(closed, x))(x)):
        np.testing.assert_allclose(other.contributions, compiled.contributions, rtol=1e-4, atol=1e-6)
        assert (other.gap is None) == (compiled.gap is None)


@each_method
def test_the_second_call_compiles_nothing(method, apply, given, compilations):
    variables, x = given
    changed = jax.tree.map(lambda p: p * 2, variables), x + 1
    fresh = jax.tree.map(lambda f: lambda *args: f(*args), apply)  # whose programs no other test has compiled
    with compilations() as programs:
        method(fresh, x, variables=variables, max_bytes=1)
    assert programs != []
    with compilations() as programs:
        method(fresh, changed[1], variables=changed[0], max_bytes=1)
    assert programs == []


@each_method
@pytest.mark.parametrize("targets", [2, np.array([0, 1, 2, 0, 1]), np.array([[2, 0]] * 5)], ids=["one", "each", "rows"])
def test_a_batch_of_targets_is_single_targets(method, apply, given, targets):
    variables, x = given
    everything = method(apply, x, variables=variables).contributions
    assert everything.shape[:4] == (5, 3, 6, 6)
    rows = np.array(targets).reshape(5 if np.ndim(targets) else 1, -1)
    found = method(apply, x, targets, variables=variables).contributions
    np.testing.assert_allclose(found, everything[np.arange(5)[:, None], rows], rtol=1e-4, atol=1e-6)


@each_method
def test_examples_are_independent(method, apply, given):
    variables, x = given
    together = method(apply, x, variables=variables).contributions
    alone = jnp.concatenate([method(apply, x[i : i + 1], variables=variables).contributions for i in range(5)])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-6)
