"""Embeddings do not depend on what else is imported, on how many files there are, or on what is in the cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_encoders.engines.closeness import probes

BATCH, COUNT = 8, 24

PROGRAM = """
import hashlib, os, signal, sys
first, collection, *folders = sys.argv[1:]
if first == "torch":
    import torch
import numpy as np
import image_encoders as ie
from dataclasses import replace
from pathlib import Path
from image_encoders.bulk import commit, run as runs
from image_encoders.bulk.sources import find
from image_encoders.collection import ITEMS, Collection

commit.COMMIT_S = 0
encoder = ie.load("clip/demo", device="cpu")
tower = encoder.tower("image")
if first == "killed":
    batches = []
    def embed(inputs):
        batches.append(inputs)
        if len(batches) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return tower.embed(inputs)
    encoder = replace(encoder, towers={"image": replace(tower, embed=embed)})
index = Collection.open_or_create(collection, encoder)
for folder in folders:
    runs.run(find([folder]), encoder, index, batch_size=8, workers=2)
found = {
    Path(id).name: embedding
    for rows in index.scan(ITEMS, ["id", "embedding"])
    for id, embedding in zip(rows["id"].to_pylist(), rows["embedding"].to_pylist())
}
inputs = [tower.input(path) for folder in folders for path in sorted(Path(folder).rglob("*.jpg"))]
np.savez(collection + ".npz", inputs=np.stack(inputs), embeddings=np.array([found[name] for name in sorted(found)]))
print(encoder.precision, tower.inputs.facts["resizer"], encoder.fingerprint, len(found))
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """24 JPEG files in three folders, and the folder of these."""
    home = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(probes(COUNT)):
        folder = home / str(number // BATCH)
        folder.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number:02}.jpg", quality=92)
    return [home, *sorted(home.iterdir())]


def test_what_is_around_a_run_does_not_decide_its_embeddings(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home, *parts = folders
    monkeypatch.setenv("IMAGE_ENCODERS_BFLOAT16", "1")  # in float32 Pillow resizes anyway

    def encode(first: str, name: str, places: list[Path], cache: str = "cache") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", PROGRAM, first, str(tmp_path / name), *map(str, places)]
        environment = {**os.environ, "IMAGE_ENCODERS_CACHE": str(tmp_path / cache)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    killed = encode("nothing", "cold cache", [home]), encode("killed", "killed", [home])
    assert killed[1].returncode == -signal.SIGKILL
    ran = [
        killed[0],
        encode("nothing", "killed", [home]),  # goes on where it was killed
        encode("nothing", "many small runs", parts),
        encode("torch", "after torch", [home]),
    ]
    said = {one.stdout for one in ran}
    assert [one.returncode for one in ran] == [0] * 4, ran
    assert len(said) == 1, said
    assert said.pop().split()[:2] == ["bfloat16", "torch"]
    found = [np.load(tmp_path / f"{name}.npz") for name in ("cold cache", "killed", "many small runs", "after torch")]
    for one in found[1:]:
        assert np.array_equal(one["inputs"], found[0]["inputs"])
        assert np.array_equal(one["embeddings"], found[0]["embeddings"])
    assert len(found[0]["embeddings"]) == COUNT
