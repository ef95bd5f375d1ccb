import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from jaxinterp.explain.metrics.similarity import cosine, misplaced, pearson, sign_agreement, similar, spearman, ssim


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3, 50)).round(1)  # with ties
    return a.astype(np.float32), (a + b).astype(np.float32)


def test_correlations_are_those_of_scipy(pair):
    a, b = pair
    for ours, theirs in ((pearson, pearsonr), (spearman, spearmanr)):
        want = [theirs(*rows)[0] for rows in zip(a, b, strict=True)]
        np.testing.assert_allclose(ours(jnp.asarray(a), jnp.asarray(b)), want, rtol=1e-5)
    np.testing.assert_allclose(
        cosine(jnp.asarray(a), jnp.asarray(b)),
        (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1),
        rtol=1e-5,
    )
    for function in (pearson, spearman):
        assert np.isnan(function(jnp.full((1, 3), 0.1), jnp.arange(3.0)[None])).all()
    assert np.isnan(cosine(jnp.zeros((1, 3)), jnp.ones((1, 3)))).all()
    np.testing.assert_allclose(cosine(jnp.full((1, 3), 1e-30), jnp.ones((1, 3))), 1, rtol=1e-6)


def test_signs_and_mass(pair):
    a, b = map(jnp.asarray, pair)
    want = [(np.sign(x) == np.sign(y))[y != 0].mean() for x, y in zip(*pair, strict=True)]
    np.testing.assert_allclose(sign_agreement(a, b), want, rtol=1e-6)
    np.testing.assert_allclose(misplaced(a, 3 * a), 0, atol=1e-6)
    np.testing.assert_allclose(misplaced(a, -a), 1, rtol=1e-6)


def test_structural_similarity():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 2, 9, 10))
    want = []
    for x, y in zip(a, b, strict=True):
        size = max(x.max(), y.max()) - min(x.min(), y.min())
        c1, c2, parts = (0.01 * size) ** 2, (0.03 * size) ** 2, []
        for i, j in np.ndindex(3, 4):
            u, v = (z[i : i + 7, j : j + 7].ravel() for z in (x, y))
            (var_u, cov), (_, var_v) = np.cov(u, v)
            top = (2 * u.mean() * v.mean() + c1) * (2 * cov + c2)
            parts.append(top / ((u.mean() ** 2 + v.mean() ** 2 + c1) * (var_u + var_v + c2)))
        want.append(np.mean(parts))
    np.testing.assert_allclose(ssim(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)), want, rtol=1e-3)
    np.testing.assert_allclose(similar("ssim", jnp.asarray(a, jnp.float32), jnp.asarray(a, jnp.float32)), 1, rtol=1e-4)
