import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from jaxinterp.explain.explainable import explainable
from jaxinterp.explain.training import influence_functions, softmax_loss, tracin
from jaxinterp.gated.kernels.regression import kernel_ridge

KEYS = jax.random.split(jax.random.key(0), 6)
TRAIN = jax.random.normal(KEYS[0], (7, 4)), jnp.array([0, 1, 2, 0, 1, 2, 1])
TEST = jax.random.normal(KEYS[1], (3, 4)), jnp.array([2, 0, 1])
VARIABLES = {"inner": jax.random.normal(KEYS[2], (4, 3)), "outer": jax.random.normal(KEYS[3], (3, 3))}


def network(v, x):
    return jnp.tanh(x @ v["inner"]) @ v["outer"]


NET = explainable(network, VARIABLES)


def flat_gradients(variables, x, y):
    """Each example's gradient as a row, one after the other."""
    rows = []
    for i in range(len(x)):
        slope = jax.grad(lambda v, i=i: softmax_loss(network(v, x[i : i + 1]), y[i : i + 1])[0])(variables)
        rows.append(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(slope)]))
    return np.stack(rows)


@pytest.mark.parametrize("max_bytes", [2 << 30, 3000, 1])
def test_tracin_is_the_sum_of_inner_products(max_bytes):
    checkpoints = [VARIABLES, jax.tree.map(lambda v: v / 2, VARIABLES)]
    expected = sum(
        rate * flat_gradients(v, *TEST) @ flat_gradients(v, *TRAIN).T
        for rate, v in zip((0.1, 0.3), checkpoints, strict=True)
    )
    found = tracin(NET, checkpoints, TRAIN, TEST, rates=[0.1, 0.3], max_bytes=max_bytes)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_only_trained_leaves_count():
    whole = tracin(NET, [VARIABLES], TRAIN, TEST)
    parts = [tracin(NET, [VARIABLES], TRAIN, TEST, trained=lambda path, name=name: path == name) for name in VARIABLES]
    np.testing.assert_allclose(sum(parts), whole, rtol=1e-5)

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(x))

    variables = Normed().init(KEYS[4], TRAIN[0])
    found = tracin(explainable(Normed(), variables), [variables], TRAIN, TEST)
    p = np.asarray(jax.nn.softmax(Normed().apply(variables, TRAIN[0]))) - np.eye(3)[TRAIN[1]]
    q = np.asarray(jax.nn.softmax(Normed().apply(variables, TEST[0]))) - np.eye(3)[TEST[1]]
    kernel, scale = np.asarray(variables["params"]["Dense_0"]["kernel"]), 1 / (1 + 1e-5)
    x, x2 = np.asarray(TRAIN[0]), np.asarray(TEST[0])
    dense = (q @ p.T) * (x2 @ x.T * scale + 1)
    norm = (q @ kernel.T) @ (p @ kernel.T).T + (x2 * (q @ kernel.T)) @ (x * (p @ kernel.T)).T * scale
    np.testing.assert_allclose(found, dense + norm, rtol=1e-4, atol=1e-5)


def test_over_all_steps_on_a_linear_model_it_is_the_kernel_regression():
    """Gradient descent from zero: the shares of the training examples are α_i k(x_i, x), and sum to the prediction."""
    x, test = jax.random.normal(KEYS[4], (5, 8)), jax.random.normal(KEYS[5], (3, 8))
    y, rate = jnp.array([1.0, -1.0, 0.5, 2.0, -2.5]), 0.05
    net = explainable(lambda w, x: x @ w, jnp.zeros((8, 1)))
    w, checkpoints = jnp.zeros((8, 1)), []
    for _ in range(400):
        checkpoints.append(w)
        w = w - rate * x.T @ (x @ w - y[:, None])

    def half_square(logits, y):
        return jnp.square(logits[:, 0] - y) / 2

    def prediction(logits, y):
        return -logits[:, 0]

    options = {"rates": rate, "loss": half_square, "test_loss": prediction}
    found = tracin(net, checkpoints, (x, y), (test, jnp.zeros(3)), **options)
    np.testing.assert_allclose(found.sum(1), (test @ w)[:, 0], rtol=1e-3, atol=1e-4)
    ridge = kernel_ridge(np.asarray(x @ x.T, float), np.asarray(y, float)[:, None], (1e-9,))
    np.testing.assert_allclose(found, ridge.shares(np.asarray(test @ x.T, float))[..., 0], atol=5e-3)


@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("max_bytes", [2 << 30, 1])
def test_influence_is_that_of_the_explicit_inverse(matrix, max_bytes):
    flat, unflatten = jax.flatten_util.ravel_pytree(VARIABLES)
    if matrix == "hessian":
        whole = np.asarray(jax.hessian(lambda w: softmax_loss(network(unflatten(w), TRAIN[0]), TRAIN[1]).mean())(flat))
    else:
        slopes = np.asarray(jax.jacobian(lambda w: network(unflatten(w), TRAIN[0]))(flat))
        p = np.asarray(jax.nn.softmax(network(VARIABLES, TRAIN[0])))
        inner = np.eye(3) * p[:, None] - p[:, :, None] * p[:, None]
        whole = np.einsum("nkp,nkl,nlq->pq", slopes, inner, slopes) / 7
    damping = 1.0
    assert np.linalg.eigvalsh(whole).min() > -0.8
    solved = np.linalg.solve(whole + damping * np.eye(len(whole)), flat_gradients(VARIABLES, *TEST).T).T
    expected = solved @ flat_gradients(VARIABLES, *TRAIN).T
    found = influence_functions(NET, TRAIN, TEST, damping=damping, matrix=matrix, max_bytes=max_bytes)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


def test_unfinished_conjugate_gradients_are_warned_of():
    with pytest.warns(UserWarning, match=r"^steps: "):
        influence_functions(NET, TRAIN, TEST, steps=1)


def test_the_loss_is_that_of_the_probability():
    p = 1 / (1 + np.exp(-np.asarray(network(VARIABLES, TRAIN[0])))) - np.eye(3)[TRAIN[1]]
    q = 1 / (1 + np.exp(-np.asarray(network(VARIABLES, TEST[0])))) - np.eye(3)[TEST[1]]
    hidden, hidden2 = (np.tanh(np.asarray(x @ VARIABLES["inner"])) for x in (TRAIN[0], TEST[0]))
    net = explainable(network, VARIABLES, probability="sigmoid")
    found = tracin(net, [VARIABLES], TRAIN, TEST, trained=lambda path: path == "outer")
    np.testing.assert_allclose(found, (q @ p.T) * (hidden2 @ hidden.T), rtol=1e-4, atol=1e-6)


def test_the_second_call_compiles_nothing(compilations):
    def run():
        tracin(NET, [VARIABLES], TRAIN, TEST, max_bytes=2000)
        influence_functions(NET, TRAIN, TEST, damping=1.0, max_bytes=2000)

    run()
    with compilations() as programs:
        run()
    assert programs == []


def test_bad_input(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for field, change in (
        ("checkpoints", {"checkpoints": []}),
        ("checkpoints", {"checkpoints": [VARIABLES["inner"]]}),
        ("rates", {"rates": [0.1, 0.2]}),
        ("train", {"train": TRAIN[0]}),
        ("train", {"train": (TRAIN[0], TRAIN[1] + 3)}),
        ("test", {"test": (TEST[0][:, :3], TEST[1])}),
        ("test", {"test": (TEST[0], TEST[1][:2])}),
        ("trained", {"trained": lambda path: False}),
        ("max_bytes", {"max_bytes": 0}),
    ):
        with pytest.raises(ValueError, match=f"^{field}: got [^\n]*$"):
            tracin(NET, **{"checkpoints": [VARIABLES], "train": TRAIN, "test": TEST, **change})
    for field, value in (("damping", -1.0), ("damping", "small"), ("steps", 0), ("steps", 2.5), ("matrix", "fisher")):
        with pytest.raises(ValueError, match=f"^{field}: "):
            influence_functions(NET, TRAIN, TEST, **{field: value})
