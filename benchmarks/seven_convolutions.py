"""The definition file of the custom model that is measured: seven convolutions, from 224 x 224 to 28 x 28."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

WIDTHS = (3, 32, 64, 64, 128, 128, 256, 256)


class SevenConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        for number, (before, after) in enumerate(pairwise(WIDTHS)):
            convolution = nn.Conv2d(before, after, 3, padding=1, stride=1 + number % 2)
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")  # else images are the same at the end
            self.features.add_module(f"conv{number}", convolution)
            self.features.add_module(f"relu{number}", nn.ReLU())
        self.classifier = nn.Linear(WIDTHS[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))
