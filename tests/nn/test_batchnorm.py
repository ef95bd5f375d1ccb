import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinterp.nn.batchnorm import BatchNorm
from jaxinterp.train import device_mesh


def normalized(x, **fields):
    """The output and the running statistics after one step, in an affine layer that is not the identity."""
    variables = BatchNorm().init(jax.random.key(0), x)
    params = {"scale": jnp.array([0.5, -2.0]), "bias": jnp.array([0.1, 1.0])}
    apply = jax.jit(
        lambda x: BatchNorm(**fields).apply({**variables, "params": params}, x, True, mutable="batch_stats")
    )
    out, updates = apply(x)
    return out, updates["batch_stats"]


def images(count=16):
    return jax.random.normal(jax.random.key(1), (count, 3, 3, 2)) * 2 + 1


def by_hand(x):
    """PyTorch's conventions: biased variance to normalize, unbiased in the running statistics, momentum 0.1."""
    rows = np.asarray(x, np.float64).reshape(-1, 2)
    out = (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * np.array([0.5, -2.0]) + np.array([0.1, 1.0])
    return out, {"mean": 0.1 * rows.mean(0), "var": 0.9 + 0.1 * rows.var(0, ddof=1)}


def close(found, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), found, want)


def test_conventions_are_pytorchs():
    out, stats = normalized(images())
    want, running = by_hand(np.asarray(images()))
    close((out, dict(stats)), (want, running))


def test_evaluation_uses_what_training_has_left():
    x = images()
    layer = BatchNorm()
    variables = layer.init(jax.random.key(0), x)
    _, updates = layer.apply(variables, x, True, mutable="batch_stats")
    mean, var = (np.asarray(updates["batch_stats"][name]) for name in ("mean", "var"))
    close(layer.apply({**variables, **updates}, x), (np.asarray(x) - mean) / np.sqrt(var + 1e-5))


def test_eight_devices_share_the_statistics_of_the_whole_batch():
    x = images()
    want = by_hand(np.asarray(x))
    sharded = jax.device_put(x, NamedSharding(device_mesh(), P("batch")))
    out, stats = normalized(sharded)
    close((out, dict(stats)), want)
    variables = BatchNorm().init(jax.random.key(0), x)
    params = {"scale": jnp.array([0.5, -2.0]), "bias": jnp.array([0.1, 1.0])}
    step = jax.pmap(
        lambda x: BatchNorm(axis_name="batch").apply({**variables, "params": params}, x, True, mutable="batch_stats"),
        axis_name="batch",
    )
    out, updates = step(x.reshape(8, 2, 3, 3, 2))
    close(np.asarray(out).reshape(x.shape), want[0])
    for device in range(8):
        close({name: leaf[device] for name, leaf in updates["batch_stats"].items()}, want[1])


def test_ghost_batches_share_statistics_in_parts_and_hand_on_their_mean():
    x = images(6)
    out, stats = normalized(x, ghost=3)
    parts = [by_hand(np.asarray(x)[part]) for part in (slice(3), slice(3, None))]
    close(out, np.concatenate([part[0] for part in parts]))
    close(dict(stats), {name: np.mean([part[1][name] for part in parts], 0) for name in ("mean", "var")})
    with pytest.raises(ValueError, match="ghost"):
        normalized(x, ghost=4)
