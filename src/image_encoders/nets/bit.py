"""The BiT net: a pre-activation ResNet with group norms, its convolutions standardised beforehand.

`standardize` is applied to every kernel once, when a checkpoint is read; the net itself has plain convolutions.
The original standardises in every forward pass, with the same result.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
NORM_EPS = 1e-5
KERNEL_EPS = 1e-10  # under the root; 1e-8 already changes embeddings where a kernel's values are small
EXPANSION = 4  # a unit's output channels for each of its inner ones


def standardize(kernel: Tensor) -> Tensor:
    """A kernel as the convolution uses it: each output channel's weights with mean 0 and variance 1.

    kernel: (O, I, h, w) float32, contiguous; overwritten
    Source: the variance is the biased one, as in bit_pytorch/models.py of google-research/big_transfer.
    """
    flat = kernel.view(len(kernel), -1)
    flat -= flat.mean(dim=1, keepdim=True)
    variance = torch.linalg.vector_norm(flat, dim=1, keepdim=True).square() / flat.shape[1]  # 6 times as fast as `var`
    flat /= torch.sqrt(variance + KERNEL_EPS)
    return kernel


class Root(nn.Module):
    """The stem: (B, 3, H, W) -> (B, C, about H/4, about W/4)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        # Padded with zeros beforehand: a max pool's own padding is -inf, and the values are signed here.
        return F.max_pool2d(F.pad(self.conv(x), (1, 1, 1, 1)), 3, stride=2)


class Step(nn.Module):
    """Group norm, ReLU, convolution."""

    def __init__(self, channels: int, out: int, size: int = 1, stride: int = 1):
        super().__init__()
        self.group_norm = nn.GroupNorm(GROUPS, channels, eps=NORM_EPS)
        self.conv = nn.Conv2d(channels, out, size, stride=stride, padding=size // 2, bias=False)

    def activated(self, x: Tensor) -> Tensor:
        return F.relu(self.group_norm(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.activated(x))


class FirstStep(Step):
    """The first step of a block's first unit, with the projection of the shortcut."""

    def __init__(self, channels: int, inner: int, out: int, stride: int):
        super().__init__(channels, inner)
        self.proj = nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, out, 1, stride=stride, bias=False)))


class Unit(nn.Module):
    """A bottleneck: 1x1, 3x3 (with the stride), 1x1, and the shortcut around them."""

    def __init__(self, channels: int, inner: int, stride: int, first: bool):
        super().__init__()
        out = inner * EXPANSION
        self.a = FirstStep(channels, inner, out, stride) if first else Step(channels, inner)
        self.b = Step(inner, inner, 3, stride)
        self.c = Step(inner, out)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.a.activated(x)
        shortcut = self.a.proj(activated) if isinstance(self.a, FirstStep) else x  # of the activated input
        return self.c(self.b(self.a.conv(activated))) + shortcut


class BiT(nn.Module):
    """Images (B, 3, H, W) of any size -> features (B, 32 * channels), means of non-negative maps.

    Inputs are in [-1, 1].

    units: how many in each of the four blocks, such as (3, 4, 6, 3)
    channels: of the stem, 64 times the width
    """

    def __init__(self, units: Sequence[int], channels: int):
        super().__init__()
        self.root_block = Root(channels)
        before = channels
        for b, count in enumerate(units):
            inner = channels << b
            block = nn.Sequential()
            for u in range(count):
                stride = 2 if b and not u else 1
                block.add_module(f"unit{u + 1:02}", Unit(before, inner, stride, first=not u))
                before = inner * EXPANSION
            self.add_module(f"block{b + 1}", block)
        self.blocks = len(units)
        self.group_norm = nn.GroupNorm(GROUPS, before, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.root_block(x)
        for b in range(self.blocks):
            x = self.get_submodule(f"block{b + 1}")(x)
        return F.relu(self.group_norm(x)).mean(dim=(2, 3))
