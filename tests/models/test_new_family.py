"""A family is one file: a sixth one loads, is listed, and keeps the contract, with no other file changed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from image_encoders import load, models
from image_encoders.errors import UnknownModel

FAMILY = '''
"""Grids of grey: a matrix from a file, or a drawn one, times the image's pixels.

Source: this test. Inputs: images of 8 x 8 pixels. Output: 12 numbers. Differs: from nothing.
"""

from pathlib import Path

import numpy as np

from image_encoders.inputs.preprocessing import BothSides, Preprocessing
from image_encoders.model import Model, Part, Variant

VARIANTS = (Variant("small", ("image",), 12, "drawn", "none"),)


def load(variant: str, *, weights: Path | None, grid: Path | str | None = None, label: str = "") -> Model:
    matrix = np.load(grid) if grid else np.random.default_rng(0).standard_normal((12, 192)).astype(np.float32)
    preprocessing = Preprocessing(BothSides(8, 8), "bilinear", None, (0.5,) * 3, (0.5,) * 3)

    def build():
        import torch

        class Grid(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("matrix", torch.from_numpy(matrix))

            def forward(self, pixels):
                return (pixels.float() / 127.5 - 1).flatten(1) @ self.matrix.T

        return Grid()

    facts = {"family": "grids", "matrix": float(matrix.sum()), "label": label}
    return Model(f"grids/{variant}", 12, facts, [Part(preprocessing.inputs(), build)])


def tiny() -> Model:
    return load("small", weights=None)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "grids.py").write_text(FAMILY)
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "image_encoders.models.grids", raising=False)
    return folder


@pytest.mark.usefixtures("folder")
def test_it_is_listed_and_found():
    assert "grids" in models.families()
    assert "grids/small" in models.names()
    assert models.options_of("grids/small") == {"grid": None, "label": ""}
    with pytest.raises(UnknownModel, match="did you mean grids/small"):
        load("grid/small")


def test_it_loads_and_encodes_and_its_paths_are_those_that_its_load_annotates(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    np.save(tmp_path / "g.npy", np.ones((12, 192), np.float32))
    (tmp_path / "label.npy").touch()
    monkeypatch.chdir(tmp_path)
    wishes = {"device": "cpu", "precision": "float32", "engine": "torch"}
    encoder = load("grids/small", grid="g.npy", label="label.npy", **wishes)
    assert encoder.encode_image([np.full((5, 9, 3), 255, np.uint8)]) == pytest.approx(np.full((1, 12), 192.0))
    assert encoder.recipe["options"] == {"grid": str(tmp_path / "g.npy"), "label": "label.npy"}
    assert load("grids/small", **wishes).fingerprint != encoder.fingerprint


def test_it_is_held_to_the_contract_of_families(folder: Path):
    plugin = folder.parent / "plugin"
    plugin.mkdir()
    (plugin / "sixth_family.py").write_text(
        f"from image_encoders import models\nmodels.__path__.append({str(folder)!r})\n"
    )
    contract = Path(__file__).parents[1] / "contract" / "test_contract.py"
    search = os.pathsep.join([str(plugin), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "sixth_family", "-k", "grids", str(contract)],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert " passed" in ran.stdout
