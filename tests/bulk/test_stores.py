"""Images, lists, tables and shards in object storage: a real S3 server on loopback, and fsspec's memory."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn import image, rows

from fake_encoder import FakeEncoder
from image_encoders.bulk.run import Report, run
from image_encoders.bulk.sources import find, stores
from image_encoders.collection import Collection
from image_encoders.errors import InputError
from image_encoders.inputs.image import ImageLimits

LIMITS = ImageLimits()

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    served = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    served.start()
    host, port = served.get_host_and_port()
    yield f"http://{host}:{port}"
    served.stop()


@pytest.fixture(params=["s3", "memory"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that writes a file into an empty bucket, and its address."""
    import fsspec
    import s3fs

    monkeypatch.chdir(tmp_path)
    if request.param == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("server"))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
    store = fsspec.filesystem(request.param, use_listings_cache=False)
    address = f"{request.param}://photos"
    if store.exists(address):
        store.rm(address, recursive=True)
    store.mkdir(address)

    def write(name: str, content: bytes) -> str:
        store.pipe_file(f"{address}/{name}", content)
        return f"{address}/{name}"

    write.address = address  # type: ignore[attr-defined]
    write.store = store  # type: ignore[attr-defined]
    yield write
    store.rm(address, recursive=True)


def encode(*arguments: str, **options: Any) -> dict[str, int]:
    encoder = FakeEncoder()
    report: Report = run(find(arguments, **options), encoder, Collection.open_or_create("index", encoder))
    assert report.total == report.encoded + report.reused + report.unchanged + report.failed
    names = ("encoded", "reused", "unchanged", "failed", "ignored")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def failures() -> dict[str, str]:
    return {one.id: one.code for one in Collection.open("index").failures()}


def test_a_folder_in_a_store_is_encoded_and_unchanged_files_are_not_read(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [bucket(f"2024/{number % 3}/image {number}#.png", image(number)) for number in range(12)]
    bucket("2024/notes.md", b"no image")
    bucket("2024/.hidden.png", image(50))
    bucket("2025/other.png", image(60))
    assert encode(f"{bucket.address}/2024") == {"encoded": 12, "ignored": 1}
    stored = rows(Collection.open("index"))
    expected = FakeEncoder().encode_image([image(number) for number in range(12)])
    assert all(stored[name]["embedding"] == expected[number].tobytes() for number, name in enumerate(names))
    bucket("2024/0/image 3#.png", image(100))
    read: list[str] = []
    original = stores.ObjectFile.read_all
    monkeypatch.setattr(
        stores.ObjectFile, "read_all", lambda self, limits: read.append(self.path) or original(self, limits)
    )
    assert encode(f"{bucket.address}/2024/") == {"encoded": 1, "unchanged": 11, "ignored": 1}
    assert read == [names[3]]
    assert encode(f"{bucket.address}/2025/other.png") == {"encoded": 1}


def test_folders_of_a_store_named_as_hive_partitions_data_are_metadata(bucket: Any) -> None:
    names = [bucket(name, image(at)) for at, name in enumerate(("x=1/year=2020/a.png", "x=1/year=2021/m=3/b.png"))]
    assert encode(f"{bucket.address}/x=1") == {"encoded": 2}
    stored = Collection.open("index").to_arrow().select(["id", "metadata"]).to_pylist()
    assert {row["id"]: json.loads(row["metadata"]) for row in stored} == {
        names[0]: {"year": "2020"},
        names[1]: {"year": "2021", "m": "3"},
    }
    assert encode(f"{bucket.address}/x=1/") == {"unchanged": 2}


def test_patterns_and_lists_name_what_is_in_a_store(bucket: Any, tmp_path: Path) -> None:
    names = [bucket(f"{number}.png", image(number)) for number in range(6)]
    listed = bucket("list.txt", "\n".join([*names[:3], names[0], "", f"{bucket.address}/none.png"]).encode())
    assert encode(listed) == {"encoded": 3, "failed": 1}
    assert failures() == {f"{bucket.address}/none.png": "not-found"}
    assert encode(f"{bucket.address}/*.png") == {"encoded": 3, "unchanged": 3}
    assert encode("-", stdin=io.BytesIO(names[5].encode())) == {"unchanged": 1}


def test_names_that_look_like_patterns_or_are_spelled_otherwise_are_found(bucket: Any) -> None:
    for number, name in enumerate(("[x].png", "a?b.png", "ü ö.png", "100%25.png", "x#t=3.png")):
        bucket(f"odd/{name}", image(number))
    assert encode(f"{bucket.address}/odd") == {"encoded": 5}
    assert encode(f"{bucket.address}/odd/[x].png") == {"unchanged": 1}
    protocol, rest = bucket.address.split("://")
    (item,) = find([f"{protocol.upper()}://{rest}/odd/[x].png"])
    assert item.read(LIMITS) == image(0)
    bucket("shard-00.png", image(20))
    bucket("shard-01.png", image(21))
    assert encode(f"{bucket.address}/shard-{{00..01}}.png") == {"encoded": 2}


def test_a_folder_without_a_name_is_not_lost_in_silence(bucket: Any) -> None:
    if bucket.address.startswith("memory"):
        pytest.skip("it has no such folders")
    bucket("photos/a.png", image(1))
    bucket("photos//b.png", image(2))
    assert encode(f"{bucket.address}/photos") == {"encoded": 1, "failed": 1}
    assert failures() == {f"{bucket.address}/photos//": "unreadable"}


def test_shards_and_zips_in_a_store_give_their_members(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tarred, zipped = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar, zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(8):
            for name, content in ((f"{number}.png", image(number)), (f"{number}.txt", b"a caption")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                archive.writestr(f"z{name}", content)
    shard, other = bucket("shard-0.tar", tarred.getvalue()), bucket("a.zip", zipped.getvalue())
    assert encode(f"{bucket.address}/shard-*.tar") == {"encoded": 8}
    assert encode(other) == {"reused": 8}
    assert set(rows(Collection.open("index"))) == {f"{shard}#{n}.png" for n in range(8)} | {
        f"{other}#z{n}.png" for n in range(8)
    }
    assert encode(shard, other) == {"unchanged": 16}
    names = [f"{shard}#3.png", f"{other}#z4.png", f"{shard}#none.png", f"{bucket.address}/none.tar#1.png"]
    listed = io.BytesIO("\n".join(names).encode())
    assert encode("-", stdin=listed) == {"unchanged": 2, "failed": 2}
    assert failures() == {names[2]: "not-found", names[3]: "not-found"}
    found = {one.id: one for one in find(["-"], stdin=io.BytesIO(listed.getvalue()))}
    assert [found[name].read(LIMITS) for name in names[:2]] == [image(3), image(4)]
    limits = stores.ImageLimits()
    for one in (*find([shard]), *find([other])):
        assert one.read(limits) == one.read(limits)
    bucket("cut.tar", tarred.getvalue()[:5000])
    assert encode(f"{bucket.address}/cut.tar")["failed"] == 1
    assert failures().pop(f"{bucket.address}/cut.tar") == "truncated"


def test_tables_in_a_store_hold_images_or_name_them(bucket: Any) -> None:
    file = io.BytesIO()
    pq.write_table(pa.table({"image": [image(number) for number in range(5)]}), file)
    table = bucket("t.parquet", file.getvalue())
    names = [bucket(f"{number}.png", image(number + 5)) for number in range(3)]
    lines = bucket("t.csv", "\n".join(["url", *names]).encode())
    assert encode(table, f"{lines}#url") == {"encoded": 8}
    assert encode(table, lines) == {"unchanged": 8}


def test_what_is_not_in_a_store_is_refused_by_name(bucket: Any) -> None:
    for argument in (f"{bucket.address}/none", f"{bucket.address}/*.png", f"{bucket.address}/none.txt"):
        with pytest.raises(InputError) as raised:
            find([argument])
        assert bucket.address in str(raised.value)


def test_a_file_with_too_many_bytes_is_not_fetched(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGE_ENCODERS_MAX_BYTES", "1000")
    name = bucket("big.png", b"x" * 2000)
    assert encode(name) == {"failed": 1}
    assert failures() == {name: "too-many-bytes"}


@pytest.mark.parametrize("name", ["ftp://a/b.png", "file:///etc/passwd", "zip://a.png::s3://b/c.zip", "local://etc/x"])
def test_lists_reach_no_files_and_no_chains_by_address(tmp_path: Path, name: str) -> None:
    [one] = find(["-"], stdin=io.BytesIO(name.encode()))
    assert one.error is not None
    assert one.error.code in ("url", "not-found")
