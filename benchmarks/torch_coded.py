"""Coded blocks in PyTorch as the paper states them, and the baseline ResNeXt; the baselines of benchmarks/coded.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from jaxinterp.coded.network import CodedResNeXt


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


class Block(torch.nn.Module):
    """One block; where `coded`, every t_n is formed by a grouped 1×1 convolution, normalized and summed."""

    def __init__(self, params: Mapping[str, Any], stride: int, coded: bool):
        """Take our parameters; `expand_kernel` is (N, d, C)."""
        super().__init__()
        self.paths, width, self.features = params["expand_kernel"].shape
        inner = self.paths * width
        channels = params["reduce"]["kernel"].shape[0]
        self.coded = coded
        self.reduce = torch.nn.Conv2d(channels, inner, 1, bias=False)
        self.inner = torch.nn.Conv2d(inner, inner, 3, stride, 1, groups=self.paths, bias=False)
        groups = self.paths if coded else 1
        self.expand = torch.nn.Conv2d(inner, self.features * groups, 1, groups=groups, bias=False)
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(n) for n in (inner, inner, self.features))
        expand = np.asarray(params["expand_kernel"])
        stacked = expand.swapaxes(1, 2).reshape(-1, width) if coded else expand.reshape(inner, -1).T
        weights = {
            self.reduce: np.asarray(params["reduce"]["kernel"]).T[:, :, None, None],
            self.inner: np.asarray(params["inner_kernel"]).transpose(3, 2, 0, 1),
            self.expand: stacked[:, :, None, None],
        }
        self.skip = None
        if "skip" in params:
            self.skip = torch.nn.Conv2d(channels, self.features, 1, stride, bias=False)
            self.skip_norm = torch.nn.BatchNorm2d(self.features)
            weights[self.skip] = np.asarray(params["skip"]["kernel"]).T[:, :, None, None]
        for module, weight in weights.items():
            module.weight = torch.nn.Parameter(_tensor(weight))
        for norm, name in zip(self.norms, ("norm_reduce", "norm_inner", "norm_expand"), strict=True):
            norm.weight = torch.nn.Parameter(_tensor(params[name]["scale"]))
            norm.bias = torch.nn.Parameter(_tensor(params[name]["bias"]))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The output, and the energies (N, paths) of a coded block (arXiv 2202.05343, Eq. 2, 3)."""
        u = F.relu(self.norms[0](self.reduce(x)))
        u = F.relu(self.norms[1](self.inner(u)))
        y, energies = self.expand(u), None
        if self.coded:
            t = y.reshape(len(y), self.paths, self.features, *y.shape[2:])
            energies = (t**2).mean((2, 3, 4))
            rho = energies.mean(1).sqrt()
            y = (t / rho[:, None, None, None, None]).sum(1)
        y = self.norms[2](y)
        shortcut = x if self.skip is None else self.skip_norm(self.skip(x))
        return F.relu(y + shortcut), energies


class ResNeXt(torch.nn.Module):
    """The network of our parameters without codes: stem, blocks, pooling, a linear head."""

    def __init__(self, model: CodedResNeXt, params: Mapping[str, Any]):
        """Take our parameters."""
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.stem.weight = torch.nn.Parameter(_tensor(np.asarray(params["stem"]["kernel"]).transpose(3, 2, 0, 1)))
        self.norm = torch.nn.BatchNorm2d(64)
        blocks = (Block(params[f"block_{i}"], stride, False) for i, (_, stride) in enumerate(model.blocks, 1))
        self.blocks = torch.nn.ModuleList(blocks)
        self.head = torch.nn.Parameter(_tensor(params["classifier"]["kernel"]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of (N, 3, H, W)."""
        x = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)[0]
        return x.mean((2, 3)) @ self.head
