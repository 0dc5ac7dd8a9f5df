"""Images in tar and zip files: what is found, what is known without reading, what is damaged."""

from __future__ import annotations

import gzip
import io
import json
import math
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import webdataset
from drawn import draw, image, rows

from fake_encoder import FakeEncoder
from image_encoders.bulk.run import Report, run
from image_encoders.bulk.sources import archives, contents, find
from image_encoders.bulk.sources.places import LocalFile
from image_encoders.collection import ITEMS, Collection
from image_encoders.errors import InputError
from image_encoders.inputs.image import ImageLimits

LIMITS = ImageLimits()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A shard of ten samples, written by the library that defines the format."""
    path = tmp_path / "shard-000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(10):
            writer.write(
                {
                    "__key__": f"train/{number:05d}",
                    "png": image(number),
                    "json": {"width": number, "source": "drawn"},
                    "txt": f"caption {number}",
                    "cls": number % 3,
                }
            )
    return path


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


def encode(index: Path, *arguments: object, encoder: FakeEncoder | None = None) -> Report:
    encoder = encoder or FakeEncoder()
    report = run(find([str(one) for one in arguments]), encoder, Collection.open_or_create(index, encoder))
    assert report.total == report.encoded + report.reused + report.unchanged + report.failed
    return report


def counts(report: Report) -> dict[str, int]:
    names = ("encoded", "reused", "unchanged", "failed", "ignored")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def failures(index: Path) -> dict[str, str]:
    """The code of each failure by the last part of its id."""
    return {one.id.rpartition("/")[2]: one.code for one in Collection.open(index).failures()}


def metadata(index: Path) -> dict[str, Any]:
    found = {}
    for batch in Collection.open(index).scan(ITEMS, ["id", "metadata"]):
        for row in batch.to_pylist():
            found[row["id"]] = row["metadata"] and json.loads(row["metadata"])
    return found


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def zip_of(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return path


# ------------------------------------------------------------------ what is found


def test_a_webdataset_shard_gives_its_images_with_captions_and_metadata(shard: Path, index: Path) -> None:
    assert counts(encode(index, shard)) == {"encoded": 10}
    stored = rows(Collection.open(index))
    expected = FakeEncoder().encode_image([image(number) for number in range(10)])
    for number in range(10):
        id = f"{shard}#train/{number:05d}.png"
        assert stored[id]["embedding"] == expected[number].tobytes()
        assert stored[id]["path"] == str(shard)
        assert metadata(index)[id] == {
            "width": number,
            "source": "drawn",
            "caption": f"caption {number}",
            "class": number % 3,
        }


def test_members_have_the_embeddings_of_the_same_files_loose(shard: Path, index: Path, tmp_path: Path) -> None:
    loose = draw(tmp_path / "loose", range(10))
    encode(index, shard)
    assert counts(encode(index, tmp_path / "loose")) == {"reused": 10}
    stored = rows(Collection.open(index))
    for number, path in enumerate(loose):
        assert stored[str(path)]["embedding"] == stored[f"{shard}#train/{number:05d}.png"]["embedding"]


def zstandard(content: bytes) -> bytes:
    """Packed as by the `zstd` program."""
    file = pa.BufferOutputStream()
    with pa.CompressedOutputStream(file, "zstd") as packed:
        packed.write(content)
    return file.getvalue().to_pybytes()


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip"])
def test_archives_of_all_kinds_give_their_images_and_name_what_is_passed_over(
    tmp_path: Path, index: Path, ending: str
) -> None:
    files = {f"photos/{number:02d}.png": image(number) for number in range(5)}
    files |= {"photos/02.txt": b"the third", "notes.md": b"no image", "photos/.hidden.png": image(9)}
    path = tmp_path / f"photos{ending}"
    if ending == ".zip":
        zip_of(path, files)
    elif ending == ".tar.zst":
        path.write_bytes(zstandard(tar_of(tmp_path / "plain.tar", dict(sorted(files.items()))).read_bytes()))
    else:
        in_order = dict(sorted(files.items()))
        tar_of(path, in_order, {".tgz": "w:gz"}.get(ending, f"w:{ending[5:]}"))
    found = find([str(path)])
    ids = [one.id for one in found]
    assert sorted(ids) == [f"{path}#photos/{number:02d}.png" for number in range(5)]
    assert (found.ignored, found.passed_over) == (1, ["notes.md"])
    assert find([str(path)]).count() == (5 if ending in (".tar", ".zip") else None)
    assert counts(encode(index, path)) == {"encoded": 5, "ignored": 1}
    assert metadata(index)[f"{path}#photos/02.png"] == {"caption": "the third"}
    assert counts(encode(index, path)) == {"unchanged": 5, "ignored": 1}


def test_archives_are_taken_from_globs_and_lists(shard: Path, index: Path, tmp_path: Path) -> None:
    tar_of(tmp_path / "shard-001.tar", {"a.png": image(50)})
    (tmp_path / "shards.lst").write_text(f"{shard}\n{tmp_path}/shard-001.tar\n")
    assert len(list(find([f"{tmp_path}/shard-*.tar"]))) == 11
    assert len(list(find([str(tmp_path / "shards.lst"), str(shard)]))) == 11


def test_images_that_share_a_key_share_what_stands_beside_them(tmp_path: Path, index: Path) -> None:
    files = {"7.left.png": image(1), "7.right.png": image(2), "7.txt": b"both", "8.png": image(3)}
    for path in (tar_of(tmp_path / "a.tar", files), zip_of(tmp_path / "a.zip", files)):
        encode(index, path)
        assert [metadata(index)[f"{path}#{name}"] for name in ("7.left.png", "7.right.png", "8.png")] == [
            {"caption": "both"},
            {"caption": "both"},
            None,
        ]


# ------------------------------------------------------------------ what is not read


def test_unchanged_members_are_known_without_reading(
    shard: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "packed.tar.gz"
    packed.write_bytes(gzip.compress(shard.read_bytes()))
    encode(index, shard, packed)
    held: list[bytes] = []
    monkeypatch.setattr(archives, "read_member", lambda *arguments: pytest.fail("a member was read"))
    monkeypatch.setattr(archives, "Content", lambda content: held.append(content))
    assert counts(encode(index, shard, packed)) == {"unchanged": 20}
    assert held == []


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_and_places_of_members_are_those_that_tarfile_finds(tmp_path: Path, format: int) -> None:
    names = ["a.png", "b/" * 60 + "long.png", "é.png", "n" * 90 + ".png", "c.PNG"]
    with tarfile.open(tmp_path / "t.tar", "w", format=format) as tar:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(image(number)), number
            tar.addfile(info, io.BytesIO(image(number)))
    items = list(find([str(tmp_path / "t.tar")]))
    assert [item.locator.member for item in items] == names
    assert [item.read(ImageLimits()) for item in items] == [image(number) for number in range(len(names))]


def test_a_shard_that_was_touched_is_read_again_and_not_encoded(shard: Path, index: Path) -> None:
    encode(index, shard)
    os.utime(shard, ns=(1, 1))
    encoder = FakeEncoder()
    assert counts(encode(index, shard, encoder=encoder)) == {"unchanged": 10}
    assert encoder.batches == []


def test_bytes_that_came_by_are_had_again_from_the_archive(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar.gz", {f"{number}.png": image(number) for number in range(4)}, "w:gz")
    for number, one in enumerate(find([str(path)])):
        assert one.read(LIMITS) == one.read(LIMITS) == image(number)


def test_no_more_bytes_are_held_than_may_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: Callable[[], int]
) -> None:
    monkeypatch.setattr(contents, "MOST", 2000)
    files = {f"{number:03d}.png": image(number) for number in range(60)}
    path = tar_of(tmp_path / "a.tar.gz", files, "w:gz")
    most = 0

    def watch(inputs: object) -> None:
        nonlocal most
        most = max(most, waiting())

    assert encode(tmp_path / "index", path, encoder=FakeEncoder(before=watch)).encoded == 60
    assert most <= 2000 + 700
    assert waiting() == 0


def test_a_list_of_all_items_may_hold_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MOST", 1000)
    monkeypatch.setattr(contents, "PATIENCE_S", 0.01)
    path = tar_of(tmp_path / "a.tar.gz", {f"{number}.png": image(number) for number in range(9)}, "w:gz")
    assert [one.read(LIMITS) for one in list(find([str(path)]))] == [image(number) for number in range(9)]


# ------------------------------------------------------------------ what is damaged, or hostile


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
@pytest.mark.parametrize("where", ["data", "header", "boundary"])
def test_a_tar_cut_in_the_middle_gives_what_is_there_and_one_failure(
    shard: Path, index: Path, tmp_path: Path, ending: str, where: str
) -> None:
    whole = shard.read_bytes()
    with tarfile.open(shard) as tar:
        sixth = tar.getmember("train/00005.png")
        at = {"data": sixth.offset_data + 100, "header": sixth.offset + 100, "boundary": sixth.offset}[where]
    cut = tmp_path / f"cut{ending}"
    cut.write_bytes(whole[:at] if ending == ".tar" else gzip.compress(whole[:at]))
    assert counts(encode(index, cut)) == {"encoded": 5, "failed": 1}
    assert failures(index) == {cut.name: "truncated"}
    cut.write_bytes(whole if ending == ".tar" else gzip.compress(whole))
    assert counts(encode(index, cut)) == {"encoded": 5, "unchanged": 5}
    assert failures(index) == {}


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_compressed_tar_cut_in_the_middle_gives_what_is_there_and_one_failure(
    tmp_path: Path, index: Path, ending: str
) -> None:
    plain = tar_of(tmp_path / "a.tar", {f"{n}.png": image(n) + os.urandom(10_000) for n in range(40)}).read_bytes()
    whole = gzip.compress(plain) if ending == "gz" else zstandard(plain)
    cut = tmp_path / f"cut.tar.{ending}"
    cut.write_bytes(whole[: len(whole) // 2])
    report = encode(index, cut)
    assert 1 <= report.encoded < 40
    assert report.failed == 1
    assert failures(index) == {cut.name: "truncated"}


def test_a_tar_damaged_in_the_middle_says_where(shard: Path, index: Path) -> None:
    with tarfile.open(shard) as tar:
        at = tar.getmember("train/00005.png").offset
    with shard.open("r+b") as file:
        file.seek(at)
        file.write(b"\xff" * 512)
    report = encode(index, shard)
    assert (report.encoded, report.failed) == (5, 1)
    assert f"byte {at:,}" in Collection.open(index).failures()[0].message


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"\0" * 100])
@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tar.gz", "a.tar.xz"])
def test_what_is_no_archive_is_one_failure(tmp_path: Path, index: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert counts(encode(index, tmp_path / name)) == {"failed": 1}


def test_links_devices_and_names_that_lead_elsewhere_read_nothing_outside_and_fail_alone(
    tmp_path: Path, index: Path
) -> None:
    outside = draw(tmp_path / "outside", [7])[0]
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w") as tar:
        for name, type, target in (
            ("soft.png", tarfile.SYMTYPE, str(outside)),
            ("hard.png", tarfile.LNKTYPE, "../outside/00007.png"),
            ("device.png", tarfile.CHRTYPE, ""),
            ("pipe.png", tarfile.FIFOTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = type, target
            tar.addfile(info)
        for name in ("../../up.png", "/absolute.png", "plain.png"):
            info = tarfile.TarInfo(name)
            info.size = len(image(1))
            tar.addfile(info, io.BytesIO(image(1)))
    before = sorted(tmp_path.rglob("*"))
    assert counts(encode(index, path)) == {"encoded": 1, "reused": 2, "failed": 4}
    assert set(failures(index).values()) == {"not-a-file"}
    assert [one for one in sorted(tmp_path.rglob("*")) if index not in (one, *one.parents)] == before


def test_a_member_that_unpacks_to_too_much_fails_alone(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGE_ENCODERS_MAX_BYTES", "100000")
    bomb = b"\0" * 50_000_000
    files = {"0.png": image(0), "1.png": bomb, "2.png": image(2), "3.png": image(3), "3.txt": bomb}
    for path in (
        tar_of(tmp_path / "a.tar.gz", files, "w:gz"),
        tar_of(tmp_path / "a.tar", files),
        zip_of(tmp_path / "a.zip", files),
    ):
        assert counts(encode(index, path)) in ({"encoded": 2, "failed": 2}, {"reused": 2, "failed": 2})
        assert {name: code for name, code in failures(index).items() if path.name + "#" in name} == {
            f"{path.name}#1.png": "too-many-bytes",
            f"{path.name}#3.png": "metadata",
        }


def test_a_zip_whose_directory_lies_about_a_size_fails_alone(tmp_path: Path, index: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {"0.png": image(0), "1.png": b"\0" * 1_000_000})
    content = bytearray(path.read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 100)
    path.write_bytes(content)
    assert counts(encode(index, path)) == {"encoded": 1, "failed": 1}
    assert failures(index) == {"a.zip#1.png": "corrupt"}


def test_a_name_of_gigabytes_is_refused_before_it_is_held(tmp_path: Path, index: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + b"a" * 10_000_000))
    assert counts(encode(index, path)) == {"failed": 1}
    assert failures(index) == {"a.tar.gz": "corrupt"}


def test_damaged_and_encrypted_members_of_a_zip_fail_alone(tmp_path: Path, index: Path) -> None:
    path = zip_of(tmp_path / "a.zip", {f"{number}.png": image(number) for number in range(3)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(image(1)) + 40] ^= 0xFF
    entries = [at for at in range(len(content)) if content[at : at + 4] == b"PK\x01\x02"]
    content[entries[2] + 8] |= 1
    path.write_bytes(content)
    assert counts(encode(index, path)) == {"encoded": 1, "failed": 2}
    assert failures(index) == {"a.zip#1.png": "corrupt", "a.zip#2.png": "unsupported"}


def test_two_members_of_one_name_are_one_image_and_one_failure(tmp_path: Path, index: Path) -> None:
    path = tmp_path / "a.tar"
    for number in range(2):
        tar_of(path, {"a.png": image(number)}, "a")
    for _ in range(2):
        assert encode(index, path).failed == 1
    assert list(failures(index).values()) == ["same-name"]
    assert rows(Collection.open(index))[f"{path}#a.png"]["sha256"]


@pytest.mark.parametrize("beside", [b"{", b"\xff\xfe", b"[" * 100_000])
def test_an_image_whose_metadata_cannot_be_read_fails_alone(tmp_path: Path, index: Path, beside: bytes) -> None:
    files = {"0.json": beside, "0.png": image(0), "1.json": b"{}", "1.png": image(1)}
    path = tar_of(tmp_path / "a.tar", files)
    assert counts(encode(index, path)) == {"encoded": 1, "failed": 1}
    assert failures(index) == {"a.tar#0.png": "metadata"}


def test_an_archive_that_changes_while_it_is_read_gives_no_bytes_of_another_image(tmp_path: Path, index: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {f"{number}.png": image(number) for number in range(6)})
    items = list(find([str(path)]))
    tar_of(path, {f"{number}.png": image(number + 100) for number in reversed(range(6))})
    report = run(items, FakeEncoder(), index)
    assert (report.encoded, report.failed) == (0, 6)
    assert set(failures(index).values()) == {"changed"}
    assert counts(encode(index, path)) == {"encoded": 6}
    assert failures(index) == {}


def test_names_that_are_not_utf8_are_found_again(tmp_path: Path, index: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    path = tar_of(tmp_path / "a.tar", {odd: image(3)})
    assert counts(encode(index, path)) == {"encoded": 1}
    assert counts(encode(index, path)) == {"unchanged": 1}
    member = archives.find_member(LocalFile.at(str(path)), odd)
    assert archives.read_member(LocalFile.at(str(path)), member, 1 << 20) == image(3)
    with pytest.raises(InputError, match="no other"):
        archives.find_member(LocalFile.at(str(path)), "other.png")


def test_what_is_no_number_beside_an_image_is_null(tmp_path: Path, index: Path) -> None:
    path = tmp_path / "shard.tar"
    with webdataset.TarWriter(str(path)) as writer:
        said = {"aesthetics": math.nan, "most": math.inf, "n": 1, "inside": {"x": [math.nan]}}
        writer.write({"__key__": "v1.0/a.b/0", "png": image(0), "json": said})
    assert counts(encode(index, path)) == {"encoded": 1}
    assert metadata(index)[f"{path}#v1.0/a.b/0.png"] == {
        "aesthetics": None,
        "most": None,
        "n": 1,
        "inside": {"x": [None]},
    }


def test_metadata_that_is_nested_too_deeply_for_the_database_fails_its_image_alone(tmp_path: Path, index: Path) -> None:
    files = {"0.json": b'{"a":' * 300 + b"1" + b"}" * 300, "0.png": image(0), "1.json": b"[[[]]]", "1.png": image(1)}
    assert counts(encode(index, tar_of(tmp_path / "a.tar", files))) == {"encoded": 1, "failed": 1}
    assert failures(index) == {"a.tar#0.png": "metadata"}


def test_a_sparse_file_in_a_tar_fails_alone(tmp_path: Path, index: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (("hole.png", {"GNU.sparse.map": "0,512", "GNU.sparse.size": "99999999"}), ("a.png", {})):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(image(1)), headers
            tar.addfile(info, io.BytesIO(image(1)))
    assert counts(encode(index, path)) == {"encoded": 1, "failed": 1}
    assert failures(index) == {"a.tar#hole.png": "not-a-file"}
