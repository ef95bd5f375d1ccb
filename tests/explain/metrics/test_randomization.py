import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy, spearmanr

from jaxinterp.explain.attribute import gradient, input_x_gradient
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.metrics import efficient_randomization, parameter_randomization, random_logit
from jaxinterp.explain.metrics.randomization import groups
from jaxinterp.explain.program import first_reads

LABELS = np.array([0, 1, 2, 0])


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="zeta")(x)  # a name that is not in the order of the calls
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


@pytest.fixture(scope="module")
def given():
    module, x = Net(), jax.random.uniform(jax.random.key(1), (4, 8, 8, 2))
    return explainable(module, module.init(jax.random.key(0), x)), x


def inputs(net, x, targets, **keywords):
    """A method that does not look at the network, as an edge detector."""
    return Attribution(x[:, None], jnp.zeros((len(x), 1)), jnp.asarray(targets)[:, None])


def test_layers_are_grouped_and_taken_in_the_order_of_their_calls(given):
    net, x = given
    assert list(groups(net.variables, first_reads(net.program("logits", x)))) == ["zeta", "norm", "head"]
    found = parameter_randomization(net, gradient, x, LABELS)
    assert found.layers == ("head", "norm", "zeta")
    assert parameter_randomization(net, gradient, x, LABELS, order="bottom_up").layers == ("zeta", "norm", "head")
    assert found.similarities.shape == (4, 3)
    np.testing.assert_allclose(found.scores, found.similarities.mean(1), rtol=1e-6)
    assert (found.scores < 0.6).all()


class Tokens(nn.Module):
    """A parameter that is no layer, and a layer that is called twice."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, name="stem")(x.reshape(len(x), -1))
        x = x + self.param("token", nn.initializers.normal(), (8,))[None]
        again = nn.Dense(8, name="again")
        return nn.Dense(3, name="head")(again(nn.relu(again(nn.Dense(8, name="block")(x)))))


def test_parameters_of_their_own_and_layers_called_twice_keep_the_order(given):
    module, x = Tokens(), given[1]
    variables = module.init(jax.random.key(0), x)

    def cast_first(variables, x):
        return module.apply(jax.tree.map(lambda leaf: leaf.astype(x.dtype) * 1, variables), x)

    for network in (module, cast_first, jax.jit(module.apply)):
        net = explainable(network, variables)
        found = list(groups(variables, first_reads(net.program("logits", x))))
        assert found == ["stem", "token", "block", "again", "head"]

    with pytest.warns(UserWarning, match="^net: the order in which it reads a, b is not known"):
        assert list(groups({"a": x, "b": x, "c": x}, [7, 7, 2])) == ["c", "a", "b"]


def test_a_map_that_ignores_the_network_stays(given):
    net, x = given
    for similarity in ("spearman", "pearson", "cosine", "ssim"):
        found = parameter_randomization(net, inputs, x, LABELS, similarity=similarity, smooth=2)
        np.testing.assert_allclose(found.scores, 1, rtol=1e-4)
    np.testing.assert_allclose(random_logit(net, inputs, x, LABELS).scores, 1, rtol=1e-5)
    np.testing.assert_allclose(efficient_randomization(net, inputs, x, LABELS).scores, 0, atol=1e-6)


def test_parts_within_the_budget_change_nothing(given):
    net, x = given
    seen = set()

    def method(net, x, targets):
        seen.add(len(x))
        return input_x_gradient(net, x, targets)

    for metric, keywords in (
        (parameter_randomization, {"smooth": 2}),
        (efficient_randomization, {}),
        (random_logit, {}),
    ):
        whole = metric(net, method, x, LABELS, **keywords).scores
        parts = metric(net, method, x, LABELS, max_bytes=1, **keywords).scores
        np.testing.assert_allclose(parts, whole, rtol=1e-4)
    assert seen == {1, 4}


def test_cascading_or_each_alone(given):
    net, x = given
    together, alone = (parameter_randomization(net, gradient, x, LABELS, cascading=c) for c in (True, False))
    np.testing.assert_allclose(alone.similarities[:, 0], together.similarities[:, 0], rtol=1e-5)
    np.testing.assert_allclose(alone.similarities[:, 1], 1, rtol=1e-4)  # BatchNorm's scales are all 1, and stay
    np.testing.assert_allclose(together.similarities[:, 1], together.similarities[:, 0], rtol=1e-4)
    other = parameter_randomization(net, gradient, x, LABELS, key=jax.random.key(1))
    assert (other.scores != together.scores).any()


def test_another_class_and_the_entropy_of_a_histogram():
    """On a linear network with as many classes as two, the other class is known."""
    weights = jax.random.normal(jax.random.key(0), (6, 2))
    net, x = explainable(lambda w, x: x @ w, weights), jax.random.normal(jax.random.key(1), (3, 6))
    labels = np.array([0, 1, 0])
    parts = np.asarray(x)[:, :, None] * np.asarray(weights)
    want = [spearmanr(part[:, k], part[:, 1 - k])[0] for part, k in zip(parts, labels, strict=True)]
    np.testing.assert_allclose(random_logit(net, input_x_gradient, x, labels).scores, want, rtol=1e-5)
    found = efficient_randomization(net, input_x_gradient, x, labels, key=jax.random.key(2))
    turned = jax.random.permutation(jax.random.fold_in(jax.random.key(2), 0), weights.ravel()).reshape(6, 2)

    def of(values):
        return entropy(np.histogram(values, 100)[0])

    own = [of(np.asarray(x)[i] * np.asarray(weights)[:, k]) for i, k in enumerate(labels)]
    random = [of(np.asarray(x)[i] * np.asarray(turned)[:, k]) for i, k in enumerate(labels)]
    np.testing.assert_allclose(found.scores, np.divide(np.subtract(random, own), own), rtol=1e-4, atol=1e-6)


def test_the_second_call_compiles_nothing_and_bad_input_is_a_line(given, compilations):
    net, x = given
    metrics = (parameter_randomization, efficient_randomization, random_logit)
    for metric in metrics:
        metric(net, gradient, x, LABELS)
    other, half = explainable(Net(), jax.tree.map(lambda leaf: 2 * leaf, net.variables)), x / 2
    for metric in metrics:
        with compilations() as second:
            metric(other, gradient, half, LABELS)
        assert second == []
        for field, arguments in [
            ("labels", {"labels": LABELS[:2]}),
            ("method", {"method": gradient(net, x, LABELS)}),
            ("x", {"x": jnp.ones((4, 8, 8, 2), jnp.int32)}),
        ]:
            with pytest.raises(ValueError, match=rf"\A{field}: got [^\n]*\Z"):
                metric(net, **{"method": gradient, "x": x, "labels": LABELS} | arguments)
    with pytest.raises(ValueError, match=r"^net: got no floating variables"):
        parameter_randomization(lambda x: x.mean((1, 2)), gradient, x, 0 * LABELS)
    with pytest.raises(ValueError, match=r"^similarity: got 'ssim' of maps"):
        random_logit(lambda x: x, input_x_gradient, jnp.eye(4), LABELS, similarity="ssim")
    with pytest.warns(UserWarning, match="constant map"):
        random_logit(lambda x: x.mean((1, 2)), gradient, x, 0 * LABELS)
