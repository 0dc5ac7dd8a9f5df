"""Small image files for runs, and what a collection holds after them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from image_encoders.collection import ITEMS, Collection


def image(number: int, format: str = "PNG") -> bytes:
    """The bytes of a small image file, another one for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (9 + number % 5, 12, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def draw(folder: Path, numbers: range | list[int]) -> list[Path]:
    """A file for each number, named after it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.png" for number in numbers]
    for path, number in zip(paths, numbers):
        path.write_bytes(image(number))
    return paths


def rows(collection: Collection) -> dict[str, dict]:
    """Every row by its id, the embedding as bytes; an id that is there twice is an error."""
    columns = ["id", "embedding", "width", "height", "sha256", "path", "size", "state", "taken"]
    found: dict[str, dict] = {}
    for batch in collection.scan(ITEMS, columns):
        for row in batch.to_pylist():
            row["embedding"] = np.array(row["embedding"], np.float32).tobytes()
            assert row["id"] not in found
            found[row["id"]] = row
    return found
