"""The authors' whole network: from and to their names, the golden blocks inside, foreign parameters."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp import from_torch as wrapped
from jaxinterp.coded.codes import load_code
from jaxinterp.coded.network import CodedResNeXt, Stage
from jaxinterp.coded.torch_weights import from_torch, to_torch
from jaxinterp.errors import ConfigError

GOLDEN = np.load(Path(__file__).parents[1] / "golden/coded_resnext_blocks.npz")
CODES = load_code("cifar10-5-of-10"), load_code("cifar10-3-of-10")
STAGES = (Stage(1, 16, 3, 10), Stage(2, 24, 4, 10, 2, CODES[0]), Stage(1, 32, 5, 10, 2, CODES[1]))


def words(net):
    """What tells the stages of a network; codes by their words."""
    return [(s.blocks, s.features, s.width, s.paths, s.strides, s.code and s.code.words) for s in net.stages]


@pytest.fixture(scope="module", params=[(3, 1), (7, 2)])
def network(request):
    net = CodedResNeXt(stages=STAGES, stem=request.param)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(0)
    return net, jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.1, 1, s.shape), jnp.float32), shapes)


def test_there_and_back(network):
    net, variables = network
    state_dict = to_torch(net, variables)
    assert state_dict["net_list.0.weight"].shape == (64, 3, net.stem[0], net.stem[0])
    assert state_dict["net_list.9.weight"].shape == (10, 32)
    found, back = from_torch({f"module.{name}": array for name, array in state_dict.items()})
    assert (found.stem, words(found)) == (net.stem, words(net))
    jax.tree.map(np.testing.assert_array_equal, back, variables)
    assert "CodedResNeXt" in repr(wrapped(state_dict, mean=(0.5,) * 3))


def test_the_golden_blocks_inside_a_whole_network_give_the_authors_logits():
    own = {"net_list.0.weight": np.zeros((64, 3, 3, 3)), "net_list.8.weight": GOLDEN["head/weight_oi"]}
    own |= {f"net_list.1.{part}": np.ones(64) for part in ("weight", "bias", "running_mean", "running_var")}
    blocks = {f"net_list.{3 + int(k[5])}.{k.partition('/')[2]}": GOLDEN[k] for k in GOLDEN if k.startswith("block")}
    with jax.enable_x64(True):
        with pytest.raises(ConfigError, match=r"^params/block_1/reduce/kernel: got shape \(12, 30\)"):
            from_torch(own | blocks)  # whose first block reads 12 channels, not the stem's 64
        wide = {
            n: np.pad(a, ((0, 0), (0, 52), (0, 0), (0, 0)))
            for n, a in blocks.items()
            if a.shape[1:2] == (12,) and a.ndim == 4
        }
        found, back = from_torch(own | blocks | wide)
        found = found.clone(param_dtype=jnp.float64)
        x = jnp.pad(jnp.asarray(GOLDEN["x_nchw"].transpose(0, 2, 3, 1)), ((0, 0),) * 3 + ((0, 52),))
        logits = jax.jit(lambda v, x: _from_blocks(found, v, x))(back, x)
        np.testing.assert_allclose(logits, GOLDEN["eval/logits"], rtol=0, atol=1e-9)
    assert words(found) == words(CodedResNeXt(stages=STAGES))


def _from_blocks(net, variables, x):
    """Run a network from the first block on."""
    from jaxinterp.coded.block import CodedBlock

    for i, (stage, strides) in enumerate(net.blocks, 1):
        shape = (stage.features, stage.width, stage.paths, stage.paths, strides, stage.code is not None)
        own = {kind: variables[kind][f"block_{i}"] for kind in variables}
        x, _ = CodedBlock(*shape, param_dtype=jnp.float64).apply(own, x)
    return x.mean((1, 2)) @ variables["params"]["classifier"]["kernel"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"net_list.3.conv_extra.weight": np.zeros(1)}, "unknown net_list.3.conv_extra.weight"),
        (
            lambda s: {n: a for n, a in s.items() if n != "net_list.4.bn_reduce.bias"},
            "missing net_list.4.bn_reduce.bias",
        ),
        (lambda s: {n: a for n, a in s.items() if n != "net_list.4.Mask_perClass"}, "missing net_list.4.Mask_perClass"),
        (lambda s: s | {"net_list.4.Mask_perClass": np.ones((10, 10))}, "^net_list.4.Mask_perClass: got float64"),
        (lambda s: s | {"net_list.4.conv_internal.weight": np.zeros((7, 4, 3, 3))}, "^conv_internal.weight: got"),
        (lambda s: s | {"net_list.0.weight": np.zeros((32, 3, 3, 3))}, "^net_list.0.weight: got"),
        (lambda s: s | {"module.net_list.0.weight": s["net_list.0.weight"]}, "given twice"),
    ],
)
def test_foreign_parameters_are_named_in_one_line(change, message):
    net = CodedResNeXt(stages=STAGES)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    state_dict = to_torch(net, jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes))
    with pytest.raises(ConfigError, match=message) as error:
        from_torch(change(state_dict))
    assert "\n" not in str(error.value)
