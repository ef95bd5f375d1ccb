"""Weights of PyTorch networks, from and to `nn.baselines`: torchvision's and timm's names, and those of CIFAR networks.

    network, variables = from_torch(read_state_dict("resnet50.pth"), **IMAGENET)
    state_dict = to_torch(network, variables)                       # numpy arrays under torchvision's names

One file for each family of architectures maps the paths of our layers to the names of theirs, and `state_dict.py` has
what they share: names, layouts, files. Networks of papers have a `torch_weights` of their own, in `coda` and `coded`.
"""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn

from jaxinterp.checks import require
from jaxinterp.nn.torch_weights import alexnet, resnet, vgg
from jaxinterp.nn.torch_weights.state_dict import converted, plain_arrays, read_state_dict, written

ARCHITECTURES = (resnet.CIFAR, resnet.RESNET, vgg.CIFAR, vgg.IMAGENET, alexnet.ALEXNET)
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Fields of networks that were trained on images standardized as torchvision does it."""

__all__ = ["ARCHITECTURES", "IMAGENET", "from_torch", "read_state_dict", "to_torch"]


def from_torch(
    state_dict: Mapping[str, Any], network: nn.Module | None = None, **fields: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Convert the parameters of a PyTorch network to those of one of `nn.baselines`; PyTorch is not needed.

    Names tell the architecture, shapes its depth, widths, groups and classes: torchvision's AlexNet, VGG-11 to -19
    (with and without BatchNorm), ResNet and ResNeXt, timm's plain ResNets, which have the same names, the CIFAR ResNets
    with shortcuts of option A (names `layer1.0.conv1`, …, `linear`) and the VGG of small images (names `features.0`, …,
    `classifier`). Logits agree with PyTorch's in evaluation mode; a network gets `ties="first"`, as PyTorch has it.

    Args:
        state_dict: names, with or without the prefixes `module.`, `model.` and `_orig_mod.` that wrappers leave, to
            arrays or tensors of any floating type.
        network: the network that they are of; what the names tell if None.
        **fields: further attributes of the network that is made, such as `**IMAGENET`.

    Returns:
        The network, and its variables, of float32 (float64 is kept under `jax.enable_x64`).

    Raises:
        ConfigError: no such network, or names are unknown, missing, given twice, or their arrays of a wrong shape or
            not floating: one line with the first few.

    Example:
        >>> import jax
        >>> from jaxinterp.nn.baselines import ResNet
        >>> net = ResNet.of(18, classes=3, width=4)
        >>> state_dict = to_torch(net, jax.jit(net.init)(jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3))))
        >>> state_dict["layer1.0.conv1.weight"].shape
        (4, 4, 3, 3)
        >>> from_torch(state_dict, ties="shared")[0] == net
        True
    """
    arrays = plain_arrays(state_dict)
    if network is not None:
        require(not fields, "fields", ", ".join(fields), "none beside a network, which has them")
        return network, converted(_of(network), network, arrays)
    found = next((one for one in ARCHITECTURES if one.recognizes(arrays)), None)
    if found is None:
        kinds = ", ".join(one.title for one in ARCHITECTURES)
        require(False, "state_dict", f"names such as {', '.join(list(arrays)[:3]) or 'none'}", f"those of {kinds}")
    assert found is not None
    network = found.network(arrays, {"ties": "first", **fields} if found.pools else fields)
    return network, converted(found, network, arrays)


def to_torch(network: nn.Module, variables: Mapping[str, Any], tensors: bool = False) -> dict[str, Any]:
    """Convert the variables of one of `nn.baselines` to PyTorch's names and layouts, the inverse of `from_torch`.

    Args:
        network: an AlexNet, VGG, ImageNetVGG, ResNet or CifarResNet.
        variables: its variables.
        tensors: torch tensors, which `load_state_dict` takes, in place of numpy arrays; needs PyTorch.

    Returns:
        Names to arrays of float32 or float64, with BatchNorm's counters, which are 0.
    """
    state_dict = written(_of(network), network, variables)
    if not tensors:
        return state_dict
    import torch

    return {name: torch.from_numpy(array) for name, array in state_dict.items()}


def _of(network: nn.Module) -> Any:
    """Return the architecture of a network."""
    found = next((one for one in ARCHITECTURES if type(network) is one.kind), None)
    kinds = ", ".join(one.kind.__name__ for one in ARCHITECTURES)
    require(found is not None, "network", f"a {type(network).__name__}", f"one of {kinds}")
    return found
