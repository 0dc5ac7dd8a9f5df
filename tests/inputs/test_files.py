"""The bytes of files, and of what only looks like one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from image_encoders.errors import InputError
from image_encoders.inputs.files import read_file


def test_a_file_that_would_have_to_be_waited_for_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, regular = tmp_path / "pipe", os.stat(__file__)
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    monkeypatch.setattr(os, "fstat", lambda descriptor: regular)  # as some files of the system say of themselves
    with pytest.raises(InputError, match="nothing to read yet") as raised:
        read_file(str(pipe), "picture", 1 << 20)
    assert raised.value.code == "not-a-file"
    os.close(writer)


@pytest.mark.parametrize(
    ("address", "advice"),
    [("https://a.b/c.png", "download the sound"), ("sftp://a/b.wav", "download the sound"), ("file:/a", "file://")],
)
def test_an_address_is_told_from_a_path_with_what_to_do(address: str, advice: str) -> None:
    with pytest.raises(InputError, match=advice) as raised:
        read_file(address, "sound", 1 << 20)
    assert raised.value.code == "url"
