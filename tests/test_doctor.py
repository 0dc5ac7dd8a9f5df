"""`doctor.stages` names what limits a model, on examples where that is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from image_encoders.doctor import Stages, stages
from image_encoders.encoder import Encoder, InputSpec, Tower
from image_encoders.engines.embedder import Net
from image_encoders.engines.select import PLAIN, select_embedder
from image_encoders.inputs.image import read_image
from image_encoders.inputs.preprocessing import channels_first
from image_encoders.nets.vsepp import Vgg19

SIDE = 96


def photos(folder: Path, width: int, height: int, count: int = 6) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        rough = Image.fromarray(rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8))
        path = folder / f"{number}.jpg"
        rough.resize((width, height)).save(path, quality=90)
        paths.append(path)
    return paths


def encoder(width: int) -> Encoder:
    """A VGG19 whose first stage has `width` channels, for images cut to 96 x 96."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Vgg19(width=width, hidden=64)

    def build() -> torch.nn.Module:
        return torch.nn.Sequential(Scale(), net)

    def prepare(pixels: np.ndarray) -> np.ndarray:
        return channels_first(pixels[:SIDE, :SIDE])

    shape = (3, SIDE, SIDE)
    one = Net("vgg", f"vgg {width}", build, lambda source: prepare(read_image(source)), shape)
    tower = Tower(InputSpec("image", read_image, prepare, shape), select_embedder(PLAIN, one))
    return Encoder("vgg", 64, {"image": tower}, "v" * 32)


class Scale(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.float() / 255


def test_large_files_for_a_small_net_are_limited_by_reading(tmp_path: Path):
    found = stages(encoder(width=1), photos(tmp_path, 3000, 2000))
    assert found.limit == "read"


def test_small_files_for_a_large_net_are_limited_by_embedding(tmp_path: Path):
    found = stages(encoder(width=48), photos(tmp_path, SIDE, SIDE))
    assert found.limit == "embed"


@pytest.mark.parametrize(("shared", "rate"), [(True, 1000 / (2 + 1 + 6)), (False, 1000 / 6)])
def test_the_rate_to_expect_knows_who_shares_the_cores(shared: bool, rate: float):
    found = Stages(read_ms=8, preprocess_ms=4, embed_ms=6, images=1, batch_size=1, workers=4, shared=shared)
    assert found.rate == pytest.approx(rate)
    assert found.limit == "embed"
