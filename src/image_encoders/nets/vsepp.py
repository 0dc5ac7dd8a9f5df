"""The nets of VSE++: VGG19 or ResNet-152 for images, a GRU for captions, into one space.

Module names follow the released checkpoints, without the `module.` that DataParallel puts into them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ImageTower(nn.Module):
    """Images into the space: a CNN, then a linear layer.

    cnn: images (B, 3, H, W) -> features (B, F); None: the inputs are features (B, F) that were computed before,
        which the original takes to be of unit length and does not normalise again
    features: F
    normalise: embeddings of unit length
    absolute: embeddings without signs, as order embeddings have them
    """

    def __init__(self, cnn: nn.Module | None, features: int, dim: int, normalise: bool, absolute: bool):
        super().__init__()
        if cnn is not None:
            self.cnn = cnn
        self.fc = nn.Linear(features, dim)
        self._images = cnn is not None
        self._normalise, self._absolute = normalise, absolute

    def forward(self, x: Tensor) -> Tensor:
        if self._images:
            x = unit(self.cnn(x))  # (B, F); it matters, because fc has a bias
        embeddings = self.fc(x)
        if self._normalise:
            embeddings = unit(embeddings)
        return embeddings.abs() if self._absolute else embeddings


class CaptionTower(nn.Module):
    """Captions (B, L) int64, all of length L with <start> and <end>, into the space: unit embeddings (B, dim)."""

    def __init__(self, words: int, word_dim: int, dim: int, layers: int, absolute: bool):
        super().__init__()
        # Not filled: nn.Embedding(words, word_dim) would, and on the meta device that imports 75 MB of torch.
        self.embed = nn.Embedding.from_pretrained(torch.empty(words, word_dim))
        self.rnn = nn.GRU(word_dim, dim, layers, batch_first=True)
        self._absolute = absolute

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.rnn(self.embed(ids))  # (B, L, dim)
        embeddings = unit(states[:, -1])
        return embeddings.abs() if self._absolute else embeddings


def unit(x: Tensor) -> Tensor:
    """Embeddings divided by their length. No epsilon, as in the original: an embedding of zeros becomes NaN."""
    return x / x.pow(2).sum(dim=1, keepdim=True).sqrt()


class Vgg19(nn.Module):
    """VGG19 up to the second activation of its classifier: (B, 3, H, W), H and W >= 32 -> (B, hidden).

    width: channels of the first stage
    Source: torchvision's vgg19 (BSD-3-Clause), whose module numbers the checkpoints carry.
    """

    def __init__(self, width: int = 64, hidden: int = 4096):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for factor, convolutions in ((1, 2), (2, 2), (4, 4), (8, 4), (8, 4)):
            for _ in range(convolutions):
                layers += [nn.Conv2d(channels, factor * width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = factor * width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(7)  # does nothing to images of 224 x 224
        self.classifier = nn.Sequential(
            nn.Linear(channels * 7 * 7, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class ResNet152(nn.Module):
    """ResNet-152 up to its pooled features: (B, 3, H, W) -> (B, 2048).

    Source: torchvision's resnet152 (BSD-3-Clause): the stride sits in the 3 x 3 convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, 3, stride=1)
        self.layer2 = _stage(256, 128, 8, stride=2)
        self.layer3 = _stage(512, 256, 36, stride=2)
        self.layer4 = _stage(1024, 512, 3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.avgpool(x).flatten(1)


def _stage(channels: int, inner: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels, inner, stride)
    return nn.Sequential(first, *(Bottleneck(4 * inner, inner, 1) for _ in range(blocks - 1)))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions around a shortcut: channels -> 4 * inner, sides divided by `stride`."""

    def __init__(self, channels: int, inner: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * inner)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or channels != 4 * inner:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels, 4 * inner, 1, stride=stride, bias=False), nn.BatchNorm2d(4 * inner)
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)
