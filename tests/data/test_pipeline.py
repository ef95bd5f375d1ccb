"""Order and draws are functions of (seed, epoch, index); nothing crosses from host to device in the loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxinterp.data import compose, crop, draw_batch, epoch_order, flip, hold_out, load, to_device
from jaxinterp.errors import ConfigError

KEY = jax.random.key(0)
AUGMENT = compose(flip(), crop(2))
draw = jax.jit(draw_batch, static_argnames=("augment", "maximum"))


@pytest.fixture(scope="module")
def digits():
    return hold_out(load("digits", "train"), 0.05)[1]


def test_order_is_a_permutation_and_a_function_of_key_and_epoch():
    order = np.asarray(epoch_order(KEY, 3, 50, 8))
    assert (order.shape, order.dtype) == ((6, 8), np.int32)
    assert len(set(order.ravel())) == 48
    assert set(order.ravel()) <= set(range(50))
    np.testing.assert_array_equal(epoch_order(KEY, jnp.int32(3), 50, 8), order)
    for key, epoch in ((KEY, 4), (jax.random.key(1), 3)):
        assert (np.asarray(epoch_order(key, epoch, 50, 8)) != order).any()
    np.testing.assert_array_equal(np.asarray(epoch_order(KEY, 3, 50, 25)).ravel()[:48], order.ravel())
    for batch_size in (0, 51):
        with pytest.raises(ConfigError, match="batch_size"):
            epoch_order(KEY, 0, 50, batch_size)


def test_augmentation_depends_on_seed_epoch_and_index_alone(digits):
    data = to_device(digits)

    def epoch_of(batch_size, epoch):
        order, images = epoch_order(KEY, epoch, len(digits), batch_size), {}
        for step in range(len(order)):
            batch = draw(data, order, step, KEY, epoch, augment=AUGMENT, maximum=16)
            np.testing.assert_array_equal(batch["index"], order[step])
            np.testing.assert_array_equal(batch["label"], digits.labels[batch["index"]])
            images.update(zip(np.asarray(batch["index"]).tolist(), np.asarray(batch["image"]), strict=True))
        return images

    small, large, later = epoch_of(9, 0), epoch_of(35, 0), epoch_of(35, 1)
    common = sorted(set(small) & set(large))
    assert len(common) > 50
    for index in common:
        np.testing.assert_array_equal(small[index], large[index])
    example_key = jax.random.fold_in(jax.random.fold_in(KEY, 0), common[0])
    scaled = jnp.asarray(digits.images[common[0]], jnp.float32) / 16
    np.testing.assert_array_equal(small[common[0]], AUGMENT(example_key, scaled))
    assert any((large[index] != later[index]).any() for index in set(large) & set(later))


def test_the_set_is_replicated_and_drawing_neither_recompiles_nor_copies(digits):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])
    data = to_device(digits, NamedSharding(mesh, PartitionSpec()))
    assert data["image"].sharding.is_fully_replicated
    assert len(data["label"].devices()) == 2
    traces = 0

    @jax.jit
    def step(data, order, key, epoch, position):
        nonlocal traces
        traces += 1
        image = draw_batch(data, order, position, key, epoch, flip(), 16)["image"]
        return jax.lax.with_sharding_constraint(image, NamedSharding(mesh, PartitionSpec("batch"))), position + 1

    order, epoch = epoch_order(KEY, 0, len(digits), 8), jnp.int32(0)
    order, key, epoch, position = jax.device_put((order, KEY, epoch, epoch), NamedSharding(mesh, PartitionSpec()))
    spread, position = step(data, order, key, epoch, position)
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            _, position = step(data, order, key, epoch, position)
    assert (traces, int(position)) == (1, 4)
    alone = draw(to_device(digits), epoch_order(KEY, 0, len(digits), 8), 0, KEY, 0, augment=flip(), maximum=16)
    np.testing.assert_array_equal(spread, alone["image"])
