"""`doctor.stages` names what limits a model, on examples where that is known."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from image_encoders import doctor
from image_encoders.doctor import Stages, stages
from image_encoders.encoder import Encoder, InputSpec, Tower


class Clock:
    """A clock that goes on by what each step says it takes."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, milliseconds: float, result: np.ndarray) -> np.ndarray:
        self.now += milliseconds / 1000
        return result


def encoder(clock: Clock, read_ms: float, preprocess_ms: float, embed_ms: float) -> Encoder:
    pixels = np.zeros((3, 8, 8), np.uint8)
    spec = InputSpec("image", lambda _: clock.takes(read_ms, pixels), lambda item: clock.takes(preprocess_ms, item))
    tower = Tower(spec, lambda batch: clock.takes(embed_ms * len(batch), np.zeros((len(batch), 4), np.float32)))
    return Encoder("timed", 4, {"image": tower}, "v" * 32)


@pytest.mark.parametrize(
    ("milliseconds", "limit"), [((900, 1, 2), "read"), ((1, 900, 2), "preprocess"), ((1, 1, 900), "embed")]
)
def test_what_takes_longest_limits_a_model(
    milliseconds: tuple[float, float, float], limit: str, monkeypatch: pytest.MonkeyPatch
):
    clock = Clock()
    monkeypatch.setattr(doctor, "time", SimpleNamespace(perf_counter=clock))
    found = stages(encoder(clock, *milliseconds), [Path(str(number)) for number in range(6)], batch_size=4)
    assert (found.read_ms, found.preprocess_ms, found.embed_ms) == pytest.approx(milliseconds)
    assert (found.images, found.batch_size) == (6, 4)
    assert found.limit == limit


@pytest.mark.parametrize(("shared", "rate"), [(True, 1000 / (2 + 1 + 6)), (False, 1000 / 6)])
def test_the_rate_to_expect_knows_who_shares_the_cores(shared: bool, rate: float):
    found = Stages(read_ms=8, preprocess_ms=4, embed_ms=6, images=1, batch_size=1, workers=4, shared=shared)
    assert found.rate == pytest.approx(rate)
    assert found.limit == "embed"
