"""How close embeddings in low precision are to float32's, measured on drawn images.

By centred cosine: the mean embedding is subtracted first, since embeddings of one net have a large common component,
which would hide the loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from image_encoders.engines.embedder import Closeness, Net
from image_encoders.errors import InputError

CLOSEST = 0.998  # the least centred cosine of an embedding in low precision to the same embedding in float32
PROBES, FEWEST = 24, 8  # images that a candidate is judged on; a slow net is judged on fewer
PATIENCE_S = 30.0  # after which no further probes are embedded
BATCH = 8
DEFAULT_SIDE = 16  # of an input where any length goes
WORDS = ("man", "woman", "dog", "cat", "red", "blue", "car", "street", "tree", "house", "boat", "table")


def closeness(embeddings: np.ndarray, reference: np.ndarray) -> Closeness:
    """How close `embeddings` (N, dim) are to the `reference` (N, dim), N at least 2."""
    mean = reference.mean(axis=0)
    return Closeness(
        cosine=float(_cosines(embeddings, reference).min()),
        centred=float(_cosines(embeddings - mean, reference - mean).min()),
        neighbours=float((_nearest(embeddings) == _nearest(reference)).mean()),
        images=len(embeddings),
    )


def probes(count: int = PROBES) -> list[np.ndarray]:
    """Drawn images, (240, 320, 3) uint8, with structure at every scale, as photographs have it."""
    from PIL import Image

    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        canvas = np.full((240, 320, 3), rng.uniform(40, 215), np.float32) + rng.normal(0, 25, 3).astype(np.float32)
        for cells in (3, 6, 12, 24, 48, 96):
            noise = rng.normal(0, 1, (cells, cells * 4 // 3, 3)) * rng.uniform(5, 45) / cells**0.4
            planes = [Image.fromarray(noise[..., c].astype(np.float32)).resize((320, 240)) for c in range(3)]
            canvas += np.stack([np.asarray(plane) for plane in planes], axis=-1)
        for _ in range(rng.integers(1, 6)):  # edges
            top, left = rng.integers(0, 200), rng.integers(0, 280)
            height, width = rng.integers(15, 140, 2)
            canvas[top : top + height, left : left + width] += rng.normal(0, 60, 3)
        canvas += rng.normal(0, rng.uniform(0, 8), canvas.shape)
        images.append(np.clip(canvas, 0, 255).astype(np.uint8))
    return images


def example_inputs(net: Net, count: int = PROBES) -> list[np.ndarray]:
    """Inputs of one shape as the net takes them: probes prepared, or random numbers where it takes none."""
    rng = np.random.default_rng(0)
    try:
        if net.modality == "image":
            return [net.prepare(image) for image in probes(count)]
        if net.modality == "text":
            return [net.prepare(f"a {one} and a {another}") for one, another in rng.choice(WORDS, (count, 2))]
    except InputError:
        pass
    shape = tuple(side or DEFAULT_SIDE for side in net.shape)
    if net.modality == "text":
        return [rng.integers(0, 4, shape) for _ in range(count)]
    return [rng.normal(0, 1, shape).astype(np.float32) for _ in range(count)]


def embed_probes(
    embed: Callable[[np.ndarray], np.ndarray], inputs: list[np.ndarray], patience: float = float("inf")
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Embeddings of inputs of one shape, and those inputs, as many as time allowed."""
    embeddings: list[np.ndarray] = []
    began = time.monotonic()
    for start in range(0, len(inputs), BATCH):
        if start >= FEWEST and time.monotonic() - began > patience:
            break
        embeddings.extend(embed(np.stack(inputs[start : start + BATCH])))
    return np.stack(embeddings), inputs[: len(embeddings)]


def _cosines(embeddings: np.ndarray, reference: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(reference, axis=1)
    return (embeddings * reference).sum(axis=1) / np.maximum(lengths, np.finfo(np.float32).tiny)


def _nearest(embeddings: np.ndarray) -> np.ndarray:
    """For each embedding the position of the nearest other one, by cosine."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    return similar.argmax(axis=1)
