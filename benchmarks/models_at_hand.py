"""What the benchmarks of nets share: models that need no network, drawn images, tables in Markdown.

The checkpoints are those of the conformance bundle, of the true sizes and with activations like the trained nets', made
once and kept where `image-encoders verify` keeps them; the custom net's has random kernels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

import bulk
from image_encoders import models, scenes
from image_encoders.cache import atomic_write
from image_encoders.conformance import bundle, cases
from image_encoders.encoder import Encoder

DEFINITION = Path(__file__).with_name("seven_convolutions.py")
EARLY = "features.relu0"  # a layer near the start of the custom net
SIZES = ((320, 240), (480, 360), (640, 480), (400, 600), (512, 512))  # of drawn images, width and height [px]
JUDGED, CALIBRATED = 0, 1  # seeds: what a net is calibrated on is never what it is judged on
PACKAGES = ("torch", "openvino", "nncf", "transformers")


@dataclass(frozen=True)
class Model:
    """A model and how it is loaded.

    label: for people
    name: what `load` is asked for
    weights: -> the checkpoint, made if need be
    draw: (seed, number) -> an image (H, W, 3) uint8 of the kind that the model is for
    """

    label: str
    name: str
    weights: Callable[[], Path | None]
    options: dict[str, Any] = field(default_factory=dict)
    draw: Callable[[int, int], np.ndarray] = lambda seed, number: draw(seed, number)

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]

    def load(self, **runtime: Any) -> Encoder:
        """The encoder; `runtime` is device, precision, engine and the like."""
        return models.load(self.name, weights=self.weights(), **{**self.options, **runtime})


def at_hand(families: Sequence[str] = ()) -> list[Model]:
    """The models of these families; without any, all."""
    labels = {
        "clip-vit-b32": "CLIP ViT-B/32",
        "bit-npz-R50x1": "BiT R50x1",
        "audioclip": "AudioCLIP, image",
        "vse-resnet152": "VSE++ ResNet-152",
        "vse-vgg19": "VSE++ VGG19",
    }
    found = [
        Model(labels[one.name], one.model, one.weights, dict(one.options)) for one in cases.CASES if one.name in labels
    ]
    definition = {"definition": DEFINITION, "class_name": "SevenConvolutions", "preprocess": "imagenet"}
    found.append(Model("custom, 7 convolutions", "custom", _seven_convolutions, definition))
    return [model for model in found if not families or model.family in families]


def bundled() -> list[Model]:
    """The bundled model, judged on scenes such as it was trained on, and on what it has never seen the like of."""
    return [
        Model("clip/demo, scenes", "clip/demo", lambda: None, draw=_draw_scene),
        Model("clip/demo, other images", "clip/demo", lambda: None),
    ]


def _seven_convolutions() -> Path:
    path = bundle.checkpoints() / "seven-convolutions" / "model_state_dict.pth"
    if not path.is_file():
        import torch
        from seven_convolutions import SevenConvolutions

        path.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        with atomic_write(path) as part:
            torch.save(SevenConvolutions().state_dict(), part)
    return path


# ------------------------------------------------------------------ images


def draw(seed: int, number: int) -> np.ndarray:
    """An image (H, W, 3) uint8 like a photograph: detail at every scale, edges, grain; another for each number."""
    rng = np.random.default_rng((seed, number))
    width, height = SIZES[rng.integers(len(SIZES))]
    canvas = _rough(rng, width, height, rng.uniform(25, 60), rng.uniform(0.45, 0.8))
    canvas += rng.uniform(70, 185) + rng.normal(0, 15, 3).astype(np.float32)
    drawn = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for _ in range(rng.integers(0, 9)):
        centre, reach = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.03, 0.35) * min(width, height)
        corners = centre + rng.uniform(-reach, reach, (rng.integers(3, 8), 2))
        colour = tuple(int(one) for one in rng.integers(0, 256, 3))
        if rng.random() < 0.4:
            pen.ellipse([*(corners.min(axis=0)), *(corners.max(axis=0))], fill=colour)
        else:
            pen.polygon([tuple(corner) for corner in corners], fill=colour)
    lit = np.asarray(drawn, np.float32) * (1 + _rough(rng, width, height, 0.15, 0.6)[..., :1])
    grain = rng.standard_normal((height, width, 1), np.float32) * rng.uniform(0, 8)
    return np.clip(lit + grain, 0, 255).astype(np.uint8)


def _rough(rng: np.random.Generator, width: int, height: int, contrast: float, roughness: float) -> np.ndarray:
    """(height, width, 3) float32 around zero: octave after octave, each `roughness` as strong as the one before."""
    planes = []
    for _ in range(3):
        plane = np.zeros((3, 4), np.float32)
        strength = contrast
        while plane.shape[1] < width:
            rows, columns = min(2 * plane.shape[0], height), min(2 * plane.shape[1], width)
            plane = np.asarray(Image.fromarray(plane).resize((columns, rows), Image.Resampling.BILINEAR))
            plane = plane + strength * rng.standard_normal((rows, columns), np.float32)
            strength *= roughness
        planes.append(np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR)))
    light, *colours = planes
    tint = np.stack([colours[0], -0.5 * (colours[0] + colours[1]), colours[1]], axis=-1)
    return light[..., None] + 0.3 * tint  # the channels of a photograph have most in common


def _draw_scene(seed: int, number: int) -> np.ndarray:
    rng = Random(seed * 1_000_003 + number)
    return scenes.draw(scenes.sample_scene(rng, unseen_pairs=rng.random() < 0.5), rng.choice(SIZES))


def draw_files(folder: Path, seed: int, count: int) -> Path:
    """A folder of `count` drawn JPEG files."""
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(draw(seed, number)).save(folder / f"{number:05}.jpg", quality=92)
    return folder


# ------------------------------------------------------------------ report


def machine() -> dict[str, Any]:
    """Where, when, and with which versions."""
    return {**bulk.machine(), "versions": dict(_versions())}


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue


def heading(where: dict[str, Any]) -> None:
    """Print what a table's numbers hold for."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    print(f"{where['cpu']}, {where['cores']} cores, Python {where['python']}, {versions}, {where['date']}\n")
    print(f"`{where['command']}`", flush=True)


class Table:
    """A table in Markdown on standard output, printed row by row; `rows` keeps the numbers."""

    def __init__(self, *columns: str):
        self.rows: list[dict[str, Any]] = []
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        self._columns = columns

    def add(self, row: dict[str, Any]) -> None:
        """A row: value by column; those not given stay empty."""
        assert row.keys() <= set(self._columns), f"no columns {row.keys() - set(self._columns)}"
        self.rows.append(row)
        print(f"| {' | '.join(bulk.cell(column, row.get(column), 6) for column in self._columns)} |", flush=True)


def keep(path: Path | None, where: dict[str, Any], results: Any) -> None:
    """Write the numbers, when they are wanted."""
    if path is not None:
        path.write_text(json.dumps({**where, "results": results}, indent=2) + "\n", "utf-8")
