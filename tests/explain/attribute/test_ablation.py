import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain.attribute import feature_ablation, feature_permutation
from jaxinterp.explain.explainable import explainable

WEIGHTS = jax.random.normal(jax.random.key(0), (4 * 4 * 2, 3))
X = jax.random.uniform(jax.random.key(1), (3, 4, 4, 2))
QUARTERS = np.kron([[5, 3], [8, 5]], np.ones((2, 2), int))  # two of them are one group


def logits(weights, x):
    return jnp.tanh(x.reshape(len(x), -1) @ weights)


NET = explainable(logits, WEIGHTS)


def without(x, where, base):
    return np.asarray(logits(WEIGHTS, X) - logits(WEIGHTS, jnp.asarray(np.where(where, base, x))))


def test_each_group_is_taken_away_alone():
    base = np.linspace(0, 1, 32, dtype=np.float32).reshape(4, 4, 2)
    found = feature_ablation(NET, X, mask=QUARTERS, baseline=base)
    assert found.contributions.shape == (3, 3, 4, 4, 1)
    for name in (3, 5, 8):
        where = (name == QUARTERS)[None, :, :, None]
        drop = np.broadcast_to(without(np.asarray(X), where, base)[:, :, None], (3, 3, int(where.sum())))
        np.testing.assert_allclose(found.contributions[..., 0][:, :, name == QUARTERS], drop, atol=2e-6)
    spread = feature_ablation(NET, X, mask=QUARTERS, baseline=base, rule="spread").contributions
    sizes = np.where(QUARTERS == 5, 8, 4)[:, :, None]
    np.testing.assert_allclose(np.asarray(spread) * sizes, found.contributions, rtol=1e-5, atol=1e-6)


def test_a_mask_of_each_example_and_of_channels():
    one = np.arange(32).reshape(4, 4, 2) // 5
    shared = feature_ablation(NET, X, mask=one).contributions
    assert shared.shape == (3, 3, 4, 4, 2)
    each = feature_ablation(NET, X, mask=np.stack([one, one[::-1], one + 4])).contributions
    np.testing.assert_allclose(each[::2], shared[::2], atol=2e-6)
    turned = feature_ablation(NET, X, mask=one[::-1]).contributions
    np.testing.assert_allclose(each[1], turned[1], atol=2e-6)


@pytest.mark.parametrize("max_bytes", [1, 5000])
def test_parts_change_nothing(max_bytes):
    whole = feature_ablation(NET, X).contributions
    found = feature_ablation(NET, X, [[2, 0]] * 3, max_bytes=max_bytes).contributions
    np.testing.assert_allclose(found, whole[:, np.array([2, 0])], atol=2e-6)
    whole = feature_permutation(NET, X, mask=QUARTERS).contributions
    np.testing.assert_allclose(feature_permutation(NET, X, mask=QUARTERS, max_bytes=max_bytes).contributions,
                               whole, atol=2e-6)  # fmt: skip


def test_permutation_exchanges_groups_among_the_examples():
    """With two examples a group stays or is exchanged: the mean of both, as the number of samples grows."""
    x = X[:2]
    found = feature_permutation(NET, x, mask=QUARTERS, samples=4000, key=jax.random.key(3)).contributions
    for name in (3, 5, 8):
        where = (name == QUARTERS)[None, :, :, None]
        other = logits(WEIGHTS, jnp.where(where, x[::-1], x))
        drop = (logits(WEIGHTS, x) - other) / 2
        np.testing.assert_allclose(found[..., 0][:, :, name == QUARTERS][..., 0], drop, atol=0.04)
    again = feature_permutation(NET, x, mask=QUARTERS, samples=4000, key=jax.random.key(3)).contributions
    assert (again == found).all()


def test_bad_input(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for mask in (np.zeros((3, 4), int), np.zeros((4, 4)), np.zeros((2, 4, 4, 2), int)):
        with pytest.raises(ValueError, match=r"^mask:"):
            feature_ablation(NET, X, mask=mask)
    with pytest.raises(ValueError, match=r"^baseline:"):
        feature_ablation(NET, X, baseline=np.zeros(3))
    with pytest.raises(ValueError, match=r"^rule:"):
        feature_ablation(NET, X, rule="sum")
    with pytest.raises(ValueError, match=r"^samples:"):
        feature_permutation(NET, X, samples=0)
    with pytest.raises(ValueError, match=r"^x:"):
        feature_permutation(NET, X[:1])
    with pytest.raises(ValueError, match=r"^x: got int32"):
        feature_ablation(lambda x: x.astype(float), jnp.zeros((2, 5), jnp.int32))
