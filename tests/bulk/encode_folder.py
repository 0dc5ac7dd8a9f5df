"""A run in a process of its own, to be interrupted and killed: FOLDER COLLECTION, begun by a line on standard input."""

# ruff: noqa: E402  what LanceDB imports needlessly is skipped first, as by commands: it takes half of the start
from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from image_encoders.cli import skipped_imports

skipped_imports.skip()
import lancedb  # noqa: F401  now, so that the import does not delay the run

from image_encoders.bulk import commit
from image_encoders.bulk.run import run
from image_encoders.bulk.sources import find
from image_encoders.cli.shutdown import terminations
from image_encoders.collection import Collection

sys.path.insert(0, str(Path(__file__).parents[1]))
from fake_encoder import FakeEncoder

commit.COMMIT_S = 0.03
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the test was started with
print("ready", flush=True)
sys.stdin.readline()
encoder = FakeEncoder(batch_sensitive=True, before=lambda inputs: time.sleep(0.02))
collection = Collection.open_or_create(sys.argv[2], encoder)
with terminations():
    report = run(find([sys.argv[1]]), encoder, collection, batch_size=8, workers=2)
print(report.encoded, flush=True)
