"""Drawn scenes: what `clip/demo` is trained on, and images to try the tool with.

A scene is one to three things of a shape, colour and size in the cells of a 3 x 3 grid on a plain background.
Everything follows from the random generator: the same seed gives the same scenes and files. Their captions are
training/captions.py's, which is not part of the package.

    rng = random.Random(0)
    scene = sample_scene(rng)
    pixels = draw(scene, 224)          # (224, 224, 3) uint8
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
COLOURS = {
    "red": (215, 35, 40),
    "orange": (245, 135, 25),
    "yellow": (245, 215, 40),
    "green": (45, 165, 65),
    "cyan": (60, 205, 220),
    "blue": (40, 85, 225),
    "purple": (130, 55, 175),
    "pink": (245, 130, 190),
}
BACKGROUNDS = {
    "white": (248, 248, 248),
    "grey": (145, 145, 145),
    "black": (14, 14, 14),
    "beige": (222, 204, 170),
    "navy": (20, 26, 78),
}
SIZES = {"small": (0.085, 0.100), "large": (0.140, 0.165)}  # radius / side of the image
CENTRES = (0.19, 0.50, 0.81)  # of the grid's columns and rows / side of the image
JITTER = 0.035  # of a thing's centre / side; far less than half the grid's step, so the words for places stay true

# One pair for each shape and each colour: no scene or caption seen in training holds one of them.
HELD_OUT = frozenset(zip(COLOURS, SHAPES[3:] + SHAPES[:3], strict=True))


@dataclass(frozen=True)
class Thing:
    """One drawn thing: words for what it is, numbers for how it is drawn."""

    shape: str
    colour: str
    size: str
    row: int  # 0 top, 1 middle, 2 bottom
    column: int  # 0 left, 1 middle, 2 right
    x: float  # centre / side, from the left
    y: float  # centre / side, from the top
    radius: float  # / side
    angle: float  # radians
    rgb: tuple[float, float, float]  # 0 to 255

    @property
    def pair(self) -> tuple[str, str]:
        return self.colour, self.shape


@dataclass(frozen=True)
class Scene:
    """One to three things on a background."""

    things: tuple[Thing, ...]
    background: str
    rgb: tuple[float, float, float]  # 0 to 255, in the image's middle
    slope: tuple[float, float]  # change of brightness from left to right and from top to bottom, in levels of 255


# ---- scenes ----


def sample_scene(rng: Random, unseen_pairs: bool = False) -> Scene:
    """A random scene: without any pair of HELD_OUT, or with one or more of them when `unseen_pairs`."""
    count = rng.choices((1, 2, 3), (0.25, 0.40, 0.35))[0]
    pairs = [_seen_pair(rng) for _ in range(count)]
    if unseen_pairs:
        pairs[0] = rng.choice(sorted(HELD_OUT))
    if count > 1 and rng.random() < 0.15:
        pairs[1] = pairs[0]
        if count > 2 and rng.random() < 0.3:
            pairs[2] = pairs[0]
    while True:
        cells = rng.sample(range(9), count)
        things = tuple(_thing(rng, pair, cell) for pair, cell in zip(pairs, cells, strict=True))
        if all(apart(a, b) for i, a in enumerate(things) for b in things[:i]):
            break
    background = rng.choice(list(BACKGROUNDS))
    slope = (rng.uniform(-14, 14), rng.uniform(-14, 14))
    return Scene(things, background, jittered(rng, BACKGROUNDS[background]), slope)


def _seen_pair(rng: Random) -> tuple[str, str]:
    while True:
        pair = rng.choice(list(COLOURS)), rng.choice(SHAPES)
        if pair not in HELD_OUT:
            return pair


def _thing(rng: Random, pair: tuple[str, str], cell: int) -> Thing:
    colour, shape = pair
    size = rng.choice(list(SIZES))
    row, column = divmod(cell, 3)
    return Thing(
        shape=shape,
        colour=colour,
        size=size,
        row=row,
        column=column,
        x=CENTRES[column] + rng.uniform(-JITTER, JITTER),
        y=CENTRES[row] + rng.uniform(-JITTER, JITTER),
        radius=rng.uniform(*SIZES[size]),
        angle=rng.uniform(-0.2, 0.2),
        rgb=jittered(rng, COLOURS[colour]),
    )


def apart(a: Thing, b: Thing) -> bool:
    return math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius + 0.01


def jittered(rng: Random, rgb: tuple[float, ...]) -> tuple[float, float, float]:
    """A colour near the given one that keeps its name."""
    shift = rng.uniform(-10, 10)
    red, green, blue = (min(255.0, max(0.0, level + shift + rng.uniform(-10, 10))) for level in rgb)
    return red, green, blue


# ---- drawing ----

# Each gives the signed distance to the outline (negative inside) in units of the thing's radius; v grows
# downwards.


def _circle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - 0.93


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(abs(u), abs(v)) - 0.82


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    v = v - 0.15  # the middle of the triangle's box, not its centroid, lies in the thing's centre
    return np.maximum(v - 0.6, 0.866 * abs(u) - 0.5 * v - 0.55)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    sector = 2 * np.pi / 5
    turn = np.arctan2(u, -v)  # 0 at the top point
    turn = abs((turn + sector / 2) % sector - sector / 2)  # every edge folded onto one
    reach = np.hypot(u, v)
    outer, inner = 1.05, 0.45
    edge_x, edge_y = inner * np.cos(sector / 2) - outer, inner * np.sin(sector / 2)
    length = np.hypot(edge_x, edge_y)
    return ((reach * np.cos(turn) - outer) * edge_y - reach * np.sin(turn) * edge_x) / length


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u = abs(u)
    lobe_x, lobe_y, lobe_radius, tip = 0.46, -0.32, 0.50, 0.95
    away = math.hypot(lobe_x, tip - lobe_y)  # from the tip to the lobe's middle
    turn = math.atan2(lobe_x, tip - lobe_y) + math.asin(lobe_radius / away)  # of the straight edge from the vertical
    across, down = math.cos(turn), math.sin(turn)  # the straight edge's outward normal
    lobe = np.hypot(u - lobe_x, v - lobe_y) - lobe_radius
    edge = u * across + (v - tip) * down
    above = (u - lobe_x) * down - (v - lobe_y) * across  # positive above the line from the lobe's middle to the edge
    return np.minimum(lobe, np.maximum(edge, np.maximum(above, lobe_y - v)))


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = abs(u), abs(v)
    return np.maximum(np.maximum(u, v) - 0.95, np.minimum(u, v) - 0.32)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return abs(np.hypot(u, v) - 0.70) - 0.25


def _diamond(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return (abs(u) / 0.70 + abs(v) / 1.05 - 1) * 0.58


_OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
}


def draw(scene: Scene, size: int | tuple[int, int]) -> np.ndarray:
    """The image of a scene.

    size: side, or width and height [px]; the scene fills the middle square and the background the rest
    returns: (height, width, 3) uint8 RGB, edges antialiased
    """
    width, height = (size, size) if isinstance(size, int) else size
    side = min(width, height)
    left_edge, top_edge = (width - side) / 2, (height - side) / 2
    columns = ((np.arange(width) + 0.5 - left_edge) / side).astype(np.float32)
    rows = ((np.arange(height) + 0.5 - top_edge) / side).astype(np.float32)
    across, down = scene.slope
    light = (columns - 0.5) * across + ((rows - 0.5) * down)[:, None]  # (height, width)
    pixels = light[..., None] + np.asarray(scene.rgb, np.float32)
    for thing in scene.things:
        reach = thing.radius * 1.3  # beyond every outline, turned or not
        left, right = np.searchsorted(columns, (thing.x - reach, thing.x + reach))
        top, bottom = np.searchsorted(rows, (thing.y - reach, thing.y + reach))
        x = (columns[left:right] - thing.x) / thing.radius
        y = ((rows[top:bottom] - thing.y) / thing.radius)[:, None]
        cos, sin = math.cos(thing.angle), math.sin(thing.angle)
        distance = _OUTLINES[thing.shape](x * cos + y * sin, y * cos - x * sin)
        cover = np.clip(0.5 - distance * (thing.radius * side), 0, 1)[..., None]
        window = pixels[top:bottom, left:right]
        window += cover * (np.asarray(thing.rgb, np.float32) - window)
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)


# ---- files ----

_EXIF_ORIENTATION = 0x0112
_SHOWN_TURNED_RIGHT = 6  # a viewer turns the stored image a quarter clockwise


def write_images(folder: str | Path, count: int, seed: int) -> list[tuple[Path, Scene | None]]:
    """A small mixed collection of image files, two of which cannot be read.

    folder: made if absent; the files lie in folders within it, and no name says what its image shows
    count: good images, of 96 to 640 px and nearly square: JPEG (some turned by their EXIF orientation), PNG
        (RGB, RGBA, palette), WebP, GIF, BMP and TIFF; after them come a JPEG that breaks off and a text file
        named `.jpg`
    returns: each file's path and scene, None for the two broken ones
    """
    rng = Random(seed)
    folder = Path(folder)
    written: list[tuple[Path, Scene | None]] = []
    for number in range(count):
        scene = sample_scene(rng)
        width = rng.randint(96, 640)
        height = min(640, max(96, round(width * rng.uniform(0.8, 1.25))))
        save = _SAVERS[number % len(_SAVERS)]
        path = folder / f"album-{number % 7 + 1}" / f"{number:05d}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path = save(Image.fromarray(draw(scene, (width, height))), path)
        written.append((path, scene))
    whole = io.BytesIO()
    Image.fromarray(draw(sample_scene(rng), 320)).save(whole, "JPEG")
    broken = folder / "album-1"
    broken.mkdir(parents=True, exist_ok=True)
    (broken / "breaks-off.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (broken / "a-text.jpg").write_text("This is not an image.\n", encoding="utf-8")
    return [*written, (broken / "breaks-off.jpg", None), (broken / "a-text.jpg", None)]


def _jpeg(image: Image.Image, path: Path) -> Path:
    path = path.with_suffix(".jpg")
    image.save(path, quality=85)
    return path


def _turned_jpeg(image: Image.Image, path: Path) -> Path:
    path = path.with_suffix(".jpeg")
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = _SHOWN_TURNED_RIGHT
    image.transpose(Image.Transpose.ROTATE_90).save(path, quality=85, exif=exif)
    return path


def _saved_as(suffix: str, mode: str = "RGB") -> Callable[[Image.Image, Path], Path]:
    def save(image: Image.Image, path: Path) -> Path:
        path = path.with_suffix(suffix)
        stored = image.quantize(64) if mode == "P" else image.convert(mode)
        stored.save(path)
        return path

    return save


_SAVERS = (
    _jpeg,
    _saved_as(".png"),
    _jpeg,
    _saved_as(".webp"),
    _turned_jpeg,
    _saved_as(".png", "RGBA"),
    _jpeg,
    _saved_as(".gif", "P"),
    _saved_as(".png", "P"),
    _jpeg,
    _saved_as(".bmp"),
    _saved_as(".tiff"),
)
