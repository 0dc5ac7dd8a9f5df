"""The process that follows a folder, with an encoder that has no net: tests kill it, whose lines it writes."""

# ruff: noqa: E402  what LanceDB imports needlessly is skipped first, as by commands: it takes half of the start
from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_encoder import FakeEncoder
from image_encoders.cli import skipped_imports

skipped_imports.skip()
from image_encoders import models
from image_encoders.inputs.image import read_image
from image_encoders.serve import follow

slow = float(os.environ.get("FAKE_SECONDS", "0"))  # for each batch
follow.COMMIT_S = 0.05
follow.QUIET_MS, follow.TICK_MS, follow.RETRY_S = 100, 200, (0.2, 1.0)


def read(source: object) -> np.ndarray:
    """As the encoder reads images, but for one that kills its process, as a decoder with a bug would be."""
    if isinstance(source, bytes) and source.endswith(b"deadly"):
        # To this thread: where the process is signalled another thread dies of it, on a busy machine after this one has
        # gone on to the next file.
        signal.pthread_kill(threading.get_ident(), signal.SIGSEGV)
    return read_image(source)


def load(name: str, **wishes: object) -> FakeEncoder:
    if name == "fake/missing":
        raise models.unknown(name)
    encoder = FakeEncoder(
        name=name,
        fingerprint=os.environ.get("FAKE_FINGERPRINT", "f" * 32),
        read=read,
        before=lambda inputs: time.sleep(slow),
    )
    encoder.recipe = {"name": name, "weights": None, "precision": "auto", "options": dict(wishes)}
    return encoder


run = follow.run
follow.run = lambda *arguments, **options: run(*arguments, **{**options, "batch_size": 4})
models.load = load  # type: ignore[assignment]
follow.main()
