"""The result: a few lines, a picture, maps of any size, and a residual relative to the logits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.explain.attribution import Attribution
from jaxinterp.explain.decompose import decompose
from jaxinterp.explain.explainable import explainable
from jaxinterp.figures.explorer import Explorable
from jaxinterp.figures.packing import Chunks

X = jax.random.uniform(jax.random.key(0), (5, 4, 6, 2))
W = jax.random.normal(jax.random.key(1), (4, 6, 2, 3))


@pytest.fixture(scope="module")
def parts():
    return decompose(explainable(lambda w, x: jax.nn.relu(jnp.einsum("bhwc,hwck->bk", x, w)), W), X)


def test_it_is_shown_in_a_few_lines(parts, monkeypatch):
    text = repr(parts)
    assert len(text) < 600
    assert len(text.splitlines()) <= 7
    assert "decompose of 5 examples, 3 targets" in text
    assert f"{float(parts.logits.max()):.4g}" in text
    assert "curvature 0.0e+00" in text
    assert len(parts) == 5
    bare = Attribution(parts.contributions, parts.logits, parts.targets)
    assert "residual" not in repr(bare)
    shown = []
    jax.jit(lambda p: (shown.append(repr(p)), p.logits)[1])(parts)
    assert len(shown[0]) < 600
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    assert len(repr(jax.tree.map(lambda a: a.shape, parts))) < 600


def test_a_notebook_shows_maps(parts):
    html = parts._repr_html_()
    assert html.startswith("<pre>")
    assert "<iframe srcdoc=" in html
    flat = replace(parts, contributions=parts.contributions.reshape(5, 3, -1))
    assert "<iframe" not in flat._repr_html_()
    assert "<iframe" not in replace(parts, bias=parts.bias.at[0, 0].set(jnp.nan))._repr_html_()


def test_the_page_has_each_logit_at_its_class(parts, monkeypatch):
    shown = []
    monkeypatch.setattr(Explorable, "_repr_html_", lambda content: shown.append(content) or "")
    parts._repr_html_()
    order = jnp.array([[2, 0, 1]] * 5)
    turned = replace(
        parts, logits=parts.logits[:, order[0]], targets=order, contributions=parts.contributions[:, order[0]]
    )
    for content in (*shown, turned.explore()):
        np.testing.assert_allclose(content.logits, parts.logits)
        sums = np.take_along_axis(content.logits, content.maps[0].targets, 1)
        np.testing.assert_allclose(content.maps[0].values.sum((2, 3)), sums, rtol=1e-4, atol=1e-5)


def test_a_page_says_what_is_read_only_where_all_outputs_are_known(parts):
    labels = np.array([0, 1, 2, -1, 0])
    one = Attribution(parts.contributions[:, :1], parts.logits[:, :1], parts.targets[:, :1])
    content = one.explore(labels=labels)
    assert content.classes == ["class 0", "class 1", "class 2"]
    assert np.isnan(content.logits[:, 1:]).all()
    assert not content.packed(Chunks())["complete"]
    assert not one.explore().packed(Chunks())["complete"]
    assert parts.explore(classes=["a", "b", "c"]).packed(Chunks())["complete"]
    with pytest.raises(ConfigError, match=r"^labels:"):
        one.explore(classes=["a", "b"], labels=labels)


def test_it_is_drawn_with_and_without_images(parts):
    images = np.ones((5, 8, 12, 3), np.float32)
    for figure, extra in ((parts.plot(), 0), (parts.plot(images, ["cat", "dog", "owl"]), 5)):
        titles = [ax.get_title() for ax in figure.axes]
        assert len(figure.axes) >= 15 + extra
        assert any(f"{float(parts.logits[0, 0]):.3g}" in title for title in titles)
    assert any("owl" in title for title in titles)
    for field, wrong in (
        ("classes", {"classes": ["cat", "dog"]}),
        ("classes", {"classes": "cats"}),
        ("images", {"images": images[:3]}),
        ("images", {"images": images[..., :2]}),
    ):
        with pytest.raises(ValueError, match=rf"\A{field}: got "):
            parts.plot(**wrong)


def test_maps_sum_over_channels_and_are_enlarged(parts):
    np.testing.assert_allclose(parts.maps(), parts.contributions.sum(-1), rtol=1e-6)
    large = parts.maps((8, 12))
    np.testing.assert_array_equal(large, parts.maps().repeat(2, 2).repeat(2, 3))
    with pytest.raises(ValueError, match=r"\Acontributions: got "):
        replace(parts, contributions=parts.contributions[..., 0]).maps()


def test_the_residual_is_relative_to_the_largest_logit_or_bias_of_the_example(parts):
    by_hand = Attribution(
        jnp.zeros((2, 2, 1)),
        jnp.array([[4.0, -1.0], [0.0, 0.0]]),
        jnp.array([[0, 1]] * 2),
        jnp.array([[1.0, -8.0], [0.0, 0.0]]),
        jnp.array([[2.0, -4.0], [0.0, 3.0]]),
    )
    assert by_hand.relative_residual.tolist() == [[0.25, 0.5], [0.0, 3.0]]
    assert replace(by_hand, residual=None).relative_residual is None
    assert float(parts.relative_residual.max()) < 1e-5


def test_it_is_a_pytree_whose_names_are_kept(parts):
    twice = jax.tree.map(lambda a: 2 * a, parts)
    assert (twice.method, twice.layer) == ("decompose", "input")
    np.testing.assert_array_equal(twice.bias, 2 * parts.bias)
    assert len(jax.tree.leaves(replace(parts, weights=None))) == len(jax.tree.leaves(parts)) - 1
