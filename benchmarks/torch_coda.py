"""The CoDA S net in PyTorch with explicit dynamic weights, as the paper states it: what benchmarks/coda.py compares."""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812


class ExplicitCoDA(torch.nn.Module):
    """Every layer forms w = g(A B x + b) at every position and multiplies it with the patch (CVPR 2021, Eq. 1-4)."""

    def __init__(self, layers: list[tuple[int, int, int, int]], temperature: float, logit_bias: float):
        """Layers are (features, rank, kernel, stride); input has 6 channels."""
        super().__init__()
        self.layers, self.temperature, self.logit_bias = layers, temperature, logit_bias
        self.parts = torch.nn.ParameterList()
        self.frozen = False
        channels = 6
        for features, rank, kernel, _ in layers:
            d = channels * kernel**2
            for shape in ((rank, channels, kernel, kernel), (d * features, rank, 1, 1), (d * features,)):
                self.parts.append(torch.nn.Parameter(torch.zeros(shape)))
            channels = features

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Take parameters in the authors' layout, in the order B, A, b of every layer."""
        with torch.no_grad():
            for part, value in zip(self.parts, state.values(), strict=True):
                part.copy_(torch.from_numpy(np.array(value)).reshape(part.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, classes) of encoded images (N, 6, H, W)."""
        for i, (features, _, kernel, stride) in enumerate(self.layers):
            B, A, b = self.parts[3 * i : 3 * i + 3]
            padding = (kernel - 1) // 2
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
                v = F.conv2d(F.conv2d(x, B, stride=stride, padding=padding), A, b)
                n, _, height, width = v.shape
                v = v.reshape(n, -1, features, height, width)
                norm = v.norm(dim=1)
            patches = F.unfold(x, kernel, padding=padding, stride=stride).reshape(n, -1, 1, height, width)
            x = (patches * v).sum(1) * norm / (1 + norm**2)
        return x.sum((2, 3)) / self.temperature + self.logit_bias
