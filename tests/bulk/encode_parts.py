"""A run in parts in a process of its own, which kills itself: FOLDER COLLECTION MOMENT COUNT.

It dies right after it has come to a moment for the COUNT-th time: "recorded", a part is written down; "encoded", its
result is; "listed", its failures are in the collection; "written", its embeddings are; "removed", its files are gone.
"""

# ruff: noqa: E402  what LanceDB imports needlessly is skipped first, as by commands: it takes half of the start
from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from image_encoders.cli import skipped_imports

skipped_imports.skip()
import lancedb  # noqa: F401  now, so that the import does not delay the run

from image_encoders.bulk import commit, parts
from image_encoders.bulk.batch_size import BatchSizeTuner
from image_encoders.bulk.parts import Parts, Worker
from image_encoders.bulk.run import run
from image_encoders.bulk.sources import find
from image_encoders.collection import Collection

sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_encoder import FakeEncoder

folder, index, moment, count = sys.argv[1:]
left = int(count)
parts.LEAST = 16
commit.COMMIT_ROWS = 2  # times 8: a commit for each part


def killed_after(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        global left
        result = function(*arguments, **options)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return run


owner, name = {
    "recorded": (Parts, "record"),
    "encoded": (Parts, "write"),
    "listed": (Collection, "record"),
    "written": (Collection, "append"),
    "removed": (Parts, "remove"),
}[moment]
setattr(owner, name, killed_after(getattr(owner, name)))
sys.stdin.readline()
encoder = FakeEncoder(batch_sensitive=True)
collection = Collection.open_or_create(index, encoder)
run(
    find([folder]),
    encoder,
    collection,
    batch_size=8,
    pool=lambda parts, encoder: Worker(parts, encoder, BatchSizeTuner(8), 2),
)
