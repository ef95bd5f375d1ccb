from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.app.registry import family_of, runs
from jaxinterp.coda.family import CoDAFamily
from jaxinterp.coda.network import encode
from jaxinterp.errors import ConfigError
from jaxinterp.recipe.evaluation import exactness
from jaxinterp.recipe.family import TrainedRun
from jaxinterp.train.optimizer import make_schedule

FAMILY = CoDAFamily()
DIGITS = runs()["coda/digits"].run


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("coda/cifar10-s", 7_782_816),
        ("coda/cifar10-s-l2", 7_782_816),
        ("coda/cifar10-s-lambda0.25", 7_782_816),
        ("coda/cifar10-s-rank4", 1_076_984),
        ("coda/cifar10-s-rank8", 2_034_960),
        ("coda/cifar10-s-rank16", 3_950_912),
        ("coda/cifar10-s-rank144", 34_606_144),
        ("coda/imagenet100-l", 47_517_408),
    ],
)
def test_published_configurations_have_the_published_parameter_counts(name: str, count: int) -> None:
    run = runs()[name].run
    image = jax.ShapeDtypeStruct((1, 32, 32, run.data.channels), jnp.float32)
    shapes = jax.eval_shape(FAMILY.build(run).init, jax.random.key(0), image)
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes["params"])) == count


def rates(name: str, epochs: list[float]) -> list[float]:
    run, steps = runs()[name].run, 10
    schedule = make_schedule(
        run.optim.schedule,
        learning_rate=run.optim.learning_rate,
        epochs=run.train.epochs,
        steps_per_epoch=steps,
        end_lr=run.optim.end_lr,
        warmup_epochs=run.optim.warmup_epochs,
    )
    return [float(schedule(round(epoch * steps))) for epoch in epochs]


def test_the_published_recipes_step_as_the_authors_code_does() -> None:
    run = runs()["coda/cifar10-s"].run
    assert (run.model.temperature, run.train.batch_size, run.train.grad_accum_steps) == (1000.0, 16, 2)
    assert rates("coda/cifar10-s", [0, 30, 199.9]) == pytest.approx([2.5e-4, 2.5e-4 / 1.5, 2.195e-5], rel=1e-3)
    assert rates("coda/imagenet100-l", [0, 14, 19, 20, 40]) == pytest.approx([2.5e-4, 1e-3, 1e-3, 5e-4, 2.5e-4])


def test_regularized_loss_adds_lambda_times_the_penalty() -> None:
    run = FAMILY.smoke(DIGITS).replace(model={"regularizer": 2.0})
    network = FAMILY.build(run)
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
    batch = {"image": images, "label": jnp.array([1, 2], jnp.int32)}
    params = jax.jit(network.init)(jax.random.key(1), images)["params"]
    plain = FAMILY.loss(run.replace(model={"regularizer": 0.0}), network)

    @jax.jit
    def measured(params, batch, key, e):
        jacobian = jax.jacobian(lambda e: network.apply({"params": params}, e, encoded=True, frozen=True))(e)
        return plain(params, {}, batch, key)[0], *FAMILY.loss(run, network)(params, {}, batch, key), jacobian

    without, total, (_, metrics), jacobian = measured(params, batch, jax.random.key(2), encode(images))
    weights = run.model.temperature * np.asarray(jacobian)[np.arange(2), :, np.arange(2)]
    assert float(total - without) == pytest.approx(2.0 * float(np.abs(weights).mean()), rel=1e-3)
    assert float(metrics["loss"]) == float(total)
    hybrid = runs()["coda/cifar10-hybrid1"].run.replace(model={"regularizer": 1.0})
    with pytest.raises(ConfigError, match="regularizer"):
        FAMILY.loss(hybrid, network)


def test_residuals_are_those_of_the_identity() -> None:
    run = FAMILY.smoke(DIGITS)
    network, images = FAMILY.build(run), jax.random.uniform(jax.random.key(0), (3, 8, 8, 1))
    variables = jax.jit(network.init)(jax.random.key(1), images)
    trained = TrainedRun(Path(), "coda/digits", runs()["coda/digits"], run, family_of(run), network, variables)
    net = trained.explainable
    found = exactness(net, np.asarray(images))
    assert np.abs(found.residuals).max() < 1e-4
    np.testing.assert_array_equal(found.curvature, np.zeros(3))
    assert found.discrepancy.max() < 1e-6
    assert net.bias is not None
    wrong = exactness(replace(net, bias=net.bias + 1e-3), np.asarray(images))
    assert np.abs(wrong.residuals).max() > 1e-2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"trunk_depth": 7}, "trunk_depth"),
        ({"trunk_depth": 2}, "trunk_depth"),
        ({"trunk_blocks": 1}, "trunk_blocks"),
        ({"trunk_depth": 8, "trunk_blocks": 4}, "trunk_blocks"),
        ({"regularizer": float("nan")}, "regularizer"),
        ({"strides": (1, 0, 2, 1)}, "strides"),
        ({"features": (8, 16, 16, -8)}, "features"),
    ],
)
def test_networks_that_cannot_be_are_named_by_their_field(fields: dict[str, object], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        DIGITS.replace(model=fields)
