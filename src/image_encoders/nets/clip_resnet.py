"""The image side of CLIP's ResNets: three stem convolutions, average pools instead of strides, attention pooling.

Source: https://github.com/openai/CLIP clip/model.py `ModifiedResNet` @ d50d76d (MIT), with float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPANSION = 4  # a bottleneck's outputs per channel of its 3x3 convolution


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; where the map is halved, an average pool does it, on both paths."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(self.pool(y)))
        shortcut = x if self.downsample is None else self.downsample(self.pool(x))
        return F.relu(y.add_(shortcut), inplace=True)


class AttentionPool(nn.Module):
    """A map as one vector: its mean attends to itself and to every position."""

    def __init__(self, side: int, width: int, heads: int, dim: int):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(nn.init.uniform_(torch.empty(side * side + 1, width), -0.1, 0.1))
        self.k_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)  # (B, H*W, C)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positional_embedding  # (B, 1 + H*W, C)
        query, key, value = (
            projected.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, tokens, C / heads)
            for projected in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, C / heads)
        return self.c_proj(pooled.flatten(1))  # (B, dim)


class ClipResNet(nn.Module):
    """Prepared images (B, 3, side, side) float32 -> embeddings (B, dim).

    layers: bottlenecks per stage; (3, 4, 6, 3) is RN50
    width: channels after the stem; the last stage has 32 times as many
    heads: of the attention pool
    """

    def __init__(self, layers: Sequence[int], width: int, heads: int, dim: int, side: int = 224):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)
        self.layer1 = _stage(width, width, layers[0], stride=1)
        self.layer2 = _stage(width * 4, width * 2, layers[1], stride=2)
        self.layer3 = _stage(width * 8, width * 4, layers[2], stride=2)
        self.layer4 = _stage(width * 16, width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool(side // 32, width * 32, heads, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        x = self.avgpool(x)  # (B, width, side / 4, side / 4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, 32 * width, side / 32, side / 32)
        return self.attnpool(x)


def _stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        Bottleneck(inputs, width, stride), *(Bottleneck(width * EXPANSION, width, 1) for _ in range(blocks - 1))
    )
