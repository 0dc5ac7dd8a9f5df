"""ESResNeXt-FBSP, the audio side of AudioCLIP: a learned time-frequency transform, then a ResNeXt with attention.

Source: https://github.com/AndreyGuzhov/AudioCLIP model/esresnet/ and utils/transforms.py @ 45327aa (MIT);
paper: Guzhov et al., "ESResNe(X)t-fbsp", https://arxiv.org/abs/2104.11587.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATE = 44_100  # [Hz]
WINDOW = 1654  # samples in a frame = 37.5 ms
HOP = 561  # samples between frames = 12.7 ms
N_FFT = 2048  # samples under a kernel; a frame is centred in it
BINS = N_FFT // 2 + 1
BANDS = 3  # the bins are cut into this many bands, which become the image's channels
BAND_BINS = BINS // BANDS  # 341: the two highest bins are left out
POWER_FLOOR = 1e-18  # replaces a power that is not positive
TINY = 1e-8
CHUNK = 1 << 22  # samples that go through the convolutions at once, 95 s of sound: bounds memory at about 1 GB
EXPANSION = 4

Norm = Callable[[int], nn.Module]


class ItemNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of each item by itself, in place of the running ones.

    Equal to batch norm in training mode over a batch that holds one item, once or several times.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] * x.shape[3] == 1:  # a single value is its own mean: only the bias is left
            return self.bias.view(1, -1, 1, 1).to(x.dtype).expand_as(x)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class FrequencyBSpline(nn.Module):
    """Complex frequency B-spline wavelets, one for every bin: a learned replacement for a Fourier transform.

    m: order of the spline; fb: bandwidth; fc: centre frequency, in bins
    """

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.Parameter(torch.zeros(BINS))
        self.fb = nn.Parameter(torch.ones(BINS))
        self.fc = nn.Parameter(torch.tensor(range(BINS), dtype=torch.float32))
        self.bias = nn.Parameter(torch.zeros(0))  # the checkpoints hold an empty one

    def kernels(self, bins: slice) -> Tensor:
        """(2, bins, N_FFT): the real and the imaginary kernels of some bins.

        Every rounding is the original's: the same operations on float32 in the same order.
        """
        time = math.pi * torch.linspace(-1.0, 1.0, N_FFT, dtype=self.fc.dtype, device=self.fc.device) + TINY
        m, fb, fc = (parameter[bins, None] for parameter in (self.m, self.fb, self.fc))
        wave_real, wave_imaginary = torch.cos(fc * time), -torch.sin(fc * time)
        x = fb * time / (m + TINY)
        sinc = torch.where(x == 0, torch.ones_like(x), torch.sin(x) / x)
        # sinc ** m, complex where sinc is negative
        magnitude = (((sinc**2) ** 0.5) ** 2) ** (0.5 * m)
        phase = torch.atan2(torch.zeros_like(sinc), sinc)
        real, imaginary = magnitude * torch.cos(m * phase), magnitude * torch.sin(m * phase)
        kernels = torch.stack(
            [real * wave_real - imaginary * wave_imaginary, real * wave_imaginary + imaginary * wave_real]
        )
        return fb.sqrt() * kernels / N_FFT**0.5


class Bottleneck(nn.Module):
    """ResNeXt's block: 1x1, grouped 3x3 (which carries the stride), 1x1."""

    def __init__(self, inputs: int, width: int, outputs: int, stride: int, groups: int, norm: Norm):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y.add_(shortcut), inplace=True)


class Attention(nn.Module):
    """Weights in (0, 1) for a stage's output, from the stage's input pooled to the output's size."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int], norm: Norm):
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv_depth = nn.Conv2d(inputs, inputs, kernel, padding=padding, groups=inputs)
        self.conv_point = nn.Conv2d(inputs, outputs, 1)
        self.bn = norm(outputs)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = F.adaptive_max_pool2d(x, size)
        return torch.sigmoid(self.bn(self.conv_point(self.conv_depth(x))))


class ESResNeXt(nn.Module):
    """Sounds at 44.1 kHz, (B, T) or (B, channels, T) float32 in [-32768, 32767] -> embeddings (B, dim).

    The features of several channels are summed. Embeddings do not depend on the other sounds of a batch: the
    spectrogram, whose logarithm turns the rounding noise of silence into signal, is computed for each sound by itself.

    layers: blocks per stage; (3, 4, 6, 3) is the original
    width: channels after the stem; stage i has 2 ** i * 2 * width inside a block and 2 ** i * 4 * width after it
    per_item: batch norm by each item's own statistics, in place of the running ones
    """

    window: Tensor
    kernels: Tensor

    def __init__(
        self,
        layers: Sequence[int] = (3, 4, 6, 3),
        width: int = 64,
        groups: int = 32,
        dim: int = 1024,
        per_item: bool = False,
    ):
        super().__init__()
        norm = ItemNorm2d if per_item else nn.BatchNorm2d
        self.register_buffer("window", torch.ones(WINDOW))
        self.fbsp = FrequencyBSpline()
        self.conv1 = nn.Conv2d(BANDS, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        outputs = [width * EXPANSION * 2**i for i in range(4)]
        inputs = [width, *outputs]
        for i, blocks in enumerate(layers):
            inside = width * 2 ** (i + 1)  # 4 channels a group for each 64 of the plain ResNet's, times 32 groups
            stage = [Bottleneck(inputs[i], inside, outputs[i], 2 if i else 1, groups, norm)]
            stage += [Bottleneck(outputs[i], inside, outputs[i], 1, groups, norm) for _ in range(blocks - 1)]
            kernel = (1, 5) if i % 2 else (3, 1)
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            setattr(self, f"att{i + 1}", Attention(inputs[i], outputs[i], kernel, norm))
        self.att5 = Attention(outputs[3], outputs[3], (3, 5), norm)
        self.fc = nn.Linear(outputs[3], dim)
        self.register_buffer("kernels", None, persistent=False)
        if not self.window.is_meta:
            self._fold()
        self.register_load_state_dict_post_hook(ESResNeXt._fold)

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None] if x.ndim == 2 else x  # (B, channels, T)
        parts = x.split(max(1, CHUNK // x[0].numel()))
        return torch.cat([self.fc(self.features(self.spectrograms(part))) for part in parts])

    def spectrograms(self, x: Tensor) -> Tensor:
        """Power in decibels: (B, channels, T) -> (B, channels, BANDS, BAND_BINS, frames), always in float32."""
        with torch.autocast(x.device.type, enabled=False):
            return torch.stack([self._spectrogram(one) for one in x.float()])

    def _spectrogram(self, x: Tensor) -> Tensor:
        x = ((x + 32768.0) * 2.0) / 65535.0 - 1.0  # this order of roundings: [-1, 1] samples keep 9 bits, as originally
        missing = (frame_count(x.shape[-1]) - 1) * HOP + WINDOW - x.shape[-1]
        x = F.pad(x, (missing // 2, missing - missing // 2))
        frames = x.unfold(-1, WINDOW, HOP) * self.window  # (channels, frames, WINDOW)
        spectrum = F.linear(frames, self.kernels).transpose(-1, -2)  # (channels, real and imaginary bins, frames)
        real, imaginary = spectrum.chunk(2, dim=-2)
        power = real**2 + imaginary**2
        power = torch.where(power > 0, power, torch.full_like(power, POWER_FLOOR))
        return (10.0 * torch.log10(power)).unflatten(-2, (BANDS, BAND_BINS))

    def features(self, spectrograms: Tensor) -> Tensor:
        """(B, channels, BANDS, BAND_BINS, frames) -> (B, 32 * width): pooled, the channels' added."""
        x = spectrograms.flatten(0, 1)
        x = self.maxpool(F.relu(self.bn1(self.conv1(x)), inplace=True))
        for i in range(1, 5):
            y = getattr(self, f"layer{i}")(x)
            x = y * getattr(self, f"att{i}")(x, y.shape[-2:])
        pooled = x.mean((2, 3), keepdim=True) * self.att5(x, (1, 1))
        return pooled.flatten(1).unflatten(0, spectrograms.shape[:2]).sum(1)

    def _fold(self, *_: Any) -> None:
        """Bring `kernels` up to date: only what meets a frame's samples, of the bins that are used."""
        left = (N_FFT - WINDOW) // 2
        step = BAND_BINS // 11  # a few bins at a time, for the memory
        with torch.no_grad():
            parts = [
                self.fbsp.kernels(slice(first, first + step))[:, :, left : left + WINDOW]
                for first in range(0, BANDS * BAND_BINS, step)
            ]
            self.kernels = torch.cat(parts, dim=1).flatten(0, 1)  # (2 * BANDS * BAND_BINS, WINDOW)


def frame_count(samples: int) -> int:
    """How many frames cover so many samples; the last one may need zeros."""
    return 1 + max(0, math.ceil((samples - WINDOW) / HOP))
