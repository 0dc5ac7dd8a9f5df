"""A command starts without what it does not need."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MAIN = """
import sys
from image_encoders.cli import main
sys.argv = ["image-encoders", *sys.argv[1:]]
try:
    main()
finally:
    names = ("torch", "transformers", "openvino_telemetry")
    print("\\nloaded:", *(name for name in names if sys.modules.get(name)), file=sys.stderr)
"""


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "one.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)).save(path)
    return path


def loaded(*arguments: str) -> set[str]:
    """Which heavy packages, or talkative ones, a command of its own process imports."""
    ran = subprocess.run([sys.executable, "-c", MAIN, *arguments], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return set(ran.stderr.rpartition("loaded:")[2].split())


def test_with_a_converted_copy_neither_images_nor_words_need_torch(bfloat16: bool, image: Path, tmp_path: Path):
    from image_encoders import load

    encoder = load("clip/demo", device="cpu")  # makes the copies
    rows = encoder.encode_image([image])
    encoder.encode_text(["a red circle"])
    collection = str(tmp_path / "collection")
    by_torch = encoder.engine == "torch" or (bfloat16 and find_spec("cykooz_resizer") is None)
    needed = {"torch"} if by_torch else set()
    assert loaded("encode", str(image), "-o", collection, "--model", "clip/demo") <= needed
    assert loaded("search", collection, "a red circle") <= needed
    assert loaded("search", collection, "--image", str(image)) <= needed
    assert loaded("export", collection, str(tmp_path / "rows.npy")) == set()
    exported = np.load(tmp_path / "rows.npy")
    unit = rows / np.linalg.norm(rows)
    assert np.abs(exported / np.linalg.norm(exported) - unit).max() < (5e-3 if bfloat16 else 1e-5)


def test_the_library_is_left_as_it_is():
    code = (
        "import image_encoders.cli, lancedb; from lance_namespace_urllib3_client.api.data_api import DataApi; "
        "print(len(vars(DataApi)) > 5)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert ran.stdout.strip() == "True"


def test_what_pillow_warns_of_is_not_shown():
    program = """
import warnings
from image_encoders import cli

def warn(prog_name):
    warnings.warn_explicit("Corrupt EXIF data", UserWarning, "TiffImagePlugin.py", 9, module="PIL.TiffImagePlugin")
    warnings.warn_explicit("another's", UserWarning, "other.py", 9, module="other")

cli.app = warn
cli.main()
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0
    assert "another's" in ran.stderr
    assert "EXIF" not in ran.stderr


def test_the_databases_own_warnings_are_not_shown_unless_they_are_asked_for(tmp_path):
    program = f"""
from image_encoders import cli

def search(prog_name):  # without _distance, of which the database warns
    import lancedb
    table = lancedb.connect({str(tmp_path)!r}).create_table("a", [{{"vector": [1.0, 2.0], "n": 1}}], mode="overwrite")
    table.search([1.0, 0.0]).limit(1).select(["n"]).to_arrow()

cli.app = search
cli.main()
"""
    quiet = {name: value for name, value in os.environ.items() if name != "LANCEDB_LOG"}
    for environment, warned in ((quiet, False), ({**quiet, "LANCEDB_LOG": "warn"}, True)):
        ran = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=environment
        )
        assert ran.returncode == 0, ran.stderr
        assert ("WARN" in ran.stderr) is warned
