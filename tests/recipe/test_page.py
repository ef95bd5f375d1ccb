from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np

from jaxinterp.explain.explainable import explainable
from jaxinterp.figures.html import Page, render
from jaxinterp.figures.maps import color_weights
from jaxinterp.recipe import page
from jaxinterp.recipe.family import Report

rng = np.random.default_rng(0)
W = rng.normal(size=(2, 4, 4, 6)).astype(np.float32)


class OfTwoClasses(Report):
    """What a report of a linear classifier of encoded color images has of a run."""

    explainable = explainable(
        lambda w, e: jnp.einsum("nhwc,khwc->nk", e, w), W, encoding=lambda w, x: jnp.concatenate([x, 1 - x], -1)
    )
    run = SimpleNamespace(data=SimpleNamespace(image_shape=(4, 4, 3)))
    classes = ("cross", "circle")
    images = rng.uniform(size=(3, 4, 4, 3)).astype(np.float32)
    labels = np.array([0, 1, 1])
    logits = np.asarray(explainable.logits(images))

    def __init__(self):
        pass


def test_weights_of_encoded_images_are_drawn_in_color_beside_each_image():
    report = OfTwoClasses()
    (section,) = page._colors(report)
    assert "data:image/png" in render(Page("t", "", "", sections=[section]))
    (table,) = section.pictures
    for i, (image, weights) in enumerate(table.rows):
        np.testing.assert_array_equal(image.image, report.images[i])
        own, encoded = W[report.logits[i].argmax()], np.concatenate([image.image, 1 - image.image], -1)
        drawn = color_weights(own, (own * encoded).sum(-1))
        np.testing.assert_allclose(weights.image, drawn[..., :3] * drawn[..., 3:] + 1 - drawn[..., 3:], atol=1e-5)
