"""torchvision's networks and those of small images: logits without torch, the way back, files, foreign parameters."""

import json
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from benchmarks.torchvision_parity import drawn, images
from jaxinterp import from_torch as wrapped
from jaxinterp.errors import CheckpointError, ConfigError
from jaxinterp.nn.baselines import VGG, CifarResNet, ImageNetVGG, ResNet
from jaxinterp.nn.torch_weights import from_torch, read_state_dict, to_torch

GOLDEN = np.load(Path(__file__).parents[2] / "golden/torch_networks.npz")


@cache
def state_dict(name):
    """The weights of a network of the golden file."""
    return drawn(json.loads(str(GOLDEN[f"{name}/shapes"])))


@pytest.mark.parametrize("name", ["resnet", "bottleneck", "grouped", "vgg", "vgg_bn", "alexnet"])
def test_logits_are_torchvisions_and_the_way_back_is_exact(name):
    network, variables = from_torch(state_dict(name))
    logits, expected = jax.jit(network.apply)(variables, images(80)), GOLDEN[f"{name}/logits"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    back = to_torch(network, variables)
    if name == "vgg_bn":  # their biases are in our means
        again = from_torch(back)[1]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, variables)
    else:
        for key, array in state_dict(name).items():
            np.testing.assert_array_equal(back[key], array)
    assert {key for key in back if not key.endswith("num_batches_tracked")} == set(state_dict(name))


@cache
def small(kind):
    """A network of small images with random variables, under PyTorch's names."""
    network = {
        "cifar": CifarResNet(14, 3, 4),
        "vgg": VGG(11, 3, 4, "first"),
        "b": ResNet((1, 1), 3, False, 4, stem=(3, 1)),
    }[kind]
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return network, drawn(
        {name: a.shape for name, a in to_torch(network, jax.tree.map(lambda s: np.zeros(s.shape, "f"), shapes)).items()}
    )


@pytest.mark.parametrize("kind", ["cifar", "vgg", "b"])
def test_networks_of_small_images_are_known_by_their_names(kind):
    network, state = small(kind)
    found, variables = from_torch({f"module.{name}": array for name, array in state.items()})
    assert found == (network.clone(ties="first") if kind == "b" else network)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    if kind == "b":  # names of github.com/kuangliu/pytorch-cifar
        other = {n.replace("downsample", "shortcut").replace("fc.", "linear."): a for n, a in state.items()}
        jax.tree.map(np.testing.assert_array_equal, from_torch(other)[1], variables)


def torch_forward(state, x):
    """The CIFAR ResNet of option A and the VGG of small images, by PyTorch's functions."""
    torch = pytest.importorskip("torch")
    from torch.nn import functional as f

    state, x = {n: torch.from_numpy(a) for n, a in state.items()}, torch.from_numpy(x.transpose(0, 3, 1, 2).copy())

    def norm(y, n):
        return f.batch_norm(y, *(state[f"{n}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    def conv(y, n, stride=1):
        return f.conv2d(y, state[f"{n}.weight"], state.get(f"{n}.bias"), stride, padding=1)

    if "linear.weight" not in state:
        for i, place in enumerate((0, 4, 8, 11, 15, 18, 22, 25)):
            x = f.relu(norm(conv(x, f"features.{place}"), f"features.{place + 1}"))
            x = f.max_pool2d(x, 2) if i in (0, 1, 3, 5, 7) else x
        return f.linear(x.flatten(1), state["classifier.weight"], state["classifier.bias"]).numpy()
    x = f.relu(norm(conv(x, "conv1"), "bn1"))
    for stage in (1, 2, 3):
        for i in (0, 1):
            n, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = norm(conv(f.relu(norm(conv(x, f"{n}.conv1", stride), f"{n}.bn1")), f"{n}.conv2"), f"{n}.bn2")
            side = (y.shape[1] - x.shape[1]) // 2
            x = f.relu(y + f.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, side, side)))
    return f.linear(x.mean((2, 3)), state["linear.weight"], state["linear.bias"]).numpy()


@pytest.mark.parametrize("kind", ["cifar", "vgg"])
def test_logits_of_small_images_are_torchs(kind):
    _, state = small(kind)
    expected = torch_forward(state, images(32))
    network, variables = from_torch(state)
    np.testing.assert_allclose(jax.jit(network.apply)(variables, images(32)), expected, rtol=0, atol=1e-5)


def test_any_floating_type_is_widened_and_an_explainable_is_made():
    _, state = small("cifar")
    for kind in (jnp.bfloat16, np.float16, np.float64):
        variables = from_torch({name: array.astype(kind) for name, array in state.items()})[1]
        leaf = traverse_util.flatten_dict(variables, sep="/")["params/trunk/stem/conv/kernel"]
        assert leaf.dtype == np.float32
        np.testing.assert_array_equal(leaf, state["conv1.weight"].astype(kind).astype("f").transpose(2, 3, 1, 0))
    assert "CifarResNet" in repr(wrapped(state, mean=(0.5,) * 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"layer1.0.se.fc1.weight": np.zeros((2, 2), "f")}, "unknown layer1.0.se.fc1.weight"),
        (
            lambda s: {n: a for n, a in s.items() if "layer2.0" not in n or "bn2" not in n},
            "missing layer2.0.bn2.bias, .*running_var",
        ),
        (
            lambda s: s | {"layer1.0.conv2.weight": np.zeros((4, 4, 1, 1), "f")},
            r"^layer1.0.conv2.weight: got shape \(4, 4, 1, 1\)",
        ),
        (lambda s: s | {"linear.weight": np.zeros(3, "f")}, "^linear.weight: got shape"),
        (lambda s: {n: a for n, a in s.items() if n != "linear.weight"}, "missing linear.weight"),
        (lambda s: s | {"bn1.weight": np.zeros(4, np.int8)}, "^bn1.weight: got int8"),
        (lambda s: s | {"bn1.weight": np.full(4, np.nan, "f")}, "^bn1.weight: got 4 of 4 values NaN"),
        (lambda s: s | {"module.bn1.weight": np.ones(4, "f")}, "given twice .*module.bn1.weight"),
        (lambda s: {"encoder.weight": np.zeros((2, 2), "f")}, "names such as encoder.weight"),
        (lambda s: {}, "names such as none"),
    ],
)
def test_foreign_parameters_are_named_in_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as error:
        from_torch(change(dict(small("cifar")[1])))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_other_networks_are_not_written():
    with pytest.raises(ConfigError, match=r"^network: got a Dense"):
        to_torch(nn.Dense(2), {})
    network, state = small("cifar")
    with pytest.raises(ConfigError, match=r"^variables:"):
        to_torch(network, {"params": {"other": {"kernel": np.zeros(1, "f")}}})
    with pytest.raises(ConfigError, match=r"^fields:"):
        from_torch(state, network, mean=(0.5,) * 3)
    with pytest.raises(ConfigError, match="those of a VGG-11"):
        from_torch(state_dict("vgg") | {"features.40.weight": np.zeros((2, 2, 3, 3), "f")})
    with pytest.raises(ConfigError, match=r"^dropout:"):
        ImageNetVGG(11, dropout=1.0).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_safetensors_are_read_without_torch(tmp_path, monkeypatch):
    from safetensors.numpy import save_file

    _, state = small("cifar")
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "net.pth").write_bytes(b"PK")
    save_file({name: array.astype(jnp.bfloat16) for name, array in state.items()}, tmp_path / "net.safetensors")
    found = read_state_dict(tmp_path / "net.safetensors")
    assert {name: array.shape for name, array in found.items()} == {name: array.shape for name, array in state.items()}
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "net.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: expected a state dict"):
        read_state_dict(tmp_path / "cut.safetensors")
    with pytest.raises(ConfigError, match=r"net\.pth: got a PyTorch checkpoint, expected torch"):
        read_state_dict(tmp_path / "net.pth")
