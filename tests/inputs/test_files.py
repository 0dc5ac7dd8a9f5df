"""The bytes of files, of what only looks like one, and of files that are open."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from image_encoders.errors import InputError
from image_encoders.inputs import files
from image_encoders.inputs.files import read_file, read_stream


def test_a_file_that_would_have_to_be_waited_for_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, regular = tmp_path / "pipe", os.stat(__file__)
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    monkeypatch.setattr(os, "fstat", lambda descriptor: regular)  # as some files of the system say of themselves
    with pytest.raises(InputError, match="nothing to read yet") as raised:
        read_file(str(pipe), "image", 1 << 20)
    assert raised.value.code == "not-a-file"
    os.close(writer)


@pytest.mark.parametrize(
    ("address", "advice"),
    [("https://a.b/c.png", "download the sound"), ("sftp://a/b.wav", "download the sound"), ("file:/a", "file://")],
)
def test_an_address_is_distinguished_from_a_path_with_what_to_do(address: str, advice: str) -> None:
    with pytest.raises(InputError, match=advice) as raised:
        read_file(address, "sound", 1 << 20)
    assert raised.value.code == "url"


# ------------------------------------------------------------------ open files


class Dribbling(io.RawIOBase):
    """A file that gives less than it was asked for, as pipes and sockets do."""

    def __init__(self, content: bytes):
        self._left = content

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        piece, self._left = self._left[:3], self._left[3:]
        return piece


def code_of(file: object, max_bytes: int = 100) -> str:
    with pytest.raises(InputError) as caught:
        read_stream(file, "image", max_bytes)
    return caught.value.code


def test_any_file_with_bytes_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "PIECE", 4)
    content = b"0123456789"
    path = tmp_path / "file"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.write(path, "file")
    archive = zipfile.ZipFile(tmp_path / "archive")
    opened = (path.open("rb"), path.open("rb", buffering=0), archive.open("file"), Dribbling(content))
    for file in opened:
        with file:
            assert read_stream(file, "image", 10) == content
            assert not file.closed


def test_a_file_is_read_from_where_it_stands():
    file = io.BytesIO(b"0123456789")
    file.seek(7)
    assert read_stream(file, "image", 3) == b"789"
    assert file.tell() == 10


def test_no_more_is_read_than_is_accepted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "PIECE", 4)
    file = io.BytesIO(bytes(1000))
    assert code_of(file, max_bytes=10) == "too-many-bytes"
    assert file.tell() == 12


def test_a_file_that_gives_no_bytes_says_why(tmp_path: Path):
    closed = io.BytesIO(b"content")
    closed.close()
    assert code_of(closed) == "unreadable"
    with open(tmp_path / "new", "wb") as writing:
        assert code_of(writing) == "unreadable"
    with pytest.raises(InputError, match="mode 'rb'"):
        read_stream(io.StringIO("text"), "image", 100)
    with pytest.raises(InputError, match=r"seek\(0\)"):
        read_stream(io.BytesIO(), "image", 100)
