import subprocess

import pyarrow.parquet as pq
import pytest

from image_encoders.cli import map as map_module


@pytest.fixture
def collection(command, photos, tmp_path, monkeypatch):
    """The six photos encoded, the current folder above them."""
    monkeypatch.chdir(tmp_path)
    assert command("encode", "photos", "-o", "c", "-m", "colours/plain").status == 0
    return tmp_path / "c"


def test_a_map_is_written_and_how_to_open_it_is_said(command, collection, tmp_path):
    ran = command("map", "c", "--no-open", "--method", "pca")
    assert ran.status == 0
    assert ran.out == "6 images by pca: c.map.parquet\n"
    assert "embedding-atlas c.map.parquet --x x --y y --text path" in ran.err
    assert pq.read_table(tmp_path / "c.map.parquet").num_rows == 6
    assert "already exists" in command("map", "c", "--no-open").err
    again = command("map", "c", "--no-open", "--method", "pca", "--overwrite", "--json")
    assert again.json == {"path": str(tmp_path / "c.map.parquet"), "images": 6, "method": "pca"}


def test_without_the_extra_nothing_is_begun(command, collection, tmp_path, monkeypatch):
    monkeypatch.setattr(map_module, "find_spec", lambda name: None)
    ran = command("map", "c")
    assert ran.status == 2
    assert "pip install 'image-encoders[map]'" in ran.err
    assert "--no-open" in ran.err
    assert not (tmp_path / "c.map.parquet").exists()


@pytest.mark.parametrize(("ended", "status"), [(0, 0), (1, 2)])
def test_embedding_atlas_is_given_the_file_and_its_columns(command, collection, monkeypatch, ended, status):
    started = []

    def run(words, **options):
        started.append((words[1:], options["stdout"]))
        return subprocess.CompletedProcess(words, ended)

    monkeypatch.setattr(map_module, "find_spec", lambda name: name)
    monkeypatch.setattr(map_module.subprocess, "run", run)
    ran = command("map", "c", "--method", "pca", "-o", "m.parquet")
    assert started == [(["-m", "embedding_atlas.cli", "m.parquet", "--x", "x", "--y", "y", "--text", "path"], 2)]
    assert ran.status == status
    assert ("Embedding Atlas ended with status 1; m.parquet was written" in ran.err) is bool(ended)
