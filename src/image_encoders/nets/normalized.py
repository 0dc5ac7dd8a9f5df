"""Pixels to what a net was trained on, as the first step of the net."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """A net that also takes raw pixels.

    uint8 inputs (B, C, H, W) become (x / 255 - mean) / std, computed on the net's device;
    float inputs are already prepared and go straight on, or, with `unit_floats`, are in [0, 1] and become
    (x - mean) / std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float], unit_floats: bool = False):
        super().__init__()
        self.net = net
        self.unit_floats = unit_floats
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.uint8:
            x = (x.float() / 255 - self.mean) / self.std
        elif self.unit_floats:
            x = (x - self.mean) / self.std
        return self.net(x)
