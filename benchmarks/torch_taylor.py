"""The overlapping TaylorNet in PyTorch, its orders by nested derivatives; the baselines of benchmarks/taylor.py."""

from collections.abc import Mapping
from math import factorial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from jaxinterp.taylor.network import TaylorNet


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(array))


class Net(torch.nn.Module):
    """Levels of cp units of order 2 on shared blocks, and a linear head; channels first."""

    def __init__(self, model: TaylorNet, variables: Mapping[str, Any]):
        """Copy our parameters; the factors of a level are one convolution."""
        super().__init__()
        params = variables["params"]
        self.levels = model.levels
        self.size, self.scale = model.size, model.scale
        self.register_buffer("point", _tensor(variables["batch_stats"]["expansion_point"]).permute(2, 0, 1))
        self.factors, self.outs = torch.nn.ModuleList(), torch.nn.ModuleList()
        for i, level in enumerate(model.levels):
            unit = params[f"level_{i}"]["unit"]
            kernels = [np.asarray(unit[name]) for name in ("linear", "factor_2_1", "factor_2_2")]
            stacked = np.concatenate(kernels, 1)
            channels = len(stacked) // level.side**2
            factors = torch.nn.Conv2d(
                channels, stacked.shape[1], level.side, level.stride, (level.side - level.stride) // 2
            )
            bias = np.zeros(stacked.shape[1], np.float32)
            bias[: level.features] = np.asarray(unit["bias"])
            weight = stacked.reshape(level.side, level.side, channels, -1).transpose(3, 2, 0, 1)
            factors.weight.data, factors.bias.data = _tensor(weight).contiguous(), _tensor(bias)  # type: ignore[union-attr]
            out = torch.nn.Conv2d(level.rank or level.features, level.features, 1, bias=False)
            out.weight.data = _tensor(np.asarray(unit["out_2"]).T[:, :, None, None]).contiguous()
            self.factors.append(factors)
            self.outs.append(out)
        head = params["head"]
        self.head = torch.nn.Linear(*np.asarray(head["linear"]).shape)
        self.head.weight.data, self.head.bias.data = _tensor(np.asarray(head["linear"]).T), _tensor(head["bias"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute logits, (N, classes), of images (N, C, H, W)."""
        z = (x - self.point) / self.scale
        pad = ((self.size or z.shape[-1]) - z.shape[-1]) // 2
        z = F.pad(z, (pad, pad, pad, pad))
        for level, factors, out in zip(self.levels, self.factors, self.outs, strict=True):
            rank = level.rank or level.features
            linear, a, b = factors(z).split((level.features, rank, rank), 1)
            z = linear + out(a * b)
        return self.head(z.permute(0, 2, 3, 1).flatten(1))


def orders(net: Net, x: torch.Tensor, max_order: int) -> torch.Tensor:
    """Compute f_0, …, f_max_order: derivatives of t ↦ f(x0 + t (x − x0)) over m!, by nested `torch.func.jvp`."""
    start = net.point.expand_as(x)
    step = x - start

    def line(t: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (net(start + t * step),)

    def differentiated(function: Any) -> Any:
        def with_next(t: torch.Tensor) -> tuple[torch.Tensor, ...]:
            values, slopes = torch.func.jvp(function, (t,), (torch.ones_like(t),))
            return (*values, slopes[-1])

        return with_next

    function: Any = line
    for _ in range(max_order):
        function = differentiated(function)
    with torch.no_grad():
        derivatives = function(torch.zeros((), device=x.device))
    return torch.stack([value / factorial(m) for m, value in enumerate(derivatives)])
