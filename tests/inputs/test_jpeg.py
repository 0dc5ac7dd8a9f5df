"""JPEGs whose pixels are damaged are refused; those that are only odd are read, pixel for pixel."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from image_encoders.errors import InputError
from image_encoders.inputs.image import ImageLimits, read_image

HEIGHT, WIDTH = 168, 224
SECTOR = 1024  # bytes: a disk's are 4,096, as are these files' in proportion
CODINGS = [
    {"progressive": progressive, "subsampling": subsampling, "optimize": optimize, **restarts}
    for progressive, subsampling, optimize, restarts in product(
        (False, True), (0, 2), (False, True), ({}, {"restart_marker_rows": 1})
    )
]


def detailed(seed: int) -> np.ndarray:
    """An image with edges and texture of every size; each third one is of one colour below."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    layers = [np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(float)]
    for cell in (56, 14, 4):
        texture = rng.integers(-128, 128, (HEIGHT // cell, WIDTH // cell, 3))
        layers.append(texture.repeat(cell, 0).repeat(cell, 1) * (cell / 128))
    pixels = np.clip(sum(layers), 0, 255).astype(np.uint8)
    if seed % 3 == 0:
        pixels[HEIGHT * 3 // 4 :] = pixels[HEIGHT // 2, 0]
    return pixels


def jpeg(seed: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(detailed(seed)).save(buffer, "JPEG", **{"quality": 75 + seed % 20, **options})
    return buffer.getvalue()


def with_thumbnail(seed: int, **options: object) -> bytes:
    """A JPEG that holds a smaller one in its EXIF, as cameras write them."""
    small = io.BytesIO()
    Image.fromarray(detailed(seed)[::4, ::4]).save(small, "JPEG")
    entries = [(0x0201, 44), (0x0202, len(small.getvalue()))]  # where it begins, how long it is
    second = b"\2\0" + b"".join(
        tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in entries
    )
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\x0e\0\0\0" + second + bytes(4) + small.getvalue()
    return jpeg(seed, exif=exif, **options)


def by_pillow(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def code_of(content: bytes, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_image(content, **options)
    return caught.value.code


def warned(content: bytes) -> bool:
    """Whether libjpeg says anything against a file."""
    try:
        simplejpeg.decode_jpeg(content)
    except ValueError:
        return True
    return False


# ------------------------------------------------------------------ damage


def zeroed(content: bytearray, rng: np.random.Generator) -> None:
    sector(content, rng)[:] = 0


def overwritten(content: bytearray, rng: np.random.Generator) -> None:
    some = sector(content, rng)
    some[:] = rng.integers(0, 256, len(some), dtype=np.uint8)


def sector(content: bytearray, rng: np.random.Generator) -> np.ndarray:
    begin = int(rng.integers(0, len(content) // SECTOR)) * SECTOR
    return np.frombuffer(content, np.uint8)[begin : begin + SECTOR]


def flipped(content: bytearray, rng: np.random.Generator) -> None:
    for place in rng.integers(2, len(content), int(rng.integers(1, 4))):
        content[place] ^= 1 << int(rng.integers(8))


def flipped_in_the_header(content: bytearray, rng: np.random.Generator) -> None:
    content[int(rng.integers(2, content.rindex(b"\xff\xda") + 20))] ^= 1 << int(rng.integers(8))


def cut_in_the_middle(content: bytearray, rng: np.random.Generator) -> None:
    begin = int(rng.integers(2, len(content) - 2))
    del content[begin : min(begin + int(rng.integers(1, 2 * SECTOR)), len(content) - 2)]


def without_a_sector(content: bytearray, rng: np.random.Generator) -> None:
    begin = int(rng.integers(1, len(content) // SECTOR)) * SECTOR
    del content[begin : begin + SECTOR]


def with_a_sector_twice(content: bytearray, rng: np.random.Generator) -> None:
    begin = int(rng.integers(0, len(content) // SECTOR)) * SECTOR
    content[begin:begin] = content[begin : begin + SECTOR]


def zeroed_to_the_end(content: bytearray, rng: np.random.Generator) -> None:
    begin = int(rng.integers(len(content) // 3, len(content) - 2))
    content[begin:-2] = bytes(len(content) - 2 - begin)


DAMAGES = [
    zeroed,
    overwritten,
    flipped,
    flipped_in_the_header,
    cut_in_the_middle,
    without_a_sector,
    with_a_sector_twice,
    zeroed_to_the_end,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_jpeg_that_libjpeg_warns_of_is_refused(damage: Callable[[bytearray, np.random.Generator], None]):
    outcomes: Counter[str] = Counter()
    for number in range(64):
        make = with_thumbnail if number % 5 == 0 else jpeg
        whole = make(number % 9, **CODINGS[number % len(CODINGS)])
        content, rng = bytearray(whole), np.random.default_rng([number, DAMAGES.index(damage)])
        damage(content, rng)
        if not warned(bytes(content)) or not content.startswith(b"\xff\xd8\xff"):
            continue
        try:
            found = read_image(bytes(content))
        except InputError as error:
            outcomes[error.code] += 1
        else:
            wanted = by_pillow(whole)
            wrong = found.shape != wanted.shape or (np.abs(found.astype(int) - wanted).max(axis=2) > 8).mean() > 0.05
            outcomes["wrong" if wrong else "right"] += 1
    assert outcomes["wrong"] == 0
    assert outcomes["truncated"] + outcomes["corrupt"] >= 10


def test_damage_behind_a_harmless_oddity_is_found():
    whole = jpeg(1)
    quantisation, middle = whole.index(b"\xff\xdb"), len(whole) // 2
    odd = whole[:quantisation] + b"\0\0\0" + whole[quantisation:middle]
    assert code_of(odd + whole[middle + 600 :] + b"\0\0") in ("corrupt", "truncated")
    assert code_of(odd + bytes(600) + whole[middle + 600 :]) in ("corrupt", "truncated")
    assert code_of(odd + b"\xff\xd9") == "truncated"
    assert code_of(odd) == "truncated"


def test_left_over_data_is_no_padding():
    whole = jpeg(1)
    for stray in (b"\x5a" * 40, whole[-500:-2], b"\0" * 40 + b"\1"):
        assert code_of(whole[:-2] + stray + b"\xff\xd9") == "corrupt"
    restarted = jpeg(1, restart_marker_rows=1)
    marker = restarted.index(b"\xff\xd3")
    assert code_of(restarted[:marker] + bytes(40) + restarted[marker:]) == "corrupt"
    progressive = jpeg(1, progressive=True)
    second = progressive.index(b"\xff\xda", progressive.index(b"\xff\xda") + 2)
    assert code_of(progressive[:second] + bytes(40) + progressive[second:]) == "corrupt"


def test_a_scan_out_of_its_order_is_damage():
    progressive = jpeg(1, progressive=True)
    scan = progressive.rindex(b"\xff\xda")
    assert code_of(progressive[:-2] + progressive[scan:]) == "corrupt"


def test_colours_that_have_to_be_guessed_are_damage():
    buffer = io.BytesIO()
    Image.fromarray(detailed(0)).save(buffer, "JPEG", keep_rgb=True)
    content = buffer.getvalue()
    transform = content.index(b"Adobe") + 11
    assert code_of(content[:transform] + b"\7" + content[transform + 1 :]) == "corrupt"
    assert content[2:4] == b"\xff\xee"  # which becomes junk
    assert code_of(content[:2] + b"\xff\xfe\0\2\xfd" + content[3:]) == "corrupt"


# ------------------------------------------------------------------ oddities


def tables(content: bytes) -> int:
    """Where the image's first Huffman table begins."""
    frame = max(content.rfind(b"\xff\xc0\0\x11"), content.rfind(b"\xff\xc2\0\x11"))
    return content.index(b"\xff\xc4", frame)


def header_junk(content: bytes) -> bytes:
    return (
        content[:20] + b"\0\0\0" + content[20 : tables(content)] + b"notes \xff\0 and more" + content[tables(content) :]
    )


def fill_bytes(content: bytes) -> bytes:
    begin, scan = tables(content), content.rindex(b"\xff\xda")
    return b"".join(
        [content[:begin], b"\xff" * 3, content[begin:scan], b"\xff" * 9, content[scan:-2], b"\xff" * 4, b"\xff\xd9"]
    )


def other_jfif_version(content: bytes) -> bytes:
    return content.replace(b"JFIF\0\1", b"JFIF\0\7", 1)


def other_scan_parameters(content: bytes) -> bytes:
    scan = content.rindex(b"\xff\xda")
    after = scan + 2 + content[scan + 3]
    return content if b"\xff\xc2" in content[:scan] else content[: after - 3] + b"\1\2\x33" + content[after:]


ODDITIES: dict[str, Callable[[bytes], bytes]] = {
    "junk between header segments": header_junk,
    "fill bytes before markers": fill_bytes,
    "a byte of padding before the end": lambda content: content[:-2] + b"\0" + content[-2:],
    "much padding before the end": lambda content: content[:-2] + bytes(5000) + content[-2:],
    "bytes after the end": lambda content: content + b"\0\0\xff\xda\xff camera notes" * 9,
    "another image after the end": lambda content: content + jpeg(8),
    "a JFIF version to come": other_jfif_version,
    "parameters of a sequential scan": other_scan_parameters,
}
ODDITIES["all of them"] = lambda content: (
    fill_bytes(header_junk(other_jfif_version(other_scan_parameters(content[:-2] + bytes(50) + content[-2:]))))
    + jpeg(8)
)


@pytest.mark.parametrize("oddity", ODDITIES)
def test_a_jpeg_that_is_only_odd_is_read(oddity: str):
    for number, coding in enumerate(CODINGS):
        content = (with_thumbnail if number % 3 == 0 else jpeg)(number, **coding)
        odd = ODDITIES[oddity](content)
        assert np.array_equal(read_image(odd), by_pillow(content))
        assert np.array_equal(read_image(odd, short_side=40), read_image(content, short_side=40))


def test_an_odd_jpeg_of_four_inks_is_read():
    buffer = io.BytesIO()
    Image.fromarray(detailed(0)).convert("CMYK").save(buffer, "JPEG", subsampling=0)
    content = buffer.getvalue()
    assert np.array_equal(read_image(content[:-2] + bytes(50) + content[-2:]), by_pillow(content))


# ------------------------------------------------------------------ scans


def bomb(scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    content = jpeg(0, progressive=True)
    scan = content.rindex(b"\xff\xda")
    return content[:-2] + content[scan:-2] * (scans - content.count(b"\xff\xda")) + b"\xff\xd9"


def test_a_jpeg_of_too_many_scans_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch):
    assert code_of(bomb(50)) == "corrupt"
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    with pytest.raises(InputError, match=r"JPEG of more than 50 scans.*IMAGE_ENCODERS_MAX_SCANS") as caught:
        read_image(bomb(51))
    assert caught.value.code == "too-many-scans"
    monkeypatch.setenv("IMAGE_ENCODERS_MAX_SCANS", "9")
    assert code_of(bomb(10)) == "too-many-scans"


def test_the_scans_of_an_image_count_and_no_others():
    progressive = jpeg(0, progressive=True)
    scans = progressive.count(b"\xff\xda")
    assert 5 < scans < 20
    content = jpeg(0, exif=b"Exif\0\0" + b"\xff\xda" * 500, progressive=True) + b"\xff\xda" * 500
    limits = ImageLimits(max_scans=scans)
    assert np.array_equal(read_image(content, limits=limits), by_pillow(progressive))
    assert code_of(content, limits=ImageLimits(max_scans=scans - 1)) == "too-many-scans"


def test_a_jpeg_of_countless_segments_is_refused():
    content = jpeg(0, progressive=True)
    scan = content.rindex(b"\xff\xda")
    many = content[:scan] + b"\xff\xfe\0\2" * 70_000 + content[scan:] + b"\xff\xda" * 200
    with pytest.raises(InputError, match="more than 65,536 segments"):
        read_image(many)
