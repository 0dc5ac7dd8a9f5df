"""Canaries: a few fixed images, whose embeddings are kept with a collection.

Equal fingerprints promise comparable embeddings; canaries check that another machine keeps the promise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from image_encoders.embedding import embed_each
from image_encoders.errors import InputError

if TYPE_CHECKING:
    from image_encoders.encoder import Encoder

SIDE = 96  # [px]


def canary_images() -> list[np.ndarray]:
    """Three images: (96, 96, 3) uint8, which never change."""
    y, x = np.mgrid[:SIDE, :SIDE]
    gradient = np.stack([x, y, (x + y) // 2], axis=2) * 255 // (SIDE - 1)
    checks = np.repeat((x // 12 + y // 12)[:, :, None] % 2 * 255, 3, axis=2)
    disc = np.where(((x - 48) ** 2 + (y - 40) ** 2 < 30**2)[:, :, None], (220, 30, 40), (240, 240, 235))
    return [image.astype(np.uint8) for image in (gradient, checks, disc)]


def embed_canaries(encoder: Encoder) -> np.ndarray | None:
    """(3, dim) float32: the embeddings of the canaries; None where the encoder takes no images, or not these."""
    if "image" not in encoder.towers:
        return None
    tower = encoder.tower("image")
    try:
        inputs = [tower.prepare(image) for image in canary_images()]
    except Exception:  # whatever somebody's preprocessing raises
        return None
    found = embed_each(tower.embeddings, inputs, dim=encoder.dim)
    embeddings = [one for one in found if not isinstance(one, InputError)]
    return np.stack(embeddings) if len(embeddings) == len(found) else None


def drift(embeddings: np.ndarray, others: np.ndarray) -> float:
    """1 - the least cosine between the embeddings of a canary: 0 if all are equal, at most 2.

    embeddings, others: (3, dim), each as `embed_canaries` gives it
    """
    products = (embeddings.astype(np.float64) * others).sum(axis=1)
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(others, axis=1)
    return float(1 - np.min(np.where(lengths > 0, products / np.maximum(lengths, 1e-300), 1.0)))
