import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from sklearn.linear_model import Lasso, Ridge

from jaxinterp.explain.attribute import lime
from jaxinterp.explain.attribute.lime import _drawn
from jaxinterp.explain.attribute.segments import squares
from jaxinterp.explain.explainable import explainable

WEIGHTS = jax.random.normal(jax.random.key(0), (4 * 4 * 2, 3))
X = jax.random.uniform(jax.random.key(1), (3, 4, 4, 2))
MASK = np.kron([[0, 1], [2, 3]], np.ones((2, 2), int))


def logits(weights, x):
    return jnp.tanh(x.reshape(len(x), -1) @ weights)


NET = explainable(logits, WEIGHTS)


@pytest.mark.parametrize("fit", ["ridge", "lasso"])
@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_the_linear_model_is_that_of_scikit_learn(fit, distance):
    key, penalty = jax.random.key(3), 0.05 if fit == "lasso" else 2.0
    table = np.asarray(_drawn(200, 4, key))
    assert table[0].all()
    values = np.stack([logits(WEIGHTS, X * row[MASK][None, :, :, None]) for row in table.astype(np.float32)])
    share = table.mean(1)
    far = 1 - np.sqrt(share) if distance == "cosine" else np.sqrt(1 - share)
    model = Lasso(penalty, tol=1e-8) if fit == "lasso" else Ridge(penalty)
    options = {"mask": MASK, "samples": 200, "key": key, "fit": fit, "distance": distance, "penalty": penalty}
    found = lime(NET, X, width=0.5, **options).contributions[..., 0]
    for b in range(3):
        for k in range(3):
            model.fit(table.astype(float), values[:, b, k].astype(float), sample_weight=np.exp(-(far**2) / 0.25))
            np.testing.assert_allclose(found[b, k], model.coef_[MASK], atol=2e-4)


def test_segments_are_squares_superpixels_or_a_function():
    found = lime(NET, X, cells=2, samples=50).contributions
    assert (squares((4, 4), 2) == MASK).all()
    np.testing.assert_array_equal(found, lime(NET, X, mask=MASK, samples=50).contributions)
    fewer = lime(NET, X, superpixels=lambda image: MASK * (image[0, 0, 0] > 0.5), samples=50)
    assert [len(np.unique(maps[0])) for maps in fewer.contributions] == [4 if x > 0.5 else 1 for x in X[:, 0, 0, 0]]
    spread = lime(NET, X, mask=MASK, samples=50, rule="spread").contributions
    np.testing.assert_allclose(spread * 4, found, rtol=1e-5)
    assert squares((2, 3), 8).tolist() == [[0, 1, 2], [8, 9, 10]]


def test_an_example_with_fewer_segments_is_explained_as_alone():
    """Its coalitions are drawn among more, so with all of them a linear network is found in any case."""
    linear = explainable(lambda w, x: x.reshape(len(x), -1) @ w, WEIGHTS)
    masks = np.stack([MASK, MASK // 2, MASK])
    found = lime(linear, X, mask=masks, penalty=0.0).contributions[..., 0]
    alone = lime(linear, X[1:2], mask=MASK // 2, penalty=0.0).contributions[..., 0]
    np.testing.assert_allclose(found[1:2], alone, atol=1e-3)


def test_superpixels_of_scikit_image():
    pytest.importorskip("skimage")
    image = np.zeros((1, 16, 16, 3), np.float32)
    image[:, :, 8:] = 1
    net = explainable(lambda x: x[:, :, 8:].sum((1, 2)))
    for name in ("slic", "felzenszwalb", "quickshift"):
        maps = lime(net, image, 0, superpixels=name, cells=4, samples=300).maps()[0, 0]
        assert maps[:, 10:].min() > maps[:, :6].max()


def test_bad_input(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setitem(sys.modules, "skimage", None)
    changes = [("samples", 0), ("width", 0.0), ("penalty", -1.0), ("fit", "tree"), ("distance", "l1"), ("cells", 0)]
    for name, value in [*changes, ("superpixels", "hexagons"), ("superpixels", "slic"), ("mask", np.zeros(3, int))]:
        with pytest.raises(ValueError, match=f"^{name}: got [^\n]*$"):
            lime(NET, X, **{name: value})
    with pytest.raises(ValueError, match=r"^superpixels: "):
        lime(NET, X, layer="input", superpixels="slic")
    with pytest.raises(ValueError, match=r"^superpixels: "):
        lime(lambda x: x, jnp.ones((2, 3)), superpixels="slic")
