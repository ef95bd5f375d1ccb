import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.coda.network import CoDANet
from jaxinterp.coda.torch_weights import BIAS, GENERATOR, PROJECTION, from_torch, load_torch, to_torch
from jaxinterp.errors import CheckpointError, ConfigError

GOLDEN = Path(__file__).parent.parent / "golden" / "coda_net_squash.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def state_dict(golden):
    """The golden arrays under the authors' names and layouts."""
    state = {}
    for i in range(4):
        state[f"{i}.{PROJECTION}"] = golden[f"layer{i}_B_oihw"]
        state[f"{i}.{GENERATOR}"] = golden[f"layer{i}_A_oi"][..., None, None]
        state[f"{i}.{BIAS}"] = golden[f"layer{i}_b"]
    return state


def net(golden, **kwargs):
    def numbers(name):
        return tuple(int(n) for n in golden[name])

    return CoDANet(
        features=numbers("channels"),
        ranks=numbers("ranks"),
        kernel_sizes=numbers("kernels"),
        strides=numbers("strides"),
        paddings=numbers("paddings"),
        temperature=float(golden["temperature"]),
        logit_bias=float(golden["logit_bias"]),
        **kwargs,
    )


@pytest.mark.parametrize("prefix", ["", "module.", "module.model."])
def test_converted_net_gives_the_authors_logits(golden, state_dict, prefix):
    with jax.enable_x64(True):
        params = from_torch({prefix + name: array for name, array in state_dict.items()})
        images = jnp.asarray(golden["image_nchw"].transpose(0, 2, 3, 1))
        logits = net(golden, param_dtype=jnp.float64).apply({"params": params}, images)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, golden["logits"], rtol=0, atol=1e-9)


def test_converted_params_have_the_nets_own_structure(golden, state_dict):
    images = jnp.zeros((1, 12, 12, 3))
    expected = jax.eval_shape(net(golden).init, jax.random.key(0), images)["params"]
    params = from_torch({name: array.astype(np.float32) for name, array in state_dict.items()})
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype)


def test_round_trip_is_bit_equal(state_dict):
    with jax.enable_x64(True):
        back = to_torch(from_torch(state_dict))
    assert list(back) == list(state_dict)
    for name, array in state_dict.items():
        np.testing.assert_array_equal(back[name], array)


def changed(state_dict, name, array=None):
    return {k: v for k, v in state_dict.items() if k != name} | ({} if array is None else {name: array})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"fc.weight": np.zeros(3)}, "unknown fc.weight"),
        (lambda s: changed(s, f"1.{BIAS}"), f"missing 1.{BIAS}"),
        (lambda s: {k: v for k, v in s.items() if not k.startswith("2.")}, f"missing 2.{PROJECTION}"),
        (lambda s: {}, f"missing 0.{PROJECTION}"),
        (lambda s: s | {f"module.0.{BIAS}": s[f"0.{BIAS}"]}, f"given twice .*module.0.{BIAS}"),
        (lambda s: changed(s, f"0.{BIAS}", np.zeros(55)), f"0.{BIAS}"),
        (lambda s: changed(s, f"1.{PROJECTION}", np.zeros((7, 5, 3, 3))), f"1.{PROJECTION}"),
        (lambda s: changed(s, f"0.{GENERATOR}", np.zeros((216, 4, 1, 1))), f"0.{GENERATOR}"),
        (lambda s: {f"layer{i}.weight": np.zeros(1) for i in range(9)}, "layer4.weight and 4 more"),
    ],
)
def test_foreign_parameters_are_refused_in_one_line(state_dict, change, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_torch(change(dict(state_dict)))
    assert "\n" not in str(error.value)


def test_params_of_another_net_are_refused(state_dict):
    params = from_torch({name: array.astype(np.float32) for name, array in state_dict.items()})
    with pytest.raises(ConfigError, match=r"layer_0\.B"):
        to_torch(params, in_channels=3 * 7)
    with pytest.raises(ConfigError, match="params"):
        to_torch({name: params[name] for name in ("layer_0", "layer_1", "layer_3")})


def test_load_torch_reads_what_torch_saved(state_dict, tmp_path):
    torch = pytest.importorskip("torch")
    tensors = {f"module.{name}": torch.from_numpy(array).float() for name, array in state_dict.items()}
    expected = from_torch({name: array.astype(np.float32) for name, array in state_dict.items()})
    for name, content in {"plain": tensors, "wrapped": {"state_dict": tensors, "epoch": 200}}.items():
        torch.save(content, tmp_path / f"{name}.pkl")
        params = load_torch(tmp_path / f"{name}.pkl")
        jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_load_torch_refuses_what_is_no_checkpoint(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pkl"
    with pytest.raises(CheckpointError, match="no such file"):
        load_torch(path)
    torch.save({"0.weight": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="expected a PyTorch checkpoint of tensors"):
        load_torch(path)
    torch.save({"weights": Path("code/that/would/run")}, path)
    with pytest.raises(CheckpointError, match="expected a PyTorch checkpoint of tensors"):
        load_torch(path)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="expected a dict of tensors"):
        load_torch(path)


def test_load_torch_without_torch_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ConfigError,
        match=r"model\.pkl: got a PyTorch checkpoint, expected torch to read it \(pip install torch\), or safetensors",
    ):
        load_torch(tmp_path / "model.pkl")
