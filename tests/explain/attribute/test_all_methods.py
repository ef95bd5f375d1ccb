"""What every post-hoc method promises; the methods' own tests are in the files beside this one."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.explain import attribute as posthoc
from jaxinterp.explain.attribute import (
    deconvolution,
    deep_lift,
    deep_lift_shap,
    excitation_backprop,
    grad_cam,
    gradient,
    guided_backpropagation,
    input_x_gradient,
    integrated_gradients,
    lrp,
    occlusion,
)
from jaxinterp.explain.attribute.segments import squares
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.explainable import explainable


def features(v, x):
    return jax.lax.conv_general_dilated(x, v["conv"], (2, 2), ((1, 1),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def head(v, maps):
    return jnp.tanh(maps).mean((1, 2)) @ v["dense"]


class Row(NamedTuple):
    """A method as it is called here, and what its result says of itself."""

    call: Callable
    layer: str = "input"
    complete: bool = False
    name: str | None = None


def cam(method, **options):
    return Row(partial(method, layer="features", **options), layer="features")


def around_zero(net, x, targets=None, **options):
    """Expected gradients with baselines of the width that the images have."""
    baselines = np.stack([np.zeros(x.shape[1:], x.dtype), np.full(x.shape[1:], 0.5, x.dtype)])
    return posthoc.expected_gradients(net, x, targets, baselines=baselines, samples=3, **options)


def around_half(net, x, *args, **options):
    return deep_lift_shap(net, x, *args, baselines=0 * x[:1] + 0.5, **options)


def quartered(method, **options):
    """Return a method on four groups of pixels, of images of any size, or of the features' 3×3 positions."""

    def call(net, x, targets=None, *, layer=None, **others):
        mask = squares((3, 3) if layer else x.shape[1:3], 2)
        return method(net, x, targets, layer=layer, mask=mask, **options, **others)

    return call


METHODS = {
    "gradient": Row(gradient),
    "saliency": Row(posthoc.saliency),
    "input_x_gradient": Row(input_x_gradient),
    "integrated_gradients": Row(partial(integrated_gradients, steps=3), complete=True),
    "blur_integrated_gradients": Row(partial(posthoc.blur_integrated_gradients, steps=3), complete=True),
    "expected_gradients": Row(around_zero, complete=True),
    "noise_tunnel": Row(partial(posthoc.noise_tunnel, samples=3), name="smoothgrad of gradient"),
    "smooth_grad": Row(partial(posthoc.smooth_grad, samples=3)),
    "smooth_grad_squared": Row(partial(posthoc.smooth_grad_squared, samples=3)),
    "vargrad": Row(partial(posthoc.vargrad, samples=3)),
    "occlusion": Row(partial(occlusion, window=3, stride=2)),
    "grad_cam": cam(grad_cam),
    "grad_cam_plus_plus": cam(posthoc.grad_cam_plus_plus),
    "hires_cam": cam(posthoc.hires_cam),
    "layer_cam": cam(posthoc.layer_cam),
    "xgrad_cam": cam(posthoc.xgrad_cam),
    "eigen_cam": cam(posthoc.eigen_cam),
    "score_cam": cam(posthoc.score_cam),
    "ablation_cam": cam(posthoc.ablation_cam),
    "guided_grad_cam": cam(posthoc.guided_grad_cam, guided=gradient),
    "deconvolution": Row(deconvolution),
    "deep_lift": Row(deep_lift, complete=True),
    "deep_lift_shap": Row(around_half, complete=True),
    "excitation_backprop": Row(excitation_backprop),
    "guided_backpropagation": Row(guided_backpropagation),
    "lrp": Row(lrp, complete=True),
    "feature_ablation": Row(quartered(posthoc.feature_ablation)),
    "feature_permutation": Row(quartered(posthoc.feature_permutation)),
    "rise": Row(partial(posthoc.rise, masks=5, cells=3)),
    "lime": Row(partial(posthoc.lime, samples=10, cells=2)),
    "kernel_shap": Row(quartered(posthoc.kernel_shap), complete=True),
    "shapley_sampling": Row(quartered(posthoc.shapley_sampling, samples=2), complete=True),
    "shapley_values": Row(quartered(posthoc.shapley_values), complete=True),
    "meaningful_perturbation": Row(partial(posthoc.meaningful_perturbation, steps=3)),
    "extremal_perturbation": Row(partial(posthoc.extremal_perturbation, steps=1)),  # then rounding orders equal pixels
}
CALLS = {name: row.call for name, row in METHODS.items()}
ALIKE = {  # methods whose programs are those of one that is tested always, but for a formula at their end
    "saliency", "input_x_gradient", "noise_tunnel", "smooth_grad_squared", "vargrad", "grad_cam_plus_plus",
    "hires_cam", "layer_cam", "xgrad_cam", "guided_grad_cam", "deconvolution", "guided_backpropagation",
    "deep_lift_shap", "feature_ablation", "lime", "shapley_sampling",
}  # fmt: skip


def each(names, call=True):
    """Every method, those alike in the slow tests."""
    marks = [() if name not in ALIKE else pytest.mark.slow for name in names]
    values = [CALLS[name] if call else name for name in names]
    return [pytest.param(v, id=name, marks=m) for name, v, m in zip(names, values, marks, strict=True)]


each_method = pytest.mark.parametrize("method", each(METHODS))


def made(variables):
    return explainable({"features": features, "head": head}, variables)


@pytest.fixture
def given():
    keys = jax.random.split(jax.random.key(0), 3)
    variables = {"conv": jax.random.normal(keys[0], (3, 3, 2, 4)), "dense": jax.random.normal(keys[1], (4, 3))}
    return variables, jax.random.uniform(keys[2], (5, 6, 6, 2))


def test_every_public_method_is_listed_and_tested_here():
    attention = {"attention_rollout", "gradient_rollout"}  # of networks of tokens: in a file of their own
    pairs = {"pairs"}  # of another shape than x, too
    training = {"influence_functions", "tracin"}  # of training examples: of another call, in test_training
    assert set(posthoc.__all__) - attention - pairs - training == set(METHODS)
    assert all(callable(getattr(posthoc, name)) for name in posthoc.__all__)


@pytest.mark.parametrize("name", METHODS)
def test_the_result_says_what_it_is(name, given):
    variables, x = given
    row = METHODS[name]
    parts = row.call(made(variables), x)
    assert isinstance(parts, Attribution)
    assert (parts.method, parts.layer) == (row.name or name, row.layer)
    np.testing.assert_allclose(parts.logits, head(variables, features(variables, x)), rtol=1e-4, atol=1e-5)
    assert parts.targets.tolist() == [[0, 1, 2]] * 5
    assert (parts.residual is not None) == (parts.bias is not None) == row.complete
    assert parts.weights is None
    assert parts.maps().shape == (5, 3, 6, 6)


@each_method
def test_no_example_and_no_memory_are_refused(method, given):
    variables, x = given
    for field, change in (
        ("x", {"x": x[:0]}),
        ("x", {"x": x.at[1, 0, 0, 0].set(jnp.nan)}),
        ("max_bytes", {"max_bytes": 0}),
        ("targets", {"targets": 3}),
    ):
        with pytest.raises(ValueError, match=rf"\A{field}: got .*\Z"):
            method(made(variables), **{"x": x, **change})


@each_method
def test_jit_is_eager_and_reads_nothing_back(method, given):
    """Inside jit a value that is copied to the host is an error."""
    variables, x = given
    closed = explainable({"features": partial(features, variables), "head": partial(head, variables)})
    compiled = method(made(variables), x)
    for other in (method(closed, x), jax.jit(lambda x: method(closed, x))(x)):
        np.testing.assert_allclose(other.contributions, compiled.contributions, rtol=1e-4, atol=1e-6)
        assert (other.residual is None) == (compiled.residual is None)


@pytest.mark.parametrize("name", each(METHODS, call=False))
def test_the_second_call_compiles_nothing(name, given, compilations):
    variables, x = given
    method = CALLS[name]
    x = jnp.tile(x, (1, 1, 8, 1))[:, :, : 7 + list(METHODS).index(name)]  # of a width that no other test compiles
    changed = jax.tree.map(lambda p: p * 2, variables), x + 1
    with compilations() as programs:
        method(made(variables), x, max_bytes=1)
    assert programs != []
    with compilations() as programs:
        method(made(changed[0]), changed[1], max_bytes=1)
    assert programs == []


OF_EXAMPLES = [name for name in METHODS if name != "feature_permutation"]  # which is of the whole batch


@pytest.mark.parametrize("name", each(OF_EXAMPLES, call=False))
def test_a_batch_of_another_size_compiles_nothing_where_it_is_padded(name, given, compilations):
    variables, x = given
    method = CALLS[name]
    whole = jnp.concatenate([x, x[:3]]).at[5:].multiply(0.5)
    batches = [whole, *(np.asarray(whole)[:count] for count in (7, 5))]
    found = method(made(variables), batches[0])
    for batch in batches[1:]:
        with compilations() as programs:
            fewer = method(made(variables), batch)
        assert programs == []
        np.testing.assert_array_equal(fewer.contributions, found.contributions[: len(batch)])


@each_method
def test_a_batch_of_targets_is_single_targets(method, given):
    variables, x = given
    everything = method(made(variables), x).contributions
    assert everything.shape[:4] == (5, 3, 6, 6)
    for targets in (2, np.array([0, 1, 2, 0, 1]), np.array([[2, 0]] * 5)):
        rows = np.array(targets).reshape(5 if np.ndim(targets) else 1, -1)
        found = method(made(variables), x, targets).contributions
        np.testing.assert_allclose(found, everything[np.arange(5)[:, None], rows], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", each(OF_EXAMPLES))
def test_examples_are_independent(method, given):
    variables, x = given
    together = method(made(variables), x).contributions
    alone = jnp.concatenate([method(made(variables), x[i : i + 1]).contributions for i in range(5)])
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-6)


@each_method
def test_double_precision_is_kept(method, given):
    with jax.enable_x64(True):
        variables, x = jax.tree.map(lambda p: np.asarray(p, np.float64), given)
        found = method(made(variables), x[:2], 1)
        kinds = {leaf.dtype.name for leaf in jax.tree.leaves(found)}
        assert kinds == {"float64", "int32"}
        np.testing.assert_allclose(found.logits[:, 0], head(variables, features(variables, x))[:2, 1], rtol=1e-12)


OF_IMAGES = {"expected_gradients", "deep_lift_shap"}  # their baselines have the shape of the images
OF_IMAGES |= {"blur_integrated_gradients", "noise_tunnel", "smooth_grad", "smooth_grad_squared", "vargrad"}
AT_LAYERS = [name for name, row in METHODS.items() if row.layer == "input" and name not in OF_IMAGES]


@pytest.mark.parametrize("name", each(AT_LAYERS, call=False))
def test_at_a_layer_they_are_those_of_the_network_above_it(name, given):
    variables, x = given
    method = CALLS[name]
    found = method(made(variables), x, layer="features")
    above = method(explainable(head, variables), features(variables, x))
    assert found.layer == "features"
    if above.bias is None:  # else it starts at the layer's output at the baseline, here of no bias: also 0
        assert found.bias is None
    np.testing.assert_allclose(found.contributions, above.contributions, rtol=1e-4, atol=1e-5)


@each_method
def test_half_precision_is_near_single(method, given):
    """Every method runs in bfloat16, with results of that type near those in float32."""
    variables, x = jax.tree.map(lambda p: p.astype(jnp.bfloat16), given)
    whole = method(made(jax.tree.map(lambda p: p.astype(jnp.float32), variables)), x[:2].astype(jnp.float32), 1)
    found = method(made(variables), x[:2], 1)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"bfloat16", "int32"}
    want = np.asarray(whole.contributions)
    apart = np.linalg.norm(np.asarray(found.contributions, np.float32) - want)
    assert apart < 0.1 * np.linalg.norm(want)


WRONG = [
    ("shapley_sampling", "samples", 2.5),
    ("kernel_shap", "samples", 10.5),
    ("feature_permutation", "samples", 1.5),
    ("blur_integrated_gradients", "steps", 2.5),
    ("blur_integrated_gradients", "max_sigma", "wide"),
    ("blur_integrated_gradients", "max_sigma", np.inf),
    ("expected_gradients", "samples", 2.5),
    ("expected_gradients", "noise", np.ones(2)),
    ("lime", "samples", 2.5),
    ("lime", "width", "wide"),
    ("lime", "penalty", "none"),
    ("rise", "masks", 10.5),
    ("rise", "probability", "half"),
    ("meaningful_perturbation", "steps", 2.5),
    ("meaningful_perturbation", "rate", "fast"),
    ("meaningful_perturbation", "sparsity", "high"),
    ("extremal_perturbation", "area", "half"),
    ("extremal_perturbation", "radius", "wide"),
    *((name, "baseline", "mean") for name in ("feature_ablation", "integrated_gradients", "occlusion", "deep_lift")),
    ("rise", "baseline", [[1.0], [1.0, 2.0]]),
    *((name, "key", 0) for name in ("rise", "lime", "kernel_shap", "shapley_sampling", "feature_permutation")),
    ("expected_gradients", "key", jax.random.split(jax.random.key(0))),
]


@pytest.mark.parametrize(("name", "field", "value"), WRONG)
def test_bad_input_is_one_line(name, field, value, given, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    variables, x = given
    options = {"expected_gradients": {"baselines": x}, "rise": {"cells": 3}}.get(name, {})
    with pytest.raises(ConfigError, match=rf"\A{field}: got [^\n]*\Z"):
        getattr(posthoc, name)(made(variables), x, **options, **{field: value})
