"""The audio net: its transform against the definition, its norms, its independence of neighbours."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from image_encoders.nets import esresnext
from image_encoders.nets.esresnext import BAND_BINS, BANDS, HOP, N_FFT, RATE, WINDOW, ESResNeXt, ItemNorm2d


def small(**options) -> ESResNeXt:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return ESResNeXt((1, 1, 1, 1), width=8, groups=2, dim=16, **options).eval()


@pytest.fixture(scope="module")
def net() -> ESResNeXt:
    return small()


def noise(*shape: int, seed: int = 0, scale: float = 8000.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32))


@pytest.mark.parametrize(
    ("samples", "frames"),
    [(1, 1), (WINDOW - 1, 1), (WINDOW, 1), (WINDOW + 1, 2), (WINDOW + HOP, 2), (WINDOW + HOP + 1, 3), (220_500, 392)],
)
def test_frames_cover_every_sample(net, samples, frames):
    with torch.inference_mode():
        decibels = net.spectrograms(noise(1, 1, samples))
    assert decibels.shape == (1, 1, BANDS, BAND_BINS, frames)
    assert torch.isfinite(decibels).all()


def test_untrained_kernels_are_a_fourier_transform(net):
    # Order 0 and bandwidth 1 leave a complex wave of fc turns under each kernel, divided by the root of its length.
    time = math.pi * np.linspace(-1, 1, N_FFT)
    left = (N_FFT - WINDOW) // 2
    bins = np.arange(BANDS * BAND_BINS)[:, None]
    wanted = np.exp(-1j * bins * time)[:, left : left + WINDOW] / math.sqrt(N_FFT)
    real, imaginary = net.kernels.numpy().reshape(2, BANDS * BAND_BINS, WINDOW)
    np.testing.assert_allclose(real, wanted.real, atol=1e-5)
    np.testing.assert_allclose(imaginary, wanted.imag, atol=1e-5)


def test_the_spectrogram_is_the_power_in_decibels_of_windowed_frames():
    net = small()
    window = torch.hann_window(WINDOW)
    state = net.state_dict()
    state["window"] = window
    state["fbsp.m"] = torch.rand(esresnext.BINS) * 2
    state["fbsp.fb"] = torch.rand(esresnext.BINS) + 0.5
    net.load_state_dict(state)
    samples = noise(WINDOW + HOP + 100)
    with torch.inference_mode():
        found = net.spectrograms(samples[None, None])[0, 0].numpy()
    # The same in float64: 461 zeros missing to three frames, 230 of them in front.
    scaled = np.pad((samples.double().numpy() + 32768) * 2 / 65535 - 1, (230, 231))
    time = math.pi * np.linspace(-1, 1, N_FFT) + 1e-8
    m, fb, fc = (state[f"fbsp.{name}"].double().numpy()[:1023, None] for name in ("m", "fb", "fc"))
    x = fb * time / (m + 1e-8)
    kernels = np.sqrt(fb) * (np.sin(x) / x + 0j) ** m * np.exp(-1j * fc * time) / math.sqrt(N_FFT)
    for frame in range(3):
        framed = np.zeros(N_FFT)
        framed[197 : 197 + WINDOW] = scaled[frame * HOP : frame * HOP + WINDOW] * window.double().numpy()
        decibels = 10 * np.log10(np.abs(kernels @ framed) ** 2).reshape(BANDS, BAND_BINS)
        loud = decibels > decibels.max() - 60
        assert loud.mean() > 0.9
        np.testing.assert_allclose(found[:, :, frame][loud], decibels[loud], atol=0.05)


def test_a_tone_is_loudest_in_its_bin(net):
    hertz = 3000.0
    tone = 10_000 * torch.sin(2 * math.pi * hertz * torch.arange(RATE // 4) / RATE)
    with torch.inference_mode():
        decibels = net.spectrograms(tone[None, None])[0, 0].flatten(0, 1)  # (bins, frames)
    assert abs(int(decibels.mean(1).argmax()) - round(hertz / RATE * N_FFT)) <= 1


def test_kernels_follow_what_is_loaded():
    net, other = small(), small()
    with torch.no_grad():
        other.fbsp.fc += 0.5
    net.load_state_dict(other.state_dict())
    assert "kernels" not in other.state_dict()
    assert not torch.equal(net.kernels, small().kernels)
    with torch.device("meta"):
        empty = ESResNeXt((1, 1, 1, 1), width=8, groups=2, dim=16)
    empty.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(empty.kernels, net.kernels)


def test_silence_and_a_single_sample_have_finite_embeddings(net):
    with torch.inference_mode():
        for samples in (torch.zeros(1, 5000), torch.ones(1, 1), torch.full((1, 3000), -32768.0)):
            assert torch.isfinite(net(samples)).all()


@pytest.mark.parametrize("per_item", [False, True])
def test_an_embedding_does_not_depend_on_its_neighbours(per_item):
    net = small(per_item=per_item)
    sounds = torch.stack([noise(9000), torch.zeros(9000), noise(9000, seed=1, scale=10), noise(9000, seed=2)])
    with torch.inference_mode():
        together, reordered = net(sounds), net(sounds[[2, 1, 0]])
        alone = torch.cat([net(one[None]) for one in sounds])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reordered, together[[2, 1, 0]], rtol=1e-5, atol=1e-5)


def test_long_batches_go_through_in_parts(net, monkeypatch):
    sounds = torch.stack([noise(4000, seed=i) for i in range(5)])
    with torch.inference_mode():
        whole = net(sounds)
        monkeypatch.setattr(esresnext, "CHUNK", 8000)
        torch.testing.assert_close(net(sounds), whole, rtol=1e-5, atol=1e-5)


def test_channels_add_up_before_the_last_layer(net):
    left, right = noise(5000), noise(5000, seed=1)
    with torch.inference_mode():
        both = net(torch.stack([left, right])[None]) - net.fc.bias
        each = net(left[None]) + net(right[None]) - 2 * net.fc.bias
    torch.testing.assert_close(both, each, rtol=1e-4, atol=1e-5)


def test_item_statistics_are_those_of_a_batch_that_holds_the_item_twice():
    net = small(per_item=True)
    training = small()
    training.load_state_dict(net.state_dict())
    sound = noise(1, 9000)
    with torch.no_grad():
        wanted = training.train()(sound.repeat(2, 1))
        torch.testing.assert_close(net(sound), wanted[:1], rtol=1e-3, atol=1e-4)


def test_item_norm_equals_batch_norm_over_equal_items():
    norm = ItemNorm2d(6).eval()
    with torch.no_grad():
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, -1, 1)
    batch = nn.BatchNorm2d(6)
    batch.load_state_dict(copy.deepcopy(norm.state_dict()))
    x = noise(3, 6, 5, 7, scale=2.0) + 4
    with torch.no_grad():
        for one in x.split(1):
            torch.testing.assert_close(norm(one), batch(one.repeat(3, 1, 1, 1))[:1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm(x), torch.cat([norm(one) for one in x.split(1)]))
        pixel = norm(x[:, :, :1, :1])
    assert torch.equal(pixel, norm.bias.view(1, 6, 1, 1).expand(3, 6, 1, 1))
