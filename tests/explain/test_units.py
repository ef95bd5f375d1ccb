import jax
import jax.numpy as jnp
import pytest

from jaxinterp.explain.program import mark
from jaxinterp.explain.units import bodies, free_inputs, operation, read, scan_carries

X = jnp.ones((2, 3, 4))
W = jnp.ones((4, 4))


def steps_of(function, **how):
    jaxpr = jax.make_jaxpr(function)(X).jaxpr
    steps, outs = read(jaxpr, [True], **how)
    return [step for step in steps if step.kind != "same"], outs


def kinds(function, **how):
    return [(step.kind, operation(step)) for step in steps_of(function, **how)[0]]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.nn.gelu(x),
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: x * 0.5 * (1 + jax.lax.erf(x / jnp.sqrt(2.0))),
        lambda x: jnp.log(1 + jnp.exp(x)),
        lambda x: 1 / (1 + jnp.exp(-x)),
        lambda x: x / (1 + jnp.exp(-x)),
        lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
        lambda x: x * jnp.tanh(jax.nn.softplus(x)),
        jax.nn.silu,
        jax.nn.softplus,
        jnp.sin,
        jnp.exp,
    ],
)
def test_a_function_of_one_value_is_one_unit_of_its_input(function):
    jaxpr = jax.make_jaxpr(function)(X).jaxpr
    steps, outs = read(jaxpr, [True])
    last = [step for step in steps if step.kind == "unit"][-1]
    negated = [eqn.outvars[0] for eqn in jaxpr.eqns if eqn.primitive.name == "neg"]
    assert last.base in [jaxpr.invars[0], *negated]
    assert all(v.aval.shape == () for v in free_inputs(last))
    assert outs == [True]
    assert all(step.kind in ("unit", "same") for step in steps)


def test_exponentials_and_roots_that_are_summed_or_spread_are_coefficients():
    assert kinds(lambda x: jax.nn.softmax(x)) == [("held", "exp")]
    assert steps_of(lambda x: jax.nn.softmax(x))[1] == [False]
    assert ("held", "rsqrt") in kinds(lambda x: x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True)))
    steps, outs = steps_of(lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True))  # a program within
    assert [step.kind for step in steps] == ["enter"]
    assert outs == [True]
    inner = read(steps[0].eqn.params["jaxpr"].jaxpr, [True], spread=steps[0].spread)
    assert inner[1] == [False]
    _, through = steps_of(lambda x: jax.nn.softmax(x), through=True)
    assert through == [True]


def test_the_gate_of_a_product_is_behind_a_nonlinearity():
    for function, gate in (
        (lambda x: jax.nn.silu(x @ W) * (x @ W.T), 0),
        (lambda x: (x @ W) * jax.nn.sigmoid(x @ W.T), 1),
        (lambda x: (x @ W) * (x @ W.T), 1),
        (lambda x: (x.sum(-1, keepdims=True) > 0).astype(x.dtype) * x, 0),
    ):
        (product,) = (step for step in steps_of(function)[0] if step.kind == "product")
        assert product.gate == gate


def test_piecewise_affine_programs_have_no_steps():
    def net(x):
        return jax.nn.relu(x @ W) + jnp.abs(x).max(1, keepdims=True) - jnp.clip(x, -1, 1)

    assert kinds(net) == []
    found = kinds(net, piecewise=True)
    assert {kind for kind, _ in found} <= {"unit", "enter"}
    assert ("unit", "relu") in found


def test_a_named_layer_is_a_base():
    steps, _ = steps_of(lambda x: x * mark("gate", jax.nn.sigmoid(x)))
    assert [step.kind for step in steps] == ["unit", "product"]
    assert steps[1].gate == 1


def test_programs_within_are_entered():
    def turn(carry, _):
        return jnp.tanh(carry @ W), None

    (scan,) = steps_of(lambda x: jax.lax.scan(turn, x, None, length=2)[0])[0]
    assert scan.kind == "enter"
    consts, carries = scan_carries(scan.eqn)
    assert (carries, scan.eqn.invars[consts].aval.shape) == (1, X.shape)
    assert len(bodies(scan.eqn, scan.active)) == 1
    (cond,) = steps_of(lambda x: jax.lax.cond(x[0, 0, 0] > 0, jnp.tanh, jnp.negative, x))[0]
    assert len(bodies(cond.eqn, cond.active)) == 2
    assert kinds(jax.checkpoint(lambda x: jnp.tanh(x @ W)))[0][0] == "enter"
