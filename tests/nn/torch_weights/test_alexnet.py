"""Weights of PyTorch's AlexNet: structure, order, logits; foreign parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinterp.errors import ConfigError
from jaxinterp.nn.baselines import AlexNet
from jaxinterp.nn.torch_weights import from_torch
from jaxinterp.nn.torch_weights.alexnet import NAMES


def params_of(state_dict):
    return from_torch(state_dict, SMALL)[1]["params"]


def changed(state_dict, name, array=None):
    return {k: v for k, v in state_dict.items() if k != name} | ({} if array is None else {name: array})


SMALL = AlexNet(5, (3, 4, 6, 5, 4), kernel=7, strides=2, padding=3, hidden=10, side=2)
SHAPES = {
    "conv_0": (3, 3, 7, 7),
    "conv_1": (4, 3, 5, 5),
    "conv_2": (6, 4, 3, 3),
    "conv_3": (5, 6, 3, 3),
    "conv_4": (4, 5, 3, 3),
    "dense_0": (10, 16),
    "dense_1": (10, 10),
    "classifier": (5, 10),
}


@pytest.fixture(scope="module")
def alexnet_state():
    rng = np.random.default_rng(0)
    state = {}
    for ours, shape in SHAPES.items():
        scale = (2 / np.prod(shape[1:])) ** 0.5
        state[f"{NAMES[ours]}.weight"] = (scale * rng.standard_normal(shape)).astype(np.float32)
        state[f"{NAMES[ours]}.bias"] = rng.standard_normal(shape[:1]).astype(np.float32)
    return state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_alexnets_params_have_the_nets_own_structure_and_order(alexnet_state, prefix):
    params = params_of({prefix + name: array for name, array in alexnet_state.items()})
    expected = jax.eval_shape(SMALL.init, jax.random.key(0), jnp.zeros((1, 46, 46, 3)))["params"]
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), expected)
    dense, filters = alexnet_state["classifier.1.weight"], alexnet_state["features.3.weight"]
    for channel, y, x in [(0, 0, 0), (1, 0, 1), (3, 1, 0)]:
        ours, theirs = (y * 2 + x) * 4 + channel, (channel * 2 + y) * 2 + x
        np.testing.assert_array_equal(params["dense_0"]["kernel"][ours], dense[:, theirs])
    assert params["conv_1"]["kernel"][1, 4, 2, 3] == filters[3, 2, 1, 4]


@pytest.mark.parametrize("size", [46, 80, 61])
def test_converted_alexnet_gives_torchs_logits(alexnet_state, size):
    torch = pytest.importorskip("torch")
    from torch import nn

    def conv(inputs, outputs, kernel, **fields):
        return nn.Conv2d(inputs, outputs, kernel, **fields), nn.ReLU()

    class Net(nn.Module):
        """The layout of torchvision/models/alexnet.py."""

        def __init__(self):
            super().__init__()
            pool = lambda: nn.MaxPool2d(3, 2)  # noqa: E731
            self.features = nn.Sequential(
                *conv(3, 3, 7, stride=2, padding=3),
                pool(),
                *conv(3, 4, 5, padding=2),
                pool(),
                *conv(4, 6, 3, padding=1),
                *conv(6, 5, 3, padding=1),
                *conv(5, 4, 3, padding=1),
                pool(),
            )
            self.avgpool = nn.AdaptiveAvgPool2d((2, 2))
            self.classifier = nn.Sequential(
                nn.Dropout(), nn.Linear(16, 10), nn.ReLU(), nn.Dropout(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 5)
            )

        def forward(self, x):
            return self.classifier(self.avgpool(self.features(x)).flatten(1))

    net = Net().eval()
    net.load_state_dict({name: torch.from_numpy(array) for name, array in alexnet_state.items()})
    images = np.random.default_rng(1).random((2, size, size, 3), np.float32)
    with torch.no_grad():
        expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    logits = jax.jit(SMALL.apply)({"params": params_of(net.state_dict())}, jnp.asarray(images))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"features.1.weight": np.zeros(3)}, "unknown features.1.weight"),
        (lambda s: changed(s, "features.10.bias"), "missing features.10.bias"),
        (lambda s: {}, "missing features.0.weight, .* and 11 more"),
        (lambda s: s | {"module.features.0.bias": np.zeros(3)}, "given twice .*module.features.0.bias"),
        (lambda s: changed(s, "features.0.weight", np.zeros((3, 147))), "features.0.weight"),
        (lambda s: changed(s, "features.6.weight", np.zeros((6, 4, 5, 5))), "features.6.weight"),
        (lambda s: changed(s, "features.3.bias", np.zeros(3)), "features.3.bias"),
        (lambda s: changed(s, "classifier.1.weight", np.zeros((10, 20))), "classifier.1.weight"),
        (lambda s: changed(s, "classifier.4.weight", np.zeros((8, 10))), "classifier.4.weight"),
        (lambda s: changed(s, "classifier.6.weight", np.zeros(())), "classifier.6.weight"),
    ],
)
def test_foreign_alexnet_parameters_are_refused_in_one_line(alexnet_state, change, message):
    with pytest.raises(ConfigError, match=message) as error:
        params_of(change(dict(alexnet_state)))
    assert "\n" not in str(error.value)
