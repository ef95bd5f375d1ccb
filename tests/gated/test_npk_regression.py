"""Regression with the path kernel of a network: network to kernel, memory and tiles, the scikit-learn contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

from jaxinterp.errors import ConfigError
from jaxinterp.gated import GatedNetwork, Network, NPKRegressor, PathNetwork, fc, npk_regression
from jaxinterp.gated.architecture import BatchNorm, Conv, Dense, Gate, GlobalAvgPool
from jaxinterp.gated.kernels import kernel_ridge, one_hot
from jaxinterp.gated.npk_regression import evaluate

NORMED = (Conv(3), BatchNorm(), Gate(), GlobalAvgPool(), Dense(2))


def moved(network, x):
    """Variables without zeros."""
    return jax.tree.map(lambda leaf: leaf + 0.1, network.init(jax.random.key(1), x))


@pytest.fixture(scope="module")
def blobs():
    """A network, and 60 training and 20 test points of three blobs in five dimensions."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 80)
    x = (rng.normal(size=(3, 5))[labels] + 0.3 * rng.normal(size=(80, 5))).astype(np.float32)
    dgn = GatedNetwork(fc(16, 2, 3), gating="relu", hard=True)
    network = PathNetwork.of(dgn, dgn.init(jax.random.key(0), jnp.asarray(x)))
    return network, (x[:60], labels[:60]), (x[60:], labels[60:])


@pytest.mark.parametrize(
    ("network", "kind"),
    [
        (Network(fc(4, 2, classes=3, bias=True, flatten=True)), bool),
        (Network(NORMED), bool),
        (GatedNetwork(NORMED, gating="relu", hard=True, value_input="ones"), bool),
        (GatedNetwork(fc(4, 2, classes=3, flatten=True), sharpness=2.0), jnp.float32),
    ],
)
def test_gates_of_a_network_give_back_its_logits(network, kind):
    images = jax.random.uniform(jax.random.key(0), (3, 4, 4, 2))
    variables = moved(network, images / 2)
    paths = PathNetwork.of(network, variables, lambda x: x / 2)
    inputs, gates = paths.read(np.asarray(images), batch_size=2)
    assert {gate.dtype for gate in gates} == {jnp.dtype(kind)}
    assert paths.kernel.exact is (kind is bool)
    gated = isinstance(network, GatedNetwork)
    values = {kind: parts["value_network"] for kind, parts in variables.items()} if gated else variables
    x = jnp.ones_like(inputs) if paths.kernel.value_input == "ones" else jnp.asarray(inputs)
    logits = Network(paths.kernel.layers).apply(values, x, tuple(map(jnp.asarray, gates)))
    np.testing.assert_allclose(logits, network.apply(variables, images / 2), rtol=1e-5, atol=1e-6)


def test_norms_are_the_affine_maps_of_evaluation():
    network, z = Network(NORMED), 0.7
    variables = moved(network, jnp.ones((1, 4, 4, 2)))
    (norm,) = PathNetwork.of(network, variables).kernel.norms
    params, seen = variables["params"]["norm_0"], variables["batch_stats"]["norm_0"]
    want = (z - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * params["scale"] + params["bias"]
    np.testing.assert_allclose(z * norm.scale + norm.shift, want, rtol=1e-5)


def test_the_regression_is_ridge_regression_with_the_kernel(blobs):
    network, (x, y), (new, labels) = blobs
    regressor = NPKRegressor(network).fit(x, y)
    gates = [network.gates(part) for part in (x, new)]
    solved = kernel_ridge(np.asarray(network.kernel(x, gates[0])), one_hot(y, 3))
    want = solved.predict(np.asarray(network.kernel(new, gates[1], x, gates[0])))
    np.testing.assert_allclose(regressor.decision_function(new), want, rtol=1e-5, atol=1e-5)
    shares = regressor.shares(new)
    assert shares.shape == (20, 60, 3)
    np.testing.assert_allclose(shares.sum(1) + regressor.solution_.offset, regressor.decision_function(new), atol=1e-9)
    assert regressor.score(new, labels) > 0.8


def test_it_is_an_estimator_of_scikit_learn(blobs):
    network, (x, y), (new, _) = blobs
    names = np.array(["ant", "bee", "cat"])
    regressor = NPKRegressor(network, ridges=(1e-2,)).fit(x, names[y])
    again = clone(regressor).fit(x, names[y])
    assert again.network is network
    assert again.classes_.tolist() == names.tolist()
    np.testing.assert_array_equal(again.predict(new), regressor.predict(new))
    assert cross_val_score(NPKRegressor(network), x, y, cv=2).mean() > 0.8
    more = NPKRegressor(network, classes=4).fit(x, y)
    assert more.decision_function(new).shape == (20, 4)
    assert more.predict(new).max() < 3


def test_a_kernel_in_tiles_decides_as_one_in_memory(blobs, tmp_path, monkeypatch):
    network, train, (new, labels) = blobs
    shown, lines = np.array([0, 3]), []
    memory = evaluate(NPKRegressor(network).fit(*train), new, labels, shown)
    for name, value in {"MAX_TILE_SIZE": 16, "RIDGE_IMAGES": 60, "LANDMARKS": 20, "TOLERANCE": 1e-9}.items():
        monkeypatch.setattr(npk_regression, name, value)
    tiled = NPKRegressor(network, max_bytes=1, folder=tmp_path, log=lines.append)
    tiles = evaluate(tiled.fit(*train), new, labels, shown)
    for name in ("npk_test_accuracy", "npk_ridge", "npk_images", "npk_test_images"):
        assert memory["metrics"][name] == tiles["metrics"][name]
    assert memory["metrics"]["npk_test_accuracy"] > 0.8
    assert memory["overlap"] == tiles["overlap"]
    for one, other in zip(memory["deciding"], tiles["deciding"], strict=True):
        assert one["prediction"] == pytest.approx(other["prediction"], abs=1e-3)
        assert [i for i, _ in one["for"]] == [i for i, _ in other["for"]]
        assert one["offset"] + one["sum"] == pytest.approx(one["prediction"], abs=1e-6)
    assert lines[0].startswith("10 tiles")
    clone(tiled).fit(*train)
    assert any(line.startswith("0 tiles") for line in lines)
    with pytest.raises(ConfigError, match="folder"):
        clone(tiled).fit(train[0] + 1, train[1])


@pytest.mark.parametrize(
    ("name", "options", "labels"),
    [
        ("folder", {"max_bytes": 1}, np.zeros(60, int)),
        ("y", {}, np.zeros(59, int)),
        ("y", {"classes": 2}, np.full(60, 2)),
        ("ridges", {"ridges": (0.0,)}, np.zeros(60, int)),
    ],
)
def test_arguments_that_cannot_be_fitted_raise(blobs, name, options, labels):
    network, (x, _), _ = blobs
    with pytest.raises(ConfigError, match=f"^{name}: "):
        NPKRegressor(network, **options).fit(x, labels)
