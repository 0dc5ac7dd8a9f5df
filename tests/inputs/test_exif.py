"""What metadata say of an image is read as Pillow reads it, and where they are damaged too."""

from __future__ import annotations

import time
import warnings
from datetime import datetime

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from image_encoders.inputs.exif import date_taken, orientation, turned

XMP = b'<rdf:Description tiff:Orientation="3"/>'


def exif(order: str = "<") -> bytes:
    written = Image.Exif()
    written.endian = order
    written[0x010F] = "a maker"
    written[0x0112] = 6
    written[0x011A] = 72.0
    written.get_ifd(0x8769)[0x9003] = "2024:02:29 23:59:58"
    return written.tobytes()


def by_pillow(content: bytes) -> tuple[object, object]:
    """Orientation and date, None what Pillow does not find."""
    found = Image.Exif()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found.load(content)
        except Exception:
            return None, None
        try:
            date = found.get_ifd(0x8769).get(0x9003)
        except Exception:
            date = None
        return found.get(0x0112), date  # which is read only now


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0", b"Exif\0\0Exif\0\0"])
def test_it_is_found_in_either_byte_order_and_behind_any_prefix(order: str, prefix: bytes):
    content = exif(order).removeprefix(b"Exif\0\0")
    assert content[:2] == (b"II" if order == "<" else b"MM")
    assert orientation(prefix + content) == 6


def test_prefixes_without_end_take_no_longer_than_their_bytes():
    content = b"Exif\0\0" * 2**20
    started = time.process_time()
    assert orientation(content) == 1  # copying what is left after each one would take minutes
    assert time.process_time() - started < 10


def test_exif_goes_before_xmp_which_is_read_where_exif_states_nothing():
    assert orientation(exif(), XMP) == 6
    assert orientation(b"", XMP) == orientation(b"II*\0\x08\0\0\0\0\0", XMP) == 3
    assert orientation(b"", b"<tiff:Orientation>8</tiff:Orientation>") == 8
    assert orientation(b"", b"") == 1


def test_the_date_an_image_was_taken_is_the_cameras():
    assert date_taken(exif()) == date_taken(exif(">")) == datetime(2024, 2, 29, 23, 59, 58)
    for wrong in (b"2024:02:30", b"    :  :  ", b"0000:00:00"):
        assert date_taken(exif().replace(b"2024:02:29", wrong)) is None
    assert date_taken(b"") is None


@settings(max_examples=300, deadline=None)
@example([(32, 2)], 76)  # two orientations, of which the first counts
@given(st.lists(st.tuples(st.integers(6, 100), st.integers(0, 255)), max_size=4), st.integers(0, 160))
def test_what_pillow_finds_in_damaged_exif_is_found(changes: list[tuple[int, int]], end: int):
    content = bytearray(exif())
    for place, value in changes:
        content[place] = value
    content = content[:end]
    turned, date = by_pillow(bytes(content))  # damage of other tags ends Pillow's reading
    assert orientation(bytes(content)) == turned or not isinstance(turned, int)
    found = date_taken(bytes(content))
    assert found is None or date is None or f"{found:%Y:%m:%d %H:%M:%S}" == str(date).strip("\0 ")


@pytest.mark.parametrize("stated", range(10))
def test_an_image_is_turned_as_pillow_turns_it(stated: int):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = stated
    found = turned(pixels, stated)
    assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(image)))
    assert found.flags.c_contiguous
