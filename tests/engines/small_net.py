"""A small net, and how an image becomes its input."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Images (B, 3, 16, 16) -> (B, 12)."""

    def __init__(self, seed: int = 0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = nn.Conv2d(3, 24, 4, stride=4)
            self.fc = nn.Linear(24 * 16, 12)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x.float() / 255 - 0.5)).flatten(1))


def small_input(image: np.ndarray) -> np.ndarray:
    """The image's upper left corner: (3, 16, 16) uint8."""
    return np.ascontiguousarray(image[:16, :16].transpose(2, 0, 1))
