"""The process that follows a folder, with an encoder that has no net: tests kill it, whose lines it writes."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_encoder import FakeEncoder
from image_encoders import models
from image_encoders.serve import follow

slow = float(os.environ.get("FAKE_SECONDS", "0"))  # for each batch
follow.COMMIT_S = 0.05
follow.QUIET_MS, follow.TICK_MS, follow.RETRY_S = 100, 200, (0.2, 1.0)


def load(name: str, **wishes: object) -> FakeEncoder:
    if name == "fake/missing":
        raise models.unknown(name)
    encoder = FakeEncoder(
        name=name,
        fingerprint=os.environ.get("FAKE_FINGERPRINT", "f" * 32),
        before=lambda inputs: time.sleep(slow),
    )
    encoder.recipe = {"name": name, "weights": None, "precision": "auto", "options": dict(wishes)}
    return encoder


run = follow.run
follow.run = lambda *arguments, **options: run(*arguments, **{**options, "batch_size": 4})
models.load = load  # type: ignore[assignment]
follow.main()
