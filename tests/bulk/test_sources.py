"""What the arguments of a run name."""

from __future__ import annotations

import io
import os
import subprocess
import threading
from pathlib import Path

import pytest

from image_encoders.bulk.sources import SourceFile, find, lists
from image_encoders.bulk.sources.find import expanded
from image_encoders.collection import id_of, path_of
from image_encoders.errors import InputError
from image_encoders.inputs.image import ImageLimits
from image_encoders.records import Locator


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of images and other things, in the current folder."""
    folder = tmp_path / "photos"
    for name in (
        "b.jpg",
        "a.PNG",
        "notes.md",
        ".hidden.jpg",
        "2024/z.webp",
        "2024/deep/y.tif",
        "2023/x.jpeg",
        ".cache/w.jpg",
        "empty/read me",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return folder


def names(found: list[SourceFile], folder: Path) -> list[str]:
    return [os.path.relpath(one.path, folder) for one in found]


def test_a_folder_gives_its_images_in_the_order_of_names_and_counts_the_rest(photos: Path) -> None:
    found = find(["photos"])
    assert names(list(found), photos) == ["a.PNG", "b.jpg", "2023/x.jpeg", "2024/z.webp", "2024/deep/y.tif"]
    assert found.ignored == 2
    assert found.passed_over == ["notes.md", "read me"]


def test_only_a_few_names_are_kept_of_what_is_passed_over(photos: Path) -> None:
    for number in range(20):
        (photos / f"{number:02d}.psd").write_bytes(b"x")
    found = find(["photos"])
    list(found)
    assert (found.ignored, found.passed_over) == (22, ["00.psd", "01.psd", "02.psd"])


def test_folders_named_as_hive_partitions_data_are_metadata(photos: Path) -> None:
    names = ("year=2020/month=03/a.jpg", "year=2020/b.jpg", "place=Z%C3%BCrich %26 more/c=d=e/f.jpg", "1x=2/g.jpg")
    for name in (*names, "year=__HIVE_DEFAULT_PARTITION__/h.jpg", "k=/i.jpg", "caf\udce9=\udce9/j.jpg"):
        (photos / "top=1" / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / "top=1" / name).write_bytes(name.encode("utf-8", "surrogateescape"))
    found = {os.path.basename(one.path): one for one in find(["photos/top=1"])}
    assert {name: one.metadata for name, one in found.items()} == {
        "a.jpg": {"year": "2020", "month": "03"},
        "b.jpg": {"year": "2020"},
        "f.jpg": {"place": "Zürich & more", "c": "d=e"},
        "g.jpg": None,
        "h.jpg": None,
        "i.jpg": None,
        "j.jpg": None,
    }
    [listed] = find(["-"], stdin=io.BytesIO(b"photos/top=1/year=2020/b.jpg"))
    assert (listed.id, listed.metadata) == (found["b.jpg"].id, None)
    assert {one.metadata["top"] for one in find(["photos"]) if "top=1" in one.path} == {"1"}


def test_the_order_does_not_depend_on_the_disk(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = list(find(["photos"]))
    scandir = os.scandir

    class Reversed:
        def __init__(self, folder: str):
            with scandir(folder) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *exception: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Reversed)
    assert list(find(["photos"])) == expected


def test_ids_are_absolute_paths_and_size_and_time_come_along(photos: Path) -> None:
    first = next(find(["photos"]))
    assert first.id == first.path == str(photos / "a.PNG")
    assert first.state == f"{len('a.PNG')} {os.stat(photos / 'a.PNG').st_mtime_ns}"
    assert first.read(ImageLimits()) == (photos / "a.PNG").read_bytes()
    assert first.locator == Locator(first.path)
    assert first.error is None


def test_all_files_takes_every_name_but_hidden_ones(photos: Path) -> None:
    found = find(["photos"], all_files=True)
    assert {"notes.md", "empty/read me"} < set(names(list(found), photos))
    assert found.ignored == 0


def test_a_file_is_taken_whatever_its_name(photos: Path) -> None:
    assert names(list(find(["photos/notes.md", "photos/.hidden.jpg"])), photos) == ["notes.md", ".hidden.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.jpg", ["b.jpg"]),
        ("photos/**/*.jp*g", ["b.jpg", "2023/x.jpeg"]),
        ("photos/**/deep/*", ["2024/deep/y.tif"]),
        ("photos/20?3/*", ["2023/x.jpeg"]),
        ("photos/20[0-9]4", ["2024/z.webp", "2024/deep/y.tif"]),
        ("photos/*.md", ["notes.md"]),  # the ending is asked for
        ("photos/*", ["2023/x.jpeg", "2024/z.webp", "2024/deep/y.tif", "a.PNG", "b.jpg"]),
        ("photos/.h*", [".hidden.jpg"]),
        ("phot*/../photos/b.*", ["b.jpg"]),
    ],
)
def test_globs_match_as_in_a_shell(photos: Path, pattern: str, expected: list[str]) -> None:
    assert names(list(find([pattern])), photos) == expected
    assert names(list(find([str(photos.parent / pattern)])), photos) == expected


def test_a_double_star_takes_what_a_folder_argument_takes(photos: Path) -> None:
    assert sorted(one.id for one in find(["photos/**"])) == sorted(one.id for one in find(["photos"]))


def test_a_file_whose_name_looks_like_a_glob_is_that_file(photos: Path) -> None:
    (photos / "[1].jpg").write_bytes(b"x")
    assert names(list(find(["photos/[1].jpg"])), photos) == ["[1].jpg"]


@pytest.mark.parametrize(
    "content",
    [
        b"photos/b.jpg\nphotos/a.PNG\n",
        b"photos/b.jpg\r\n\r\nphotos/a.PNG",
        b"photos/b.jpg\0photos/a.PNG\0",
        b"\xef\xbb\xbfphotos/b.jpg\nphotos/a.PNG",
    ],
)
def test_lists_are_read_from_files_and_from_standard_input(photos: Path, content: bytes) -> None:
    expected = ["b.jpg", "a.PNG"]
    Path("list.txt").write_bytes(content)
    Path("names").write_bytes(content)
    assert names(list(find(["list.txt"])), photos) == expected
    assert names(list(find(["@names"])), photos) == expected
    assert names(list(find(["-"], stdin=io.BytesIO(content))), photos) == expected


def test_a_list_longer_than_what_is_read_at_once_keeps_every_name(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lists, "CHUNK", 7)
    wanted = [f"photos/image {number}.jpg" for number in range(50)]
    for separator in ("\n", "\0", "\r\n"):
        found = find(["-"], stdin=io.BytesIO(separator.join(wanted).encode()))
        assert names(list(found), photos.parent) == wanted


def test_a_name_in_a_null_separated_list_may_hold_line_ends(photos: Path) -> None:
    (photos / "two\nlines.jpg").write_bytes(b"x")
    [one] = find(["-"], stdin=io.BytesIO(b"photos/two\nlines.jpg\0"))
    assert one.error is None
    assert one.state.startswith("1 ")


def test_names_that_no_file_can_have_fail_alone_and_a_file_that_is_no_list_is_one_error(photos: Path) -> None:
    odd = b"photos/b.jpg\n" * 10_000 + b"../a\0b\nphotos/\xed\xa0\x80.jpg\n" + b"q" * 100_000 + b"\n"
    there, *others = find(["-"], stdin=io.BytesIO(odd))
    assert there.error is None
    assert [one.error and one.error.code for one in others] == ["unreadable", "not-found", "unreadable"]
    for one in others:
        one.id.encode()
    with pytest.raises(InputError, match="not a list of paths"):
        list(find(["-"], stdin=io.BytesIO(bytes(range(1, 10)) * 200_000)))
    for argument in ("\ud800", "@\ud800", "a\0b", "@a\0b"):
        with pytest.raises(InputError):
            find([argument])


def test_arguments_are_described_so_that_they_can_be_understood_elsewhere(photos: Path) -> None:
    (photos.parent / "names.txt").write_text("photos/b.jpg")
    found = find(["photos", "photos/*.jpg", "@names.txt", "-"], stdin=io.BytesIO(b""))
    here = os.getcwd()
    assert found.described == [f"{here}/photos", f"{here}/photos/*.jpg", f"@{here}/names.txt", "-"]


def test_a_folder_in_a_list_is_searched(photos: Path) -> None:
    assert names(list(find(["-"], stdin=io.BytesIO(b"photos/2024\nphotos/b.jpg"))), photos) == [
        "2024/z.webp",
        "2024/deep/y.tif",
        "b.jpg",
    ]


def test_the_same_path_is_taken_once_however_it_is_reached(photos: Path) -> None:
    arguments = [
        "photos/2024",
        "photos",
        "photos/b.jpg",
        "photos/../photos/b.jpg",
        "photos/**/*.jpg",
        "./photos//b.jpg",
    ]
    found = names(list(find(arguments)), photos)
    assert len(found) == len(set(found)) == 5
    assert find(arguments).count() == 5


@pytest.mark.parametrize("argument", ["missing", "missing/*.jpg", "photos/*.xyz", "@missing", "photos/b.jpg/c.jpg"])
def test_an_argument_that_names_nothing_is_an_error_before_anything_starts(photos: Path, argument: str) -> None:
    with pytest.raises(InputError) as raised:
        find(["photos", argument])
    assert argument.lstrip("@") in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("empty", ["", "@"])
def test_an_empty_name_is_refused_with_what_is_accepted(photos: Path, empty: str) -> None:
    with pytest.raises(InputError, match=r"^(an empty source name|@: no such list).* accepted"):
        find([empty])


@pytest.mark.parametrize(
    "address", ["http://a.b/c.png", "HTTPS://a.b/c.png?d=1", "ftp://a/*.jpg", "sftp://a/b.jpg", "file:///a/b.png"]
)
def test_an_address_is_named_as_it_was_given_and_distinguished_from_a_path(photos: Path, address: str) -> None:
    with pytest.raises(InputError, match="URL, not a path") as raised:
        find([address])
    assert (raised.value.item, raised.value.code) == (address, "url")


@pytest.mark.parametrize("address", ["sftp://a/b.jpg", "file:///a/b.png"])
def test_an_address_that_is_not_accepted_in_a_list_fails_alone(photos: Path, address: str) -> None:
    [listed] = find(["-"], stdin=io.BytesIO(address.encode()))
    assert (listed.id, listed.path, listed.state) == (address, address, "")
    assert listed.error is not None
    assert listed.error.code == "url"


def test_a_file_whose_name_looks_like_an_address_is_that_file(photos: Path) -> None:
    Path("http:").mkdir()
    Path("http:/a.png").write_bytes(b"x")
    assert [one.error for one in find(["http://a.png"])] == [None]
    assert [one.error for one in find(["-"], stdin=io.BytesIO(b"http://a.png"))] == [None]


def test_a_missing_path_in_a_list_comes_out_with_its_error(photos: Path) -> None:
    missing, there = find(["-"], stdin=io.BytesIO(b"photos/gone.jpg\nphotos/b.jpg"))
    assert missing.error is not None
    assert (missing.error.code, missing.state) == ("not-found", "")
    assert there.error is None


def test_links_are_followed_and_loops_are_survived(photos: Path) -> None:
    (photos / "2024" / "up").symlink_to(photos)
    (photos / "2024" / "self").symlink_to("self")
    (photos / "2023" / "self.jpg").symlink_to("self.jpg")
    (photos / "2023" / "b link.jpg").symlink_to(photos / "b.jpg")
    (photos / "2023" / "nowhere.jpg").symlink_to("nowhere at all.jpg")
    outside = photos.parent / "outside"
    outside.mkdir()
    (outside / "o.jpg").write_bytes(b"o")
    (photos / "linked").symlink_to(outside)
    found = {os.path.relpath(one.path, photos): one for one in find(["photos"])}
    assert {"linked/o.jpg", "2023/b link.jpg", "b.jpg", "2024/z.webp"} < set(found)
    assert not any("up" in name.split("/") for name in found)
    assert found["2023/nowhere.jpg"].error is not None
    assert found["2023/self.jpg"].error is not None
    assert sum(one.error is not None for one in found.values()) == 2
    assert "linked/o.jpg" in names(list(find(["photos/**/*.jpg"])), photos)


def test_deep_folders_do_not_exhaust_the_stack(tmp_path: Path) -> None:
    depth, here = 1500, os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("deep.jpg").write_bytes(b"x")
    finally:
        os.chdir(here)
    try:
        [one] = find([str(tmp_path)])
        assert one.path.endswith("d/deep.jpg")
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # too deep for Python's own


def test_what_is_not_a_regular_file_comes_out_with_its_error_and_is_not_opened(photos: Path) -> None:
    os.mkfifo(photos / "pipe.jpg")
    (photos / "folder.jpg").mkdir()
    [pipe] = [one for one in find(["photos"]) if one.path.endswith("pipe.jpg")]
    assert pipe.error is not None
    assert pipe.error.code == "not-a-file"


def test_a_folder_that_cannot_be_searched_is_reported_and_the_others_are_searched(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def denied(folder: str) -> object:
        if folder.endswith("2023"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    found = {os.path.relpath(one.path, photos): one.error for one in find(["photos"])}
    error = found.pop("2023")
    assert error is not None
    assert (error.code, "Permission denied" in error.message) == ("unreadable", True)
    assert "2024/z.webp" in found
    assert set(found.values()) == {None}


def test_a_collection_inside_a_folder_is_skipped(photos: Path) -> None:
    (photos / "index" / "items.lance").mkdir(parents=True)
    (photos / "index" / "collection.json").write_text("{}")
    (photos / "index" / "thumbnail.jpg").write_bytes(b"x")
    assert not any("index" in one.path for one in find(["photos"], all_files=True))


def test_names_that_are_not_utf8_survive(photos: Path) -> None:
    odd = [b"caf\xe9.jpg", b"back\\slash\\xe9.jpg", b"both\\ \xff.jpg", "ü.jpg".encode()]
    for name in odd:
        (photos / os.fsdecode(name)).write_bytes(b"x")
    found = [one for one in find(["photos"]) if os.fsencode(os.path.basename(one.path)) in odd]
    assert len(found) == len({one.id for one in found}) == len(odd)
    for one in found:
        one.id.encode("utf-8")
        assert path_of(one.id) == one.path
        assert id_of(path_of(one.id)) == one.id
        assert one.error is None
    listed = list(find(["-"], stdin=io.BytesIO(b"photos/caf\xe9.jpg\n")))
    assert listed[0].error is None


def test_the_count_equals_what_is_found_except_for_standard_input(photos: Path) -> None:
    assert find(["photos"]).count() == len(list(find(["photos"])))
    assert find(["-"], stdin=io.BytesIO(b"photos/b.jpg")).count() is None


def test_nothing_but_the_run_reads_a_list_that_is_a_pipe(photos: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"photos/b.jpg\nphotos/a.PNG\n")
    os.close(writing)
    found = find([f"@/dev/fd/{reading}"])
    assert (found.count(), found.sample(5)) == (None, [])
    assert names(list(found), photos) == ["b.jpg", "a.PNG"]
    os.close(reading)


@pytest.mark.parametrize("argument", ["@names.txt", "@names"])
def test_a_list_that_is_a_named_pipe_is_opened_once(photos: Path, argument: str) -> None:
    os.mkfifo(argument[1:])
    writer = threading.Thread(target=Path(argument[1:]).write_bytes, args=(b"photos/b.jpg\n",), daemon=True)
    writer.start()
    assert names(list(find([argument])), photos) == ["b.jpg"]
    writer.join()


def test_standard_input_that_is_closed_is_refused(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InputError, match="standard input is closed"):
        find(["-"])
    assert names(list(find(["-"], stdin=io.BytesIO(b"photos/b.jpg"))), photos) == ["b.jpg"]


def test_braces_stand_for_several_names_unless_a_file_has_them(photos: Path) -> None:
    for number in range(3):
        (photos / f"shard-{number:03d}.png").write_bytes(b"")
    found = list(find(["photos/shard-{000..002}.png"]))
    assert names(found, photos) == ["shard-000.png", "shard-001.png", "shard-002.png"]
    assert list(expanded("a-{008..010}-{x,y}.tar")) == [
        f"a-{number}-{letter}.tar" for number in ("008", "009", "010") for letter in "xy"
    ]
    assert list(expanded("{2..0}")) == ["2", "1", "0"]
    assert list(expanded("s3://bucket/{1..2}.tar#a{b}")) == ["s3://bucket/1.tar#a{b}", "s3://bucket/2.tar#a{b}"]
    (photos / "{1..3}.png").write_bytes(b"")
    assert names(list(find(["photos/{1..3}.png"])), photos) == ["{1..3}.png"]
    with pytest.raises(InputError, match=r"^photos/shard-003.png: no such file"):
        find(["photos/shard-{000..003}.png"])


def test_a_list_in_utf_16_is_read_as_such(photos: Path) -> None:
    """Its null bytes would separate names of one letter, and "/" is a folder with everything in it."""
    (photos / "ü.png").write_bytes(b"")
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        listed = mark + "photos/b.jpg\r\nphotos/ü.png\r\n".encode(encoding)
        found = list(find(["-"], stdin=io.BytesIO(listed)))
        assert names(found, photos) == ["b.jpg", "ü.png"]
