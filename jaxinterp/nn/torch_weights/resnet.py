"""ResNets: torchvision's and timm's names, and those of the CIFAR networks with shortcuts of option A.

Blocks are `layer<stage>.<place>`, both counted there from 1 and from 0, here through all stages from 0. A block's
convolutions are `conv1`, `conv2` and `conv3` with `bn1`, `bn2` and `bn3`, its projection `downsample.0` and `.1`.

Source: torchvision/models/resnet.py; the CIFAR networks of github.com/akamaster/pytorch_resnet_cifar10, whose
classifier is `linear`, and of github.com/kuangliu/pytorch-cifar, whose projection is `shortcut`.
"""

import re
from typing import Any

from jaxinterp.nn.baselines import CifarResNet, ResNet
from jaxinterp.nn.torch_weights.state_dict import Architecture, shape_of
from jaxinterp.nn.weights import Arrays


def _unit(ours: str, conv: str, norm: str) -> dict[str, str]:
    return {f"{ours}/conv": conv, f"{ours}/norm": norm}


def _block(ours: str, theirs: str, convolutions: int) -> dict[str, str]:
    """Return the names of a block's layers; a projection that it does not have is not asked for."""
    names = _unit(f"{ours}/shortcut", f"{theirs}.downsample.0", f"{theirs}.downsample.1")
    for i in range(convolutions):
        names |= _unit(f"{ours}/conv_{i}", f"{theirs}.conv{i + 1}", f"{theirs}.bn{i + 1}")
    return names


def names(network: ResNet) -> dict[str, str]:
    """Return our layers' paths to torchvision's names."""
    found = _unit("stem", "conv1", "bn1") | {"classifier": "fc"}
    for number, (stage, i) in enumerate(network.blocks):
        found |= _block(f"block_{number}", f"layer{stage + 1}.{i}", 3 if network.bottleneck else 2)
    return found


def cifar_names(network: CifarResNet) -> dict[str, str]:
    """Return our layers' paths to the names of the networks with shortcuts of option A."""
    found, per_stage = _unit("trunk/stem", "conv1", "bn1") | {"classifier": "linear"}, (network.depth - 2) // 6
    for number in range(3 * per_stage):
        stage, i = divmod(number, per_stage)
        found |= _block(f"trunk/block_{number}", f"layer{stage + 1}.{i}", 2)
    return found


def _stages(arrays: Arrays) -> tuple[int, ...]:
    """Return the number of blocks of every stage, by their names."""
    blocks = {match.groups() for name in arrays if (match := re.match(r"layer(\d+)\.(\d+)\.conv1\.weight$", name))}
    counts = [sum(stage == str(s) for stage, _ in blocks) for s in range(1, len(blocks) + 1)]
    return tuple(count for count in counts if count)


def _is_resnet(arrays: Arrays) -> bool:
    return "conv1.weight" in arrays and "layer1.0.conv1.weight" in arrays


def _is_option_a(arrays: Arrays) -> bool:
    """Whether there are three equal stages of basic blocks without any projection."""
    stages = _stages(arrays)
    projected = any(re.search(r"\.(downsample|shortcut)\.", name) for name in arrays)
    return len(stages) == 3 and len(set(stages)) == 1 and not projected and "layer1.0.conv3.weight" not in arrays


def renamed(arrays: Arrays) -> Arrays:
    """Return arrays with torchvision's names in place of `shortcut` and `linear`."""
    names = {name: re.sub(r"^linear\.", "fc.", re.sub(r"\.shortcut\.", ".downsample.", name)) for name in arrays}
    return {names[name]: array for name, array in arrays.items()}


def network(arrays: Arrays, fields: dict[str, Any]) -> ResNet:
    """Return the network of these shapes; a stem of 3×3 pixels is that of small images, without pooling."""
    arrays = renamed(arrays)
    width, _, side, _ = shape_of(arrays, "conv1.weight", 4)
    inner, _, _, _ = shape_of(arrays, "layer1.0.conv1.weight", 4)
    _, group, _, _ = shape_of(arrays, "layer1.0.conv2.weight", 4)
    groups, bottleneck = max(1, inner // group), "layer1.0.conv3.weight" in arrays
    found: dict[str, Any] = {"stages": _stages(arrays), "classes": shape_of(arrays, "fc.weight", 2)[0]}
    found |= {"bottleneck": bottleneck, "width": width, "stem": (7, 2) if side == 7 else (side, 1)}
    if bottleneck:
        found |= {"groups": groups, "group_width": inner * 64 // (width * groups)}
    return ResNet(**found | fields)


def cifar(arrays: Arrays, fields: dict[str, Any]) -> CifarResNet:
    """Return the CIFAR network of these shapes."""
    width, *_ = shape_of(arrays, "conv1.weight", 4)
    classes, _ = shape_of(arrays, "linear.weight", 2)
    return CifarResNet(**{"depth": 2 * sum(_stages(arrays)) + 2, "classes": classes, "width": width} | fields)


RESNET = Architecture("a ResNet", ResNet, _is_resnet, network, names, before=renamed)
CIFAR = Architecture(
    "a CIFAR ResNet",
    CifarResNet,
    lambda arrays: _is_resnet(arrays) and _is_option_a(arrays),
    cifar,
    cifar_names,
    pools=False,
)
