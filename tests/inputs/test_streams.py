"""Open files give the bytes that are left in them, or the reason why not is told."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from image_encoders.errors import InputError
from image_encoders.inputs import streams
from image_encoders.inputs.streams import read_stream


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
        read_stream(file, "picture", max_bytes)
    return caught.value.code


def test_any_file_with_bytes_is_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "PIECE", 4)
    content = b"0123456789"
    path = tmp_path / "file"
    path.write_bytes(content)
    with zipfile.ZipFile(tmp_path / "archive", "w") as archive:
        archive.write(path, "file")
    archive = zipfile.ZipFile(tmp_path / "archive")
    files = (path.open("rb"), path.open("rb", buffering=0), archive.open("file"), Dribbling(content))
    for file in files:
        with file:
            assert read_stream(file, "picture", 10) == content
            assert not file.closed


def test_a_file_is_read_from_where_it_stands():
    file = io.BytesIO(b"0123456789")
    file.seek(7)
    assert read_stream(file, "picture", 3) == b"789"
    assert file.tell() == 10


def test_no_more_is_read_than_is_accepted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(streams, "PIECE", 4)
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
        read_stream(io.StringIO("text"), "picture", 100)
    with pytest.raises(InputError, match=r"seek\(0\)"):
        read_stream(io.BytesIO(), "picture", 100)
