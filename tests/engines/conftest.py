"""A small net, and a cache of the test's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_net import Small, small_input
from torch import nn

from image_encoders.engines.embedder import Net


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def net() -> Callable[..., Net]:
    """net(build) -> a Net of it."""

    def make(build: Callable[[], nn.Module] = Small, key: str = "small", shape: tuple = (3, 16, 16)) -> Net:
        return Net("small", key, build, small_input, shape)

    return make


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (21, 3, 16, 16), np.uint8)


@pytest.fixture
def rows(inputs: np.ndarray) -> np.ndarray:
    """What torch gives for the inputs."""
    with torch.inference_mode():
        return Small().eval()(torch.from_numpy(inputs)).numpy()
