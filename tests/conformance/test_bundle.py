"""The bundle is whole, its inputs are those the reference was run on, and checkpoints appear whole or not at all."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from image_encoders import WeightsError
from image_encoders.conformance import bundle


def test_generated_inputs_are_those_of_the_reference():
    stored, seed = bundle.golden("inputs_selftest"), bundle.manifest()["seed"]
    make = bundle._make_inputs()
    assert np.array_equal(make.blocks(seed, "selftest", 2, 3, 8, 8, -1, 1), stored["selftest"])
    assert np.array_equal(make.wave(seed, "selftest", 500, "tones"), stored["wave"])


def test_the_search_path_for_modules_stays_as_it_was():
    code = (
        "import sys; before = list(sys.path); from image_encoders.conformance import bundle;"
        "bundle.float_inputs('custom-conv', 'float224'); assert sys.path == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_sounds_are_the_generated_ones():
    make, seed = bundle._make_inputs(), bundle.manifest()["seed"]
    for name in ("tones", "bursts", "silence"):
        samples = bundle.samples(name)
        assert np.array_equal(make.wave(seed, f"audio/{name}", len(samples), name), samples)


def test_a_checkpoint_has_the_tensors_that_its_recipe_promises():
    for case in ("custom-inplace", "clip-tiny-gelu"):
        recipe = bundle.FOLDER / "specs" / f"{case}.json"
        words = [sys.executable, bundle.FOLDER / "make_checkpoint.py", "--verify", recipe]
        subprocess.run(words, check=True, timeout=300, stdout=subprocess.DEVNULL)


def test_a_checkpoint_is_made_once(tmp_path: Path):
    made = bundle.checkpoint("custom-inplace", tmp_path)
    assert made == bundle.place("custom-inplace", tmp_path)
    (file,) = made.iterdir()
    assert file.stat().st_size > bundle.size("custom-inplace")
    before = file.stat().st_mtime_ns
    assert bundle.checkpoint("custom-inplace", tmp_path) == made
    assert file.stat().st_mtime_ns == before
    assert list(tmp_path.iterdir()) == [made]


def test_a_checkpoint_that_can_not_be_made_leaves_nothing(tmp_path: Path, monkeypatch):
    maker = tmp_path / "bundle"
    (maker / "specs").mkdir(parents=True)
    (maker / "make_checkpoint.py").write_text(
        "import sys, pathlib\npathlib.Path(sys.argv[2], 'half').touch()\nsys.exit('no room')"
    )
    (maker / "specs" / "broken.json").write_text(json.dumps({"tensors": []}))
    monkeypatch.setattr(bundle, "FOLDER", maker)
    with pytest.raises(WeightsError, match="no room; free some space, or choose another folder"):
        bundle.checkpoint("broken", tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_another_recipe_has_another_place(tmp_path: Path, monkeypatch):
    before = bundle.place("custom-conv", tmp_path)
    changed = tmp_path / "bundle"
    (changed / "specs").mkdir(parents=True)
    for name in ("make_checkpoint.py", "specs/custom-conv.json"):
        (changed / name).write_bytes((bundle.FOLDER / name).read_bytes() + b"\n")
    monkeypatch.setattr(bundle, "FOLDER", changed)
    assert bundle.place("custom-conv", tmp_path) != before


def test_synthetic_checkpoints_are_kept_in_the_cache(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("IMAGE_ENCODERS_CACHE", str(tmp_path))
    assert bundle.checkpoints() == tmp_path / "conformance"
