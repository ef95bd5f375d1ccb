"""Regression with the path kernel of a network: network to kernel, memory and tiles, the scikit-learn contract."""

import operator
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import Mesh
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import get_scorer, roc_auc_score
from sklearn.model_selection import cross_val_score

from jaxinterp.errors import ConfigError
from jaxinterp.gated import GatedNetwork, Network, NPKRegressor, PathNetwork, fc, npk_regression
from jaxinterp.gated.architecture import BatchNorm, Conv, Dense, Gate, GlobalAvgPool
from jaxinterp.gated.kernels import kernel_ridge, one_hot
from jaxinterp.gated.npk_regression import evaluate

TWO = np.arange(60) % 2
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
    mesh = Mesh(np.array(jax.devices()), ("images",))
    assert clone(NPKRegressor(network, mesh=mesh)).mesh == mesh
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
    ("message", "options", "labels"),
    [
        ("folder: got None", {"max_bytes": 1}, TWO),
        (r"y: got shape \(59,\), expected \(60,\)", {}, TWO[1:]),
        (r"y: got 2, expected classes in \[0, 2\)", {"classes": 2}, np.arange(60) % 3),
        ("y: got the one class 1, expected at least two", {}, np.ones(60, int)),
        ("y: got the one class 1, expected at least two", {"classes": 3}, np.ones(60, int)),
        ("y: Unknown label type: continuous", {}, np.linspace(0, 1, 60)),
        (r"ridges: got 0\.0", {"ridges": (0.0,)}, TWO),
        (r"ridges: got 0\.1, expected a sequence of positive", {"ridges": 0.1}, TWO),
        ("network: got a Network, expected a PathNetwork", {"network": Network(NORMED)}, TWO),
        ("batch_size: got 0, expected at least 1", {"batch_size": 0}, TWO),
    ],
)
def test_arguments_that_cannot_be_fitted_raise(blobs, message, options, labels, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the types refuse some of them too
    network, (x, _), _ = blobs
    with pytest.raises(ConfigError, match=f"^{message}") as error:
        NPKRegressor(**{"network": network} | options).fit(x, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "got", "again"),
    [
        (lambda x: x[:, :4], r"shape \(60, 4\)", r"shape \(60, 4\), expected \(n, 5\)"),
        (lambda x: x[:, None], "an example of shape", r"shape \(60, 1, 5\), expected \(n, 5\)"),
        (lambda x: x[:, 0], r"float32\(60,\)", r"float32\(60,\), expected a floating array"),
        (lambda x: x[:0], r"float32\(0, 5\)", r"float32\(0, 5\), expected a floating array"),
        (lambda x: x.astype(int), r"int64\(60, 5\)", r"int64\(60, 5\), expected a floating array"),
        (lambda x: x * np.nan, "300 of 300 values NaN", "300 of 300 values NaN"),
        (lambda x: x.tolist(), "a list, expected a floating array", "a list, expected a floating array"),
    ],
)
def test_images_that_do_not_fit_raise(blobs, change, got, again):
    network, (x, y), _ = blobs
    fitted = NPKRegressor(network, ridges=(1e-2,)).fit(x, y)
    for message, call in (
        (got, lambda wrong: NPKRegressor(network).fit(wrong, y)),
        *((again, method) for method in (fitted.predict, fitted.decision_function, fitted.shares)),
    ):
        with pytest.raises(ConfigError, match=f"^(x|Dense): got {message}") as error:
            call(change(x))
        assert "\n" not in str(error.value)


def test_an_unfitted_regressor_says_so(blobs):
    network, (x, _), _ = blobs
    for method in ("predict", "decision_function", "shares"):
        with pytest.raises(NotFittedError):
            getattr(NPKRegressor(network), method)(x)


@pytest.mark.parametrize("names", [None, np.array(["ant", "bee"])])
def test_two_classes_are_decided_by_one_number(blobs, names):
    network, (x, y), (new, labels) = blobs
    y, labels = (part % 2 if names is None else names[part % 2] for part in (y, labels))
    regressor = NPKRegressor(network).fit(x, y)
    outputs = regressor.shares(new).sum(1) + regressor.solution_.offset
    decided = regressor.decision_function(new)
    assert decided.shape == (20,)
    np.testing.assert_allclose(decided, outputs[:, 1] - outputs[:, 0], atol=1e-9)
    np.testing.assert_array_equal(regressor.predict(new), regressor.classes_[(decided > 0).astype(int)])
    assert regressor.score(new, labels) > 0.8
    scorer = get_scorer("roc_auc")
    assert scorer(regressor, new, labels) == pytest.approx(roc_auc_score(labels, decided))
    assert roc_auc_score(labels, decided) > 0.8
    assert cross_val_score(NPKRegressor(network), x, y, cv=2, scoring="roc_auc").mean() > 0.8


def test_a_pickle_decides_as_the_original(blobs):
    network, (x, y), (new, _) = blobs
    images = jax.random.uniform(jax.random.key(0), (6, 4, 4, 2))
    normed = Network(NORMED)
    others = PathNetwork.of(normed, moved(normed, images), encode=partial(operator.mul, 0.5))
    for one, (known, labels), seen in ((network, (x, y), new), (others, (images, np.arange(6) % 2), images)):
        regressor = NPKRegressor(one).fit(known, labels)
        again = pickle.loads(pickle.dumps(regressor))
        np.testing.assert_array_equal(again.decision_function(seen), regressor.decision_function(seen))
        np.testing.assert_array_equal(again.fit(known, labels).predict(seen), regressor.predict(seen))
        assert again.n_features_in_ == known[0].size
