"""sentence-transformers: `SentenceTransformer.encode` on paths."""

from __future__ import annotations

from pathlib import Path

import timed


def load(model: Path, precision: str) -> timed.Embed:
    from sentence_transformers import SentenceTransformer

    chosen = {} if precision == "float32" else {"model_kwargs": {"dtype": precision}}
    net = SentenceTransformer(str(model), device="cpu", **chosen)
    return lambda paths: net.encode([str(path) for path in paths], batch_size=timed.BATCH, show_progress_bar=False)


if __name__ == "__main__":
    timed.main(load)
