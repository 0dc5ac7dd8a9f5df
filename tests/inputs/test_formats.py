"""The table of formats is what every door goes by."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from image_encoders.errors import InputError
from image_encoders.inputs.formats import IMAGE_FORMATS, NAMES, SUFFIXES, image_format


def test_no_two_formats_have_a_name_or_a_suffix_in_common():
    assert len({format.name for format in IMAGE_FORMATS}) == len(IMAGE_FORMATS)
    assert len(SUFFIXES) == sum(len(format.suffixes) for format in IMAGE_FORMATS)
    assert all(re.fullmatch(r"\.[a-z]+", suffix) for suffix in SUFFIXES)


@pytest.mark.parametrize("content", [b"", b"nothing known", b"8BPS"])
def test_a_refusal_names_all_formats(content: bytes):
    with pytest.raises(InputError) as caught:
        image_format(content)
    assert NAMES in str(caught.value)


def test_the_page_on_collections_lists_the_suffixes():
    page = (Path(__file__).parents[2] / "docs" / "collections.md").read_text(encoding="utf-8")
    [listed] = re.findall(r"below it: ([a-z, ]+), in upper or lower case", page)
    assert {f".{suffix}" for suffix in listed.split(", ")} == SUFFIXES
