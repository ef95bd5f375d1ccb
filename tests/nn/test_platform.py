"""The branch follows the platform that a program is compiled for, under every transformation."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import config

from jaxinterp.nn.platform import by_platform, target, target_of

X = jnp.asarray(np.random.default_rng(0).uniform(size=(8, 3)), jnp.float32)
SIDES = {"cpu": 2.0, "gpu": 3.0, "tpu": 3.0, "accelerator": 3.0}
HERE = target_of(())


def f(x):
    """x² on a CPU and x³ elsewhere, so that values and derivatives tell which; each side keeps values of its own."""
    return by_platform(lambda x: x * x, lambda x: lax.map(lambda row: jnp.sin(row) * 0 + row**3, x), x)


def power(side, x):
    return x ** SIDES[side]


@pytest.fixture(params=[None, *SIDES])
def side(request):
    """The side that runs: that of this machine, or one that is set."""
    if request.param is None:
        yield HERE
        return
    with target(request.param):
        yield request.param


def total(g, x):
    return jnp.sin(g(x)).sum()


def test_every_transformation_takes_one_side(side):
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    want = partial(power, side)
    for run in (f, jax.jit(f), jax.vmap(lambda row: f(row[None])[0]), jax.jit(jax.vmap(lambda row: f(row[None])[0]))):
        close(run(X), want(X))
    slope = jax.grad(partial(total, want))(X)
    for g in (f, jax.checkpoint(f), jax.jit(f), lambda x: jax.vmap(lambda row: f(row[None])[0])(x)):
        close(jax.grad(partial(total, g))(X), slope)
        close(jax.jit(jax.grad(partial(total, g)))(X), slope)
    curved = jax.jit(lambda g, x: jax.jvp(jax.grad(partial(total, g)), (x,), (x,))[1], static_argnums=0)
    close(curved(f, X), curved(want, X))


@pytest.mark.simulated
def test_the_devices_of_a_mesh_take_one_side(side):
    mesh, rows = Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data")
    sharded = partial(jax.shard_map, mesh=mesh, in_specs=rows)
    np.testing.assert_allclose(jax.jit(sharded(f, out_specs=rows))(X), power(side, X), rtol=1e-6)

    def mean(x):
        value, slope = jax.value_and_grad(partial(total, f))(x)
        return lax.pmean(value, "data"), slope

    value, slope = jax.jit(sharded(mean, out_specs=(PartitionSpec(), rows)))(X)
    want = jax.value_and_grad(partial(total, partial(power, side)))(X)
    np.testing.assert_allclose(value * len(jax.devices()), want[0], rtol=1e-5)
    np.testing.assert_allclose(slope, want[1], rtol=1e-5)
    by_device = jax.pmap(lambda x: lax.psum(mean(x[None]), "data")[0], "data")(X)
    np.testing.assert_allclose(by_device / len(jax.devices()), value, rtol=1e-5)


def test_another_platform_takes_the_other_side():
    traced = jax.jit(lambda x: by_platform(jnp.sin, jnp.cos, x)).trace(X)
    for platform in ("cpu", "cuda", "rocm", "tpu"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("cosine" in text) is (platform != "cpu")
        assert ("sine" in text.replace("cosine", "")) is (platform == "cpu")
    every = jax.export.export(jax.jit(f), platforms=("cuda", "cpu", "tpu"))(X)
    np.testing.assert_allclose(every.call(X), power(HERE, X), rtol=1e-6)


def test_what_is_compiled_holds_nothing_of_the_other_side():
    def wide(x):  # whose derivative keeps 64 times as much as the other side
        return jnp.sin(jnp.tile(x, (64, 1)) * jnp.arange(512.0)[:, None]).reshape(64, *x.shape).sum(0)

    def either(x):
        return by_platform(jnp.cos, wide, x) if HERE == "cpu" else by_platform(wide, jnp.cos, x)

    slope = jax.jit(jax.grad(partial(total, either)))
    free = slope.lower(X).compile()
    with target(HERE):
        known = slope.lower(X).compile()
    assert "conditional" not in free.as_text()
    assert free.memory_analysis().temp_size_in_bytes == known.memory_analysis().temp_size_in_bytes
    assert free.cost_analysis()["flops"] == known.cost_analysis()["flops"]


def test_what_is_within_a_side_takes_the_same():
    sides = by_platform(lambda x: by_platform(lambda x: x, lambda x: -x, x), lambda x: x, X)
    np.testing.assert_array_equal(sides, X)
    text = str(jax.make_jaxpr(lambda x: by_platform(f, f, x))(X))
    assert text.count("branches=") == 1


def test_a_tpu_may_have_a_function_of_its_own():
    def own(x):
        return by_platform(lambda x: x, lambda x: 2 * x, x, tpu=lambda x: by_platform(f, lambda x: 3 * x, x))

    for kind, factor in (("cpu", 1), ("gpu", 2), ("tpu", 3)):
        with target(kind):
            for run in (own, jax.jit(own), jax.vmap(own)):
                np.testing.assert_array_equal(run(X), factor * X)
    with target("accelerator"):  # one of two, not known which
        text = jax.export.export(jax.jit(own), platforms=["cuda", "tpu"])(X).mlir_module()
    assert "dense<2.0" in text
    assert "dense<3.0" in text
    np.testing.assert_array_equal(jax.jit(own)(X), {"cpu": 1, "gpu": 2, "tpu": 3}[HERE] * X)
    for platform, factor in (("cpu", None), ("cuda", 2.0), ("tpu", 3.0)):
        text = jax.export.export(jax.jit(own), platforms=[platform])(X).mlir_module()
        found = re.findall(r"dense<(\d\.0)[0-9eE+]*> : tensor<f", text)
        assert set(map(float, found)) == ({factor} if factor else set())


def test_the_target_is_set_or_that_of_known_arrays():
    assert target_of((np.ones(2), X)) == HERE
    with target("accelerator"):
        assert target_of(X) == "accelerator"
        with target("cpu"):
            assert target_of(X) == "cpu"
    assert jax.eval_shape(lambda x: jnp.ones(len(target_of(x))), X).shape == (3,)


def test_an_unknown_target_is_one_line(monkeypatch):
    monkeypatch.setattr(config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=r"\Atarget: got .*\Z"), target("metal"):
        pass
