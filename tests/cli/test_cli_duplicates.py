import pyarrow.parquet as pq
import pytest
from PIL import Image

from image_encoders.cli import duplicates as command_module
from image_encoders.collection import Collection


@pytest.fixture
def collection(command, photos, tmp_path, monkeypatch):
    """The six photos encoded and two more that are red, the current folder above them."""
    monkeypatch.chdir(tmp_path)
    (photos / "copy.png").write_bytes((photos / "red.png").read_bytes())
    Image.new("RGB", (80, 60), "red").save(photos / "large.png")
    assert command("encode", "photos", "-o", "c", "-m", "colours/plain").status == 0
    return tmp_path / "c"


def test_the_groups_are_listed_with_their_best_and_why(command, collection, photos):
    before = sorted(path.stat().st_mtime_ns for path in photos.rglob("*"))
    ran = command("duplicates", "c", "--threshold", 0.9999)
    assert ran.status == 0
    lines = [line.split() for line in ran.out.splitlines()]
    assert lines[0] == ["group", "similarity", "size", "bytes", "image"]
    assert lines[1][:5] == ["1", "best", "80", "x", "60"]
    assert lines[1][6:] == ["photos/large.png:", "the", "most", "pixels"]
    assert {line[-1] for line in lines[2:4]} == {"photos/red.png", "photos/copy.png"}
    assert "1 group among 8 images; besides the best of each, 2 images with 0.0 MB" in ran.out
    assert sorted(path.stat().st_mtime_ns for path in photos.rglob("*")) == before


def test_json_a_parquet_file_and_a_page_hold_the_same_groups(command, collection, tmp_path):
    ran = command("duplicates", "c", "--threshold", 0.9999, "--json", "-o", "d.parquet", "--html", "d.html")
    assert ran.status == 0
    [group] = ran.json["groups"]
    assert ran.json["images"] == 8
    assert [image["path"].rpartition("/")[2] for image in group["images"] if image["best"]] == ["large.png"]
    rows = pq.read_table(tmp_path / "d.parquet").to_pylist()
    assert [row["id"] for row in rows] == [image["id"] for image in group["images"]]
    assert (tmp_path / "d.html").read_text().count("<figure>") == 3
    assert "already exists" in command("duplicates", "c", "-o", "d.parquet").err
    assert command("duplicates", "c", "-o", "d.parquet", "--overwrite").status == 0


def test_copies_can_be_left_aside(command, collection):
    found = command("duplicates", "c", "--threshold", 0.9999, "--near", "--json").json
    assert [len(group["images"]) for group in found["groups"]] == [2]
    assert found["images"] == 7


def test_many_groups_are_listed_in_part(command, collection, monkeypatch):
    monkeypatch.setattr(command_module, "SHOWN_IMAGES", 2)
    assert "(3 images, any two 1.000 or more; 1 more)" in command("duplicates", "c", "--threshold", 0.9999).out
    monkeypatch.setattr(command_module, "SHOWN", 0)
    assert "and 1 more group: " in command("duplicates", "c", "--threshold", 0.9999).err


def test_what_cannot_be_done_is_said_before_anything_is_compared(command, collection, monkeypatch):
    monkeypatch.setattr("image_encoders.duplicates.find_duplicates", lambda *_, **__: 1 / 0)
    assert "no folder nowhere" in command("duplicates", "c", "-o", "nowhere/d.parquet").err
    assert "accepted: .parquet" in command("duplicates", "c", "-o", "d.csv").err
    assert "choose a file in an existing folder" in command("duplicates", "c", "--html", "nowhere/d.html").err
    assert "no such folder" in command("duplicates", "nowhere").err


def test_a_threshold_that_is_no_cosine_and_a_collection_without_duplicates_say_so(command, collection):
    assert "above 0 and at most 1" in command("duplicates", "c", "--threshold", 3).err
    opened = Collection.open("c")
    opened.remove([row for batch in opened.scan("items", ["id"]) for row in batch["id"].to_pylist()])
    ran = command("duplicates", "c")
    assert (ran.status, ran.out) == (0, "")
    assert "no duplicates among 0 images" in ran.err


def test_ctrl_c_leaves_nothing_behind(command, collection, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("image_encoders.duplicates.Pairs.compare", interrupted)
    before = sorted(path.name for path in tmp_path.iterdir())
    assert command("duplicates", "c", "-o", "d.parquet", "--html", "d.html").status == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == before
