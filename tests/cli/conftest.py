"""A family of encoders that needs no net, so that the commands can be tried in milliseconds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_encoders import models
from image_encoders.cli import app, printing
from image_encoders.encoder import Encoder, InputSpec, Tower
from image_encoders.errors import WeightsError
from image_encoders.inputs.image import read_image
from image_encoders.model import Variant, fingerprint

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


@dataclass
class Ran:
    """How a command ended and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def command(capsys) -> Callable[..., Ran]:
    """command("encode", "photos", "-o", "c") runs the command in this process."""

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(one) for one in arguments], prog_name="image-encoders")
        written = capsys.readouterr()
        return Ran(int(ended.value.code or 0), written.out, written.err)

    return run


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Ctrl-C works, also where the tests were started with it ignored; a command that was interrupted leaves it as a
    process wants it that ends."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_notice(monkeypatch) -> None:
    """No model takes so long to load that it is said, however busy this machine is."""
    monkeypatch.setattr(printing, "NOTICE_S", 1000.0)


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start("encode", "photos", "-o", "c") runs the command in a process of its own, `through` another one if given."""
    running: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, through: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
        words = [*through, sys.executable, "-m", "image_encoders", *map(str, arguments)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        running.append(subprocess.Popen(words, text=True, **pipes))
        return running[-1]

    yield begin
    for one in running:
        with one:  # waits and closes its pipes
            one.kill()


def _mean_colour(inputs: np.ndarray) -> np.ndarray:
    return inputs.reshape(len(inputs), 3).astype(np.float32)


def _load(variant: str, *, weights: Path | None, scale: float = 1.0) -> SimpleNamespace:
    """Mean colours; words are colours' names."""
    if weights is not None and not weights.exists():
        raise WeightsError(f"{weights}: no such file")

    def seen(pixels: np.ndarray) -> np.ndarray:
        return (pixels.reshape(-1, 3).mean(0) * scale).astype(np.float32)

    def named(words: str) -> np.ndarray:
        found = [COLOURS[word] for word in words.split() if word in COLOURS]
        return np.mean(found, axis=0).astype(np.float32)

    towers = {"image": Tower(InputSpec("image", read_image, seen, (3,)), _mean_colour)}
    if variant != "mute":
        towers["text"] = Tower(InputSpec("text", str, named, (3,)), _mean_colour)

    def assemble(runtime: Any) -> Encoder:
        return Encoder(
            name=f"colours/{variant}".rstrip("/"),
            dim=3,
            towers=towers,
            fingerprint=fingerprint(
                variant=variant, scale=scale, weights=None if weights is None else weights.read_text()
            ),
            device=runtime.device,
            precision="float32" if runtime.precision == "auto" else runtime.precision,
        )

    return SimpleNamespace(assemble=assemble)


COLOUR_FAMILY = SimpleNamespace(
    load=_load, VARIANTS=(Variant("plain", ("image", "text"), 3, "none are needed", "none"),)
)


@pytest.fixture(autouse=True)
def colours(monkeypatch) -> None:
    """Besides the real families there is "colours", of which "colours/mute" knows no words."""
    family, families = models.family, models.families
    monkeypatch.setattr(models, "family", lambda name: COLOUR_FAMILY if name.startswith("colours") else family(name))
    monkeypatch.setattr(models, "families", lambda: (*families(), "colours"))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six images: red, green, blue, each dark and bright, in a folder `photos` with one below it."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name, (red, green, blue) in list(COLOURS.items())[:3]:
        Image.new("RGB", (40, 30), (red, green, blue)).save(folder / f"{name}.png")
        dark = (red // 2 + 20, green // 2 + 20, blue // 2 + 20)  # another direction, though not far
        Image.new("RGB", (30, 40), dark).save(folder / "more" / f"dark-{name}.jpg", quality=95)
    return folder


@pytest.fixture
def broken(photos) -> tuple[Path, Path]:
    """Two files among the photos that are no images: a text and a JPEG that ends early."""
    whole = (photos / "more" / "dark-red.jpg").read_bytes()
    text, cut = photos / "a-text.jpg", photos / "more" / "cut.jpg"
    text.write_text("not an image")
    cut.write_bytes(whole[: len(whole) // 2])
    return text, cut
