"""How far found embeddings are from reference embeddings."""

from __future__ import annotations

from math import inf, isfinite
from typing import NamedTuple

import numpy as np


class Agreement(NamedTuple):
    """The distance of found embeddings from reference embeddings.

    max_abs: max|found - reference| over all values
    rel: that, divided by max|reference|
    one_minus_cos: 1 - the smallest cosine of an embedding with its reference
    """

    max_abs: float
    rel: float
    one_minus_cos: float


class Limits(NamedTuple):
    """What an agreement must not exceed; inf: not looked at."""

    max_abs: float = inf
    rel: float = inf
    one_minus_cos: float = inf

    def hold(self, found: Agreement) -> bool:
        """Whether `found` stays within; NaN does not."""
        return all(value <= limit for value, limit in zip(found, self) if limit < inf)

    def __str__(self) -> str:
        names = zip(("abs", "rel", "1-cos"), self)
        return ", ".join(f"{name} {limit:.0e}" for name, limit in names if isfinite(limit))


def agreement(found: np.ndarray, reference: np.ndarray) -> Agreement:
    """The distance of `found` from `reference`, both (N, ...); infinite where the shapes differ."""
    if found.shape != reference.shape:
        return Agreement(inf, inf, inf)
    a, b = (embeddings.reshape(len(embeddings), -1).astype(np.float64) for embeddings in (found, reference))
    max_abs = float(np.abs(a - b).max())
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        return Agreement(max_abs, float(max_abs / np.abs(b).max()), float(np.maximum(1 - cosines.min(), 0)))
