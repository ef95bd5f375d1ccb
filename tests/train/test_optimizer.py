import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.train import coda_imagenet, cosine_by_epoch, make_optimizer, make_schedule
from jaxinterp.train.optimizer import ramp


def constant(step):
    return jnp.float32(1.0)


def updated(tx, params, gradients):
    with jax.numpy_dtype_promotion("standard"):  # optax's own counting
        return tx.update(gradients, tx.init(params), params)[0]


def test_schedules_are_those_of_the_papers():
    cifar = make_schedule("staircase", learning_rate=2.5e-4, epochs=200, steps_per_epoch=7)
    imagenet = coda_imagenet(steps_per_epoch=7)
    for epoch in (0, 1, 13, 14, 15, 19, 20, 29, 30, 59, 119, 199):
        expected = 2.5e-4 + 7.5e-4 * epoch / 14 if epoch < 15 else 1e-3 / 2 ** (epoch // 20)
        for step in (7 * epoch, 7 * epoch + 6):
            np.testing.assert_allclose(cifar(step), 2.5e-4 * 1.5 ** -(epoch // 30), rtol=1e-5)
            np.testing.assert_allclose(imagenet(np.int32(step)), expected, rtol=1e-5)
    cosine = make_schedule("cosine", learning_rate=0.1, epochs=10, steps_per_epoch=4)
    for step in (0, 10, 20, 40):
        np.testing.assert_allclose(cosine(step), 0.05 * (1 + math.cos(math.pi * step / 40)), atol=1e-7)
    rates = [float(ramp(0.1, 640)(step)) for step in (0, 3, 4, 319, 320, 479, 480, 639)]
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", {0: 1.0, 30: 1.0, 99: 1.0}),
        ("cosine_by_epoch", {0: 1e-4, 30: 0.25 + 0.75 * (1 + math.cos(0.3 * math.pi)) / 2}),
        ("onecycle", {0: 0.04, 30: 1.0}),
    ],
)
def test_a_schedule_by_name_is_float32_and_takes_integers(name, expected):
    schedule = make_schedule(name, learning_rate=1.0, epochs=10, steps_per_epoch=10, end_lr=0.25, warmup_epochs=2)
    for step, value in expected.items():
        rate = jax.jit(schedule)(jnp.int32(step))
        assert rate.dtype == jnp.float32
        np.testing.assert_allclose(rate, value, rtol=1e-3)


def test_clipping_weight_decay_and_frozen_parameters():
    params = {"kernel": jnp.zeros(2)}
    clipped = updated(make_optimizer("sgd", constant, clip=0.5), params, {"kernel": jnp.array([3.0, 4.0])})
    np.testing.assert_allclose(clipped["kernel"], [-0.3, -0.4], rtol=1e-5)
    params = {"a": {"kernel": jnp.full((2, 1), 2.0), "bias": jnp.full((1, 1), 2.0), "scale": jnp.full(2, 2.0)}}
    zero = jax.tree.map(jnp.zeros_like, params)
    for name in ("sgd", "adamw"):
        for options, changed in (({}, {"kernel"}), ({"decay_all": True}, {"kernel", "bias", "scale"})):
            decayed = updated(make_optimizer(name, constant, weight_decay=0.1, **options), params, zero)
            for leaf, update in decayed["a"].items():
                np.testing.assert_allclose(update, -0.2 if leaf in changed else 0.0, rtol=1e-6)
    frozen = make_optimizer("sgd", constant, weight_decay=0.1, decay_all=True, frozen=lambda path: path == "a/kernel")
    update = updated(frozen, params, zero)["a"]
    assert (float(update["kernel"].max()), float(update["bias"].max())) == (0.0, pytest.approx(-0.2))


def test_unknown_names_and_a_warmup_longer_than_the_run_raise():
    with pytest.raises(ConfigError, match="schedule"):
        make_schedule("cosin", learning_rate=1.0, epochs=1, steps_per_epoch=1)
    with pytest.raises(ConfigError, match="optimizer"):
        make_optimizer("lamb", constant)
    with pytest.raises(ConfigError, match="warmup_epochs"):
        cosine_by_epoch(0.1, epochs=2, steps_per_epoch=4, warmup_epochs=2)
