import importlib
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import spearmanr

import jaxinterp
from jaxinterp.explain.attribute import gradient, input_x_gradient
from jaxinterp.explain.attribute.segments import squares
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.audit import DISTANCES, Metric, audit
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.methods import catalogue
from jaxinterp.explain.metrics import Scores, sparseness
from jaxinterp.explain.propagation import NotPolynomialError

FEW = ("gradient", "input_x_gradient", "integrated_gradients", "occlusion", "grad_cam")


def features(v, x):
    return jax.nn.relu(jnp.einsum("bhwc,cj->bhwj", x, v["features"]))


def head(v, maps):
    return maps.mean((1, 2)) @ v["head"]


@pytest.fixture(scope="module")
def given():
    """A ReLU network without biases, and images of 7×7 pixels."""
    keys = jax.random.split(jax.random.key(0), 3)
    variables = {"features": jax.random.normal(keys[0], (3, 8)), "head": jax.random.normal(keys[1], (8, 4))}
    x = jax.random.uniform(keys[2], (4, 7, 7, 3))
    return explainable({"features": features, "head": head}, variables, pooled="features"), x


@pytest.fixture(scope="module")
def found(given):
    return jaxinterp.audit(*given, methods=FEW)


def test_on_a_relu_network_without_biases_two_methods_are_the_truth(given, found):
    net, x = given
    assert found.truth == "the network's exact decomposition at 'input'"
    assert set(found.methods) == set(FEW) == set(found.distances)
    np.testing.assert_array_equal(found.labels, np.asarray(net.logits(x)).argmax(1))
    for name in ("input_x_gradient", "integrated_gradients"):
        for distance, value in zip(DISTANCES, (1, 1, 1, 0), strict=True):
            np.testing.assert_allclose(found.distances[name][distance], value, atol=1e-3)
        assert (found.gaps[name] < 1e-4).all()
    assert found.methods[0] != "gradient"
    assert (found.distances["gradient"]["cosine"] < 0.99).all()


def test_distances_are_those_of_numpy(given, found):
    net, x = given
    own = np.asarray(gradient(net, x, found.labels).maps()[:, 0], float).reshape(4, -1)
    true = np.asarray(decompose(net, x, found.labels).maps()[:, 0], float).reshape(4, -1)
    want = {
        "cosine": (own * true).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(true, axis=1),
        "rank_correlation": [spearmanr(*pair)[0] for pair in zip(own, true, strict=True)],
        "sign_agreement": (np.sign(own) == np.sign(true)).mean(1),
        "misplaced": 0.5 * abs(own / abs(own).sum(1, keepdims=True) - true / abs(true).sum(1, keepdims=True)).sum(1),
    }
    for name, values in want.items():
        np.testing.assert_allclose(found.distances["gradient"][name], values, rtol=1e-3, err_msg=name)


def test_groups_are_squares_that_a_thousand_coalitions_tell_apart():
    """On a linear network of 784 pixels the squares' sums are exact."""
    w, x = jax.random.normal(jax.random.key(0), (28 * 28, 2)), jnp.ones((2, 28, 28, 1))
    net = explainable(lambda w, x: x.reshape(len(x), -1) @ w, w)
    groups = squares((28, 28), 8).ravel()
    want = (np.bincount(groups, w[:, 1]) / np.bincount(groups))[groups].reshape(28, 28)
    for name in ("kernel_shap", "feature_ablation"):
        found = catalogue(net)[name](net, x, 1).maps()
        np.testing.assert_allclose(found[0, 0], want, atol=1e-3, err_msg=name)


def test_a_method_that_fails_is_skipped_with_its_reason(given, monkeypatch):
    net, x = given

    def fails(error, net, x, targets, max_bytes):
        raise error

    errors = {
        "mine": (NotImplementedError("no such type"), "NotImplementedError: no such type"),
        "other": (NotPolynomialError("order: got 3\nmore"), "NotPolynomialError: order: got 3"),
    }
    methods = {name: partial(fails, error) for name, (error, _) in errors.items()}
    monkeypatch.setattr(
        importlib.import_module("jaxinterp.explain.audit"), "catalogue", lambda net: {"gradient": gradient} | methods
    )
    lines: list[str] = []
    found = audit(net, x, metrics={}, log=lines.append)
    assert found.methods == ("gradient",)
    assert lines[0] == "3 methods and 0 metrics on 4 examples"
    assert [line.split(", ")[0] for line in lines[1:]] == ["1 of 3: gradient", "2 of 3: mine", "3 of 3: other"]
    assert lines[2].endswith("NotImplementedError: no such type")
    assert found.skipped == {name: line for name, (_, line) in errors.items()}
    with pytest.raises(NotImplementedError):
        audit(net, x, methods=["mine"], metrics={})


@pytest.mark.slow
def test_all_methods_of_the_catalogue_are_audited(given):
    found = audit(*given)
    assert set(found.skipped) == {"attention_rollout", "gradient_rollout"}
    assert set(found.methods) == set(catalogue(given[0])) - set(found.skipped) == set(found.distances)
    for name in ("lrp_epsilon", "deep_lift"):  # without biases both are the decomposition
        np.testing.assert_allclose(found.distances[name]["cosine"], 1, atol=1e-3)


def moved(net, x, targets, part):
    """The truth with noise: the more, the farther from it."""
    parts = decompose(net, x, targets)
    noise = jax.random.normal(jax.random.key(1), parts.contributions.shape)
    mixed = (1 - part) * parts.contributions + part * noise * jnp.abs(parts.contributions).mean()
    return Attribution(mixed, parts.logits, parts.targets)


def test_a_metric_agrees_with_the_truth_where_it_ranks_methods_alike(given):
    net, x = given
    methods = {str(part): partial(moved, part=part) for part in (0.0, 0.2, 0.5, 0.9)}

    def closeness(net, parts, x, labels, sign=1.0):
        true = decompose(net, x, labels).contributions
        apart = jnp.linalg.norm((parts.contributions - true).reshape(len(x), -1), axis=1)
        return Scores(-sign * np.asarray(apart), np.ones(len(x), bool))

    metrics = {
        "alike": Metric(closeness, "high", False),
        "opposite": Metric(partial(closeness, sign=-1.0), "high", False),
        "low is good": Metric(partial(closeness, sign=-1.0), "low", False),
        "says nothing": lambda net, method, x, labels: Scores(np.full(len(x), np.nan), np.zeros(len(x), bool)),
    }
    result = audit(net, x, methods=methods, metrics=metrics)
    assert result.methods == tuple(methods)
    for name, value in {"alike": 1, "opposite": -1, "low is good": 1}.items():
        assert result.agreement[name] == pytest.approx(dict.fromkeys(DISTANCES, value))
    assert np.isnan(result.agreement["says nothing"]["cosine"])
    assert json.loads(result.to_json())["agreement"]["says nothing"]["cosine"] is None


def test_an_audit_is_a_table_json_and_a_picture(found):
    text = repr(found)
    assert text.startswith("4 examples, compared with the network's exact decomposition at 'input'\nmethod ")
    assert "ranks methods as the truth" in text
    content = json.loads(found.to_json())
    assert content["examples"] == 4
    assert list(content["methods"]) == list(found.methods)
    row = content["methods"]["gradient"]
    assert row["distances"]["cosine"]["mean"] == pytest.approx(found.distances["gradient"]["cosine"].mean())
    assert set(row["metrics"]) == set(content["best"]) == set(found.scores["gradient"])
    assert row["metrics"]["deletion"]["n"] == 4
    assert row["seconds"] > 0
    shown = found._repr_html_()
    assert "<table>" in shown
    assert "data:image/png" in shown
    assert len(found.plot(images=2).axes) == 2 * (2 + len(found.methods)) + 1


def test_without_metrics_no_row_says_how_they_rank(given, capsys):
    found = audit(*given, methods=["gradient"], metrics={})
    assert [row[0] for row in found.table().rows] == ["gradient"]
    assert capsys.readouterr().out == ""


def test_a_network_without_an_exact_answer_says_so(monkeypatch):
    """Nothing is compared; what needs images is listed."""
    net = explainable(lambda x: jax.nn.gelu(x @ jnp.array([[1.0, -1.0], [2.0, 0.5], [0.3, 1.0]])))
    x = jax.random.normal(jax.random.key(0), (5, 3))
    few = {name: catalogue(net)[name] for name in ("gradient", "occlusion", "rise")}
    monkeypatch.setattr(importlib.import_module("jaxinterp.explain.audit"), "catalogue", lambda net: few)
    result = audit(net, x, metrics={"sparseness": sparseness})
    assert result.truth is None
    assert "1 gelu" in result.without
    assert result.distances == {}
    assert result.agreement == {}
    assert set(result.skipped) >= {"occlusion", "rise"}
    held = audit(net, x, methods=["gradient"], truth=decompose, metrics={})
    assert held.distances["gradient"].keys() == set(DISTANCES)
    assert "there is no exact answer to compare with" in repr(result)
    assert "cosine" not in repr(result)
    assert "distances" not in json.loads(result.to_json())["methods"]["gradient"]
    assert "<img" not in result._repr_html_()


def test_spaces_differ_and_a_truth_may_be_given(given):
    """Encoded channels and pixels are compared as maps of pixels."""
    net, x = given
    encoded = explainable(
        lambda v, z: head(v, features(v, z[..., :3] - z[..., 3:])),
        net.variables,
        encoding=lambda v, x: jnp.concatenate([x, 1 - x], -1),
    )
    labels = np.array([0, 1, 2, 3])
    result = audit(encoded, x, labels, methods={"encoded": partial(input_x_gradient, layer="input")}, metrics={})
    np.testing.assert_allclose(result.distances["encoded"]["cosine"], 1, rtol=1e-4)
    by_hand = audit(net, x, labels, methods=["gradient"], metrics={}, truth=gradient(net, x, labels))
    assert by_hand.truth == "the truth given (gradient)"
    np.testing.assert_allclose(by_hand.distances["gradient"]["cosine"], 1, rtol=1e-5)


def test_bad_input_is_one_clear_line(given):
    net, x = given
    for field, arguments in [
        ("labels", {"labels": [0, 1]}),
        ("labels", {"labels": [0, 1, 2, 4]}),
        ("methods", {"methods": ["gradiant"]}),
        ("methods", {"methods": {}}),
        ("methods", {"methods": "gradient"}),
        ("method", {"methods": {"mine": lambda net, x, targets: x}}),
        ("method", {"truth": decompose(net, x)}),
    ]:
        with pytest.raises(ValueError, match=rf"\A{field}: got [^\n]*\Z"):
            audit(net, x, **{"metrics": {}} | arguments)
