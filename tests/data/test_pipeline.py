"""Order and draws are functions of (seed, epoch, index); nothing crosses from host to device in the loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxinterp.data import Dataset, compose, crop, draw_batch, epoch_order, flip, hold_out, identity, load, to_device

KEY = jax.random.key(0)
AUGMENT = compose(flip(), crop(2))
draw = jax.jit(draw_batch, static_argnames=("augment", "maximum"))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return hold_out(load("digits", "train"), 0.05)[1]


def test_order_is_a_permutation_and_a_function_of_key_and_epoch():
    order = np.asarray(epoch_order(KEY, 3, 50, 8))
    assert order.shape == (6, 8)
    assert order.dtype == np.int32
    assert len(set(order.ravel())) == 48
    assert set(order.ravel()) <= set(range(50))
    np.testing.assert_array_equal(epoch_order(KEY, jnp.int32(3), 50, 8), order)
    assert (np.asarray(epoch_order(KEY, 4, 50, 8)) != order).any()
    assert (np.asarray(epoch_order(jax.random.key(1), 3, 50, 8)) != order).any()
    longer = np.asarray(epoch_order(KEY, 3, 50, 25)).ravel()
    np.testing.assert_array_equal(longer[:48], order.ravel())


@pytest.mark.parametrize("batch_size", [0, 51])
def test_a_batch_that_does_not_fit_is_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size"):
        epoch_order(KEY, 0, 50, batch_size)


def test_a_batch_without_augmentation_is_the_scaled_data(digits):
    order = epoch_order(KEY, 0, len(digits), 10)
    batch = draw_batch(to_device(digits), order, 1, KEY, 0, identity, digits.maximum)
    index = np.asarray(order)[1]
    np.testing.assert_array_equal(batch["index"], index)
    np.testing.assert_array_equal(batch["label"], digits.labels[index])
    np.testing.assert_array_equal(batch["image"], digits.images[index].astype(np.float32) / 16)
    assert batch["image"].dtype == jnp.float32


def test_augmentation_depends_on_seed_epoch_and_index_alone(digits):
    data = to_device(digits)

    def epoch_of(batch_size, epoch, key=KEY):
        order = epoch_order(key, epoch, len(digits), batch_size)
        images = {}
        for step in range(len(order)):
            batch = draw(data, order, step, key, epoch, augment=AUGMENT, maximum=16)
            images.update(zip(np.asarray(batch["index"]).tolist(), np.asarray(batch["image"]), strict=True))
        return images

    few, many, later = epoch_of(9, 0), epoch_of(35, 0), epoch_of(35, 1)
    common = sorted(set(few) & set(many))
    assert len(common) > 50
    for index in common:
        np.testing.assert_array_equal(few[index], many[index])
    example_key = jax.random.fold_in(jax.random.fold_in(KEY, 0), common[0])
    scaled = jnp.asarray(digits.images[common[0]], jnp.float32) / 16
    np.testing.assert_array_equal(few[common[0]], AUGMENT(example_key, scaled))
    assert any((many[index] != later[index]).any() for index in set(many) & set(later))


def test_the_loop_neither_recompiles_nor_copies(digits):
    traces = 0

    @partial(jax.jit, static_argnames="augment")
    def step(data, key, epoch, position, augment):
        nonlocal traces
        traces += 1
        order = epoch_order(key, epoch, len(digits), 8)
        batch = draw_batch(data, order, position, key, epoch, augment, 16)
        return batch["image"].sum(), position + 1

    data, epoch, position = to_device(digits), jnp.int32(0), jnp.int32(0)
    _, position = step(data, KEY, epoch, position, AUGMENT)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            total, position = step(data, KEY, epoch, position, AUGMENT)
    assert traces == 1
    assert int(position) == 4
    assert total > 0


def test_the_set_is_replicated_over_the_mesh(digits):
    devices = jax.device_count()
    mesh = jax.make_mesh((devices,), ("batch",), axis_types=(AxisType.Auto,))
    data = to_device(digits, NamedSharding(mesh, PartitionSpec()))
    assert data["image"].sharding.is_fully_replicated
    assert len(data["label"].devices()) == devices
    order = epoch_order(KEY, 0, len(digits), 2 * devices)
    split = NamedSharding(mesh, PartitionSpec("batch"))
    spread = jax.lax.with_sharding_constraint(draw(data, order, 0, KEY, 0, augment=AUGMENT, maximum=16)["image"], split)
    alone = draw(to_device(digits), order, 0, KEY, 0, augment=AUGMENT, maximum=16)["image"]
    np.testing.assert_array_equal(spread, alone)
