"""Every source of an image gives the pixels it should, or an error that says what is wrong."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tempfile
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from image_encoders.errors import InputError
from image_encoders.inputs import pillow
from image_encoders.inputs.image import (
    ImageLimits,
    read_header,
    read_image,
)
from image_encoders.inputs.preprocessing import BICUBIC, Preprocessing, ShortSide

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def photo(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A smooth random image, as photographs are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encoded(source: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    image = source if isinstance(source, Image.Image) else Image.fromarray(source)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def size_of(content: bytes, **options: object) -> tuple[int, int]:
    header = read_header(content, **options)
    return header.width, header.height


def on_white(image: Image.Image) -> np.ndarray:
    """What transformers makes of a PIL image."""
    from transformers.image_transforms import convert_to_rgb

    return convert_to_rgb(image, return_numpy=True)


def code_of(source: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read_image(source, **options)
    assert caught.value.message
    return caught.value.code


# ------------------------------------------------------------------ sources


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_its_bytes_and_its_decoded_array_give_the_same_pixels(kind: str, tmp_path: Path):
    content = encoded(photo(), kind)
    path = tmp_path / "image.of-no-known-type"
    path.write_bytes(content)
    pixels = by_pillow(content)
    for source in (
        path,
        str(path),
        content,
        bytearray(content),
        memoryview(content),
        Image.open(io.BytesIO(content)),
        pixels,
    ):
        found = read_image(source)
        assert found.dtype == np.uint8
        assert np.array_equal(found, pixels)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 47), (120, 161)])
def test_a_jpeg_has_pillows_pixels(size: tuple[int, int], progressive: bool, subsampling: int):
    content = encoded(photo(*size), "JPEG", quality=85, progressive=progressive, subsampling=subsampling)
    assert np.array_equal(read_image(content), by_pillow(content))


def test_jpegs_of_other_colours_have_pillows_pixels():
    grey = encoded(photo()[..., 0], "JPEG")
    rgb = encoded(photo(), "JPEG", keep_rgb=True)
    cmyk = encoded(Image.fromarray(photo()).convert("CMYK"), "JPEG")
    for content in (grey, rgb, cmyk):
        assert np.array_equal(read_image(content), by_pillow(content))
    assert Image.open(io.BytesIO(cmyk)).mode == "CMYK"


def test_a_jpeg_with_bytes_after_its_end_is_whole():
    content = encoded(photo(), "JPEG")
    for tail in (b"\0" * 5000, b"camera notes", content[:50]):
        assert np.array_equal(read_image(content + tail), by_pillow(content))


def test_a_jpeg_with_stray_bytes_between_its_parts_is_whole():
    content = encoded(photo(), "JPEG")
    quantisation = content.index(b"\xff\xdb")
    odd = content[:quantisation] + b"\0\0\0" + content[quantisation:]
    assert np.array_equal(read_image(odd), by_pillow(content))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_files_are_turned_upright(kind: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo(), kind, exif=exif)
    opened = Image.open(io.BytesIO(content))
    opened.load()
    upright = ImageOps.exif_transpose(opened).convert("RGB")
    assert np.array_equal(read_image(content), np.array(upright))


def test_a_pil_image_is_taken_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photo(), "JPEG", exif=exif)
    assert read_image(content).shape == (64, 48, 3)
    assert np.array_equal(read_image(Image.open(io.BytesIO(content))), by_pillow(content))


@pytest.mark.parametrize("orientation", [b"\x00\x00", b"\x09\x00", b"\xff\xff"])
def test_a_meaningless_orientation_is_ignored(orientation: bytes):
    tiff = b"II*\0\x08\0\0\0" + b"\x01\0" + b"\x12\x01\x03\0\x01\0\0\0" + orientation + b"\0\0" + b"\0\0\0\0"
    content = encoded(photo(), "JPEG", exif=b"Exif\0\0" + tiff)
    assert np.array_equal(read_image(content), by_pillow(content))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"]
)
def test_broken_exif_is_ignored(exif: bytes):
    content = encoded(photo(), "JPEG", exif=b"Exif\0\0" + exif)
    assert np.array_equal(read_image(content), by_pillow(encoded(photo(), "JPEG")))


def test_the_bundles_files_have_the_references_pixels(conformance: Path):
    wanted = {
        "rgb.jpg": "rgb",
        "rgb_odd.png": "rgb",
        "gray.png": "rgb",
        "cmyk.jpg": "rgb",
        "animated.gif": "rgb",
        "one_pixel.png": "rgb",
        "wide.png": "rgb",
        "photo.webp": "rgb",
        "exif_rotated.jpg": "exif",
        "rgba.png": "white",
        "palette.png": "white",
        "gray16.png": "scaled",
    }
    folder = conformance / "images"
    assert {path.name for path in folder.glob("*.*") if path.is_file()} == set(wanted)
    for name, variant in wanted.items():
        reference = np.array(Image.open(folder / "decoded" / f"{name}.{variant}.png"))
        tolerance = 1 if name.endswith((".jpg", ".webp")) else 0  # another decoder may round otherwise
        difference = np.abs(read_image(folder / name).astype(int) - reference)
        assert difference.max() <= tolerance, name


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_upright_size_is_that_of_the_pixels(kind: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photo(), kind, exif=exif)
    height, width, _ = read_image(content).shape
    assert size_of(content) == (width, height)
    assert width != height


@pytest.mark.parametrize("kind", FORMATS)
def test_the_upright_size_is_read_from_headers_alone(kind: str, monkeypatch: pytest.MonkeyPatch):
    content = encoded(photo(), kind)
    monkeypatch.setattr(Image.Image, "load", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    assert size_of(content) == (64, 48)


def test_the_upright_size_of_a_png_whose_exif_comes_last():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(photo(), "PNG")
    chunk = b"eXIf" + exif.tobytes()[6:]
    end = content.index(b"IEND") - 4
    late = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    content = content[:end] + late + content[end:]
    assert read_image(content).shape == (64, 48, 3)
    assert size_of(content) == (48, 64)


def test_the_upright_size_has_the_checks_of_reading():
    content = encoded(photo(), "JPEG")
    for wrong, code in ((b"", "empty"), (b"text", "not-an-image"), (content[:60], "truncated")):
        with pytest.raises(InputError) as caught:
            size_of(wrong)
        assert caught.value.code == code
    with pytest.raises(InputError, match="at most 3071"):
        size_of(content, limits=ImageLimits(max_pixels=3071))


# ------------------------------------------------------------------ JPEGs at a smaller scale


@pytest.mark.parametrize(
    ("size", "wanted", "found"),
    [
        ((480, 640), None, (480, 640)),
        ((480, 640), 224, (480, 640)),  # 240 is less than 1.5 x 224
        ((480, 640), 160, (240, 320)),
        ((640, 480), 160, (320, 240)),
        ((480, 640), 161, (480, 640)),
        ((480, 640), 80, (120, 160)),
        ((480, 640), 40, (60, 80)),
        ((480, 640), 1, (60, 80)),
        ((484, 640), 40, (121, 160)),  # 484 / 8 leaves a remainder
        ((482, 640), 40, (241, 320)),
        ((481, 640), 40, (481, 640)),
        ((480, 641), 40, (480, 641)),
        ((16, 800), 6, (16, 800)),
        ((8, 8), 1, (2, 2)),
        ((1, 1), 1, (1, 1)),
    ],
)
def test_a_jpeg_is_decoded_smaller_where_enough_is_left(size: tuple, wanted: int | None, found: tuple):
    content = encoded(photo(*size), "JPEG")
    assert read_image(content, short_side=wanted).shape == (*found, 3)
    assert size_of(content) == size[::-1]


def detailed(height: int, width: int) -> np.ndarray:
    """An image with edges and texture of every size."""
    rng = np.random.default_rng([height, width])
    layers = [photo(height, width).astype(float)]
    for cell in (64, 16, 4):
        coarse = rng.integers(-128, 128, (height // cell + 1, width // cell + 1, 3)).astype(np.int8)
        layers.append(coarse.repeat(cell, 0).repeat(cell, 1)[:height, :width] * (cell / 128))
    return np.clip(sum(layers), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"subsampling": 1}),
        ("L", {}),
        ("CMYK", {"subsampling": 0}),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(768, 1024), (1440, 1920), (904, 680)])
def test_a_smaller_jpeg_gives_nearly_the_same_input(size: tuple[int, int], mode: str, options: dict):
    content = encoded(Image.fromarray(detailed(*size)).convert(mode), "JPEG", quality=90, **options)

    def prepared(pixels: np.ndarray) -> np.ndarray:
        return Preprocessing(ShortSide(224), BICUBIC, (224, 224), (), ()).prepare(pixels).astype(float)

    small, whole = read_image(content, short_side=224), read_image(content)
    assert small.size < whole.size
    assert min(small.shape[:2]) >= 1.5 * 224
    noise = np.mean((prepared(small) - prepared(whole)) ** 2)
    assert 10 * np.log10(255**2 / noise) > 38


def test_a_jpeg_that_only_pillow_decodes_keeps_its_size():
    content = encoded(Image.fromarray(photo(64, 64)).convert("CMYK"), "JPEG", subsampling=2)
    assert np.array_equal(read_image(content, short_side=10), by_pillow(content))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_smaller_jpeg_is_turned_upright(orientation: int):
    pixels, exif = photo(480, 640), Image.Exif()
    exif[0x0112] = orientation
    turned = read_image(encoded(pixels, "JPEG", exif=exif), short_side=100)
    plain = read_image(encoded(pixels, "JPEG"), short_side=100)
    assert plain.shape == (240, 320, 3)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(plain, "PNG", exif=exif))))
    assert np.array_equal(turned, np.array(upright))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("wanted", [5, 10, 20])
def test_a_smaller_jpeg_cut_anywhere_is_never_filled_with_grey(wanted: int, mode: str, progressive: bool):
    content = encoded(Image.fromarray(photo(64, 64)).convert(mode), "JPEG", progressive=progressive)
    assert read_image(content, short_side=wanted).shape == ((64 * wanted // 40, 64 * wanted // 40, 3))
    for end in range(3, len(content) - 2, 11):
        assert code_of(content[:end], short_side=wanted) == "truncated"
    if not progressive:
        for end in range(content.index(b"\xff\xda") + 20, len(content) - 20, 11):
            assert code_of(content[:end] + b"\xff\xd9", short_side=wanted) in ("truncated", "corrupt")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_found_at_every_scale(data: st.DataObject):
    content = bytearray(encoded(photo(64, 64), "JPEG", progressive=data.draw(st.booleans())))
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    limits = ImageLimits(max_pixels=2**20)
    whole = pixels_or_code(bytes(content), limits)
    small = pixels_or_code(bytes(content), limits, short_side=10)
    assert small == whole if isinstance(whole, str) else isinstance(small, np.ndarray)


def test_a_smaller_jpeg_counts_its_pixels_whole():
    content = encoded(photo(480, 640), "JPEG")
    assert code_of(content, short_side=40, limits=ImageLimits(max_pixels=480 * 640 - 1)) == "too-many-pixels"


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "JPEG"])
def test_other_sources_than_jpegs_keep_their_size(kind: str):
    content = encoded(photo(), kind)
    jpeg = encoded(photo(), "JPEG")
    assert np.array_equal(read_image(content, short_side=2), read_image(content))
    assert np.array_equal(read_image(photo(), short_side=2), photo())
    assert np.array_equal(read_image(Image.open(io.BytesIO(jpeg)), short_side=2), by_pillow(jpeg))


# ------------------------------------------------------------------ colours


def palette_image(**info: object) -> Image.Image:
    image = Image.fromarray(photo()).quantize(16)
    image.info.update(info)
    return image


def with_alpha(mode: str) -> Image.Image:
    rgba = np.dstack([photo(), photo(seed=1)[..., 0]])
    return Image.fromarray(rgba).convert(mode)


@pytest.mark.parametrize(
    "image",
    [
        with_alpha("RGBA"),
        with_alpha("LA"),
        with_alpha("PA"),
        palette_image(),
        palette_image(transparency=3),
        palette_image(transparency=bytes(range(0, 256, 16))),
        Image.fromarray(photo()).convert("1"),
        Image.fromarray(photo()).convert("L"),
        Image.fromarray(photo()).convert("CMYK"),
        Image.fromarray(photo()).convert("YCbCr"),
        Image.fromarray(photo()).convert("HSV"),
        Image.fromarray(photo()).convert("LAB"),
        Image.fromarray(photo()).convert("RGBX"),
    ],
    ids=lambda image: f"{image.mode}-{'key' if 'transparency' in image.info else 'plain'}",
)
def test_pil_images_of_any_mode_become_what_transformers_makes_of_them(image: Image.Image):
    assert np.array_equal(read_image(image), on_white(image))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_colours_multiplied_by_alpha_are_divided_again(mode: str):
    image = with_alpha(mode)
    multiplied = image.convert({"RGBA": "RGBa", "LA": "La"}[mode])
    assert np.array_equal(read_image(multiplied), on_white(multiplied.convert(mode)))


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (10, 20, 30)), ("1", 1)])
def test_a_key_colour_of_a_png_becomes_white(mode: str, key: object):
    pixels = photo()
    pixels = pixels.copy()
    pixels[:5] = (10, 20, 30) if mode == "RGB" else 7
    content = encoded(Image.fromarray(pixels).convert(mode), "PNG", transparency=key)
    found = read_image(content)
    assert np.array_equal(found, on_white(Image.open(io.BytesIO(content))))
    if mode != "1":
        assert (found[:5] == 255).all()


def test_the_alpha_of_arrays_and_of_files_means_the_same():
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    array = np.stack([value, value, value, alpha], axis=-1).astype(np.uint8)
    assert np.array_equal(read_image(array), read_image(encoded(array, "PNG")))
    assert (read_image(array)[0] == 255).all()


def test_grey_of_16_bits_is_scaled():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    scaled = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None].repeat(3, axis=2)
    image = Image.fromarray(values)
    for source in (image, encoded(image, "PNG"), encoded(image, "TIFF"), Image.fromarray(values.astype(">u2"))):
        assert np.array_equal(read_image(source), scaled)


def test_a_key_value_of_16_bit_grey_becomes_white():
    values = np.full((3, 3), 1000, np.uint16)
    values[1, 1] = 258
    content = png_chunks(values.astype(">u2"), depth=16, colour=0, between=[(b"tRNS", struct.pack(">H", 1000))])
    found = read_image(content)
    assert (found[0] == 255).all()
    assert (found[1, 1] == 1).all()


def test_16_bit_colours_keep_their_high_byte():
    values = np.random.default_rng(0).integers(0, 65536, (4, 5, 3)).astype(">u2")
    assert np.array_equal(read_image(png_chunks(values, depth=16, colour=2)), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_stated_range_are_refused(dtype: type):
    image = Image.fromarray(np.zeros((4, 4), dtype))
    assert code_of(image) == "unsupported"
    assert code_of(encoded(image, "TIFF")) == "unsupported"


def png_chunks(
    samples: np.ndarray, *, depth: int, colour: int, between: list[tuple[bytes, bytes]] = (), size=None
) -> bytes:
    """A PNG made by hand: Pillow writes no 16-bit colours, no broken chunks and no false sizes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", *(size or (width, height)), depth, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in samples)
    chunks = [(b"IHDR", header), *between, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, content) for name, content in chunks)


@pytest.mark.parametrize("strip", [1, 64 * 7, 2**20])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_a_pil_image_is_converted_by_strips_of_any_height(mode: str, strip: int, monkeypatch: pytest.MonkeyPatch):
    image = Image.fromarray(photo()) if mode == "CMYK" else palette_image(transparency=3)
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    wanted = read_image(image)
    monkeypatch.setattr(pillow, "STRIP", strip)
    found = read_image(image)
    assert np.array_equal(found, wanted)
    assert found.flags.writeable
    assert mode == "I;16" or np.array_equal(found, on_white(image))


PEAK = """
import re, sys
import numpy as np
from image_encoders.errors import InputError
from image_encoders.inputs.image import read_image

def peak():
    status = open("/proc/self/status").read()
    return int(re.search("VmHWM:[^0-9]*([0-9]+)", status)[1]) // 1024

before = peak()
"""


def megabytes(program: str, *arguments: str) -> int:
    """By how many the memory of a process grows at most while it runs a program."""
    command = [sys.executable, "-c", PEAK + program + "\nprint(peak() - before)", *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_a_large_image_takes_little_more_memory_than_pillow_and_its_pixels():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.png"
        Image.new("RGB", (6000, 5000), (9, 200, 3)).save(path, compress_level=1)
        grown = megabytes("read_image(sys.argv[1])", str(path))
    assert grown < 1.2 * 6000 * 5000 * (4 + 3) / 2**20  # MB: Pillow keeps four bytes a pixel, the result has three


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_a_grey_array_takes_no_more_memory_than_its_pixels():
    view = "np.broadcast_to(np.arange(250, dtype=np.uint8).repeat(24), (5000, 6000)).T[::-1]"
    assert megabytes(f"read_image({view})") < 1.2 * 6000 * 5000 * 3 / 2**20
    refused = (
        "try:\n    read_image(np.broadcast_to(np.uint8(7), (50_000, 50_000)))\nexcept InputError as error:\n    pass"
    )
    assert megabytes(refused) < 20


# ------------------------------------------------------------------ arrays


def test_arrays_and_tensors_are_taken_as_they_are():
    import torch

    pixels = photo()
    grey = pixels[..., 0]
    assert np.array_equal(read_image(pixels), pixels)
    assert np.array_equal(read_image(torch.from_numpy(pixels.copy())), pixels)
    assert np.array_equal(read_image(pixels[::2, ::-1]), pixels[::2, ::-1])
    for source in (grey, grey[..., None], torch.from_numpy(grey.copy())):
        assert np.array_equal(read_image(source), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("source", "code", "says"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype", "embed_image"),
        (np.zeros((4, 4), bool), "dtype", "0..255"),
        (np.zeros((4, 4, 3), np.int64), "dtype", "uint8"),
        (np.zeros((3, 40, 50), np.uint8), "shape", "channels last"),
        (np.zeros((4, 4, 2), np.uint8), "shape", "(4, 4, 2)"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape", "(2, 4, 4, 3)"),
        (np.zeros(5, np.uint8), "shape", "(5,)"),
        (np.zeros((0, 4, 3), np.uint8), "empty", "without pixels"),
        (np.broadcast_to(np.uint8(0), (30_000, 30_000)), "too-many-pixels", "IMAGE_ENCODERS_MAX_PIXELS"),
        (np.broadcast_to(np.uint8(0), (30_000, 30_000, 4)), "too-many-pixels", "IMAGE_ENCODERS_MAX_PIXELS"),
        (None, "type", "NoneType"),
        ([[1, 2], [3, 4]], "type", "list"),
        (7, "type", "int"),
    ],
)
def test_what_is_not_an_image_is_refused_with_what_is_accepted(source: object, code: str, says: str):
    with pytest.raises(InputError) as caught:
        read_image(source)
    assert caught.value.code == code
    assert says in str(caught.value)
    assert caught.value.item is None


# ------------------------------------------------------------------ damage and limits


@pytest.mark.parametrize("kind", FORMATS)
def test_half_a_file_is_truncated(kind: str, tmp_path: Path):
    content = encoded(photo(120, 160), kind)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert caught.value.code == "truncated"
    assert str(caught.value).startswith(str(path))
    assert caught.value.item == str(path)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_jpeg_cut_anywhere_is_never_filled_with_grey(mode: str, progressive: bool):
    content = encoded(Image.fromarray(photo(64, 64)).convert(mode), "JPEG", progressive=progressive)
    scan = content.index(b"\xff\xda") + 20
    for end in range(3, len(content) - 2, 11):
        assert code_of(content[:end]) == "truncated"
    if not progressive:  # a progressive file may rightly end after any of its scans
        for end in range(scan, len(content) - 20, 11):
            assert code_of(content[:end] + b"\xff\xd9") in ("truncated", "corrupt")


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_gives_pixels_or_an_input_error(data: st.DataObject):
    kind = data.draw(st.sampled_from(FORMATS))
    content = bytearray(SAMPLES[kind])
    for _ in range(data.draw(st.integers(0, 8))):
        place = data.draw(st.integers(0, len(content) - 1) | st.integers(0, min(len(content), 128) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    found = pixels_or_code(bytes(content), ImageLimits(max_pixels=2**20))
    assert isinstance(found, np.ndarray) or found in CODES


def pixels_or_code(content: bytes, limits: ImageLimits, short_side: int | None = None) -> np.ndarray | str:
    try:
        pixels = read_image(content, limits=limits, short_side=short_side)
    except InputError as error:
        return error.code
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    return pixels


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A file with some of its bytes changed, missing, doubled or zeroed."""
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        begin = int(rng.integers(0, max(len(damaged), 1)))
        end = begin + int(rng.integers(1, 40))
        match rng.integers(5):
            case 0:
                damaged[begin : begin + 1] = rng.bytes(1)
            case 1:
                del damaged[begin:end]
            case 2:
                damaged[begin:begin] = damaged[begin:end]
            case 3:
                damaged[begin:end] = bytes(len(damaged[begin:end]))
            case 4:
                damaged[begin : begin + 1] = bytes([damaged[begin] ^ 1 << int(rng.integers(8))]) if damaged else b""
    return bytes(damaged)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_read_of_a_mutated_file_is_what_pillow_reads(kind: str, capfd: pytest.CaptureFixture[str]):
    accepted = 0
    for number in range(130):
        rng = np.random.default_rng([FORMATS.index(kind), number])
        content = mutated(SAMPLES[kind], rng)
        found = pixels_or_code(content, ImageLimits(max_pixels=2**20))
        if isinstance(found, str):
            assert found in CODES
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
            image.load()
            wanted = on_white(ImageOps.exif_transpose(image))
        assert np.abs(found.astype(int) - wanted).max() <= 2
        accepted += 1
    assert 0 < accepted < 130
    capfd.readouterr()  # what libtiff says


CODES = {"empty", "not-an-image", "unsupported", "truncated", "corrupt", "too-many-pixels", "too-many-bytes"}
SAMPLES = {kind: encoded(photo(24, 32), kind) for kind in FORMATS}


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=64) | st.sampled_from(["BM", "GIF89a", "RIFF....WEBP", "II*\0"]).map(str.encode))
def test_any_bytes_give_an_input_error(content: bytes):
    assert code_of(content) in {"empty", "not-an-image", "unsupported", "truncated", "corrupt"}


def test_files_that_are_no_images_say_what_was_found(tmp_path: Path):
    path = tmp_path / "page.jpg"
    path.write_text("<!DOCTYPE html><p>Not found")
    with pytest.raises(
        InputError, match=r"page\.jpg: not an image: 27 bytes that begin with \"<!DOCTYPE ht\"; .*JPEG, PNG"
    ):
        read_image(path)
    path.write_bytes(bytes(range(16)))
    with pytest.raises(InputError, match=r"16 bytes that begin with 00 01 02 .* 0b; accepted"):
        read_image(path)
    path.write_bytes(b"")
    assert code_of(path) == "empty"
    assert code_of(b"") == "empty"
    assert code_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>") == "unsupported"
    assert code_of(b"8BPS" + bytes(100)) == "unsupported"


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "PPM", "ICO", "DDS"])
def test_formats_outside_the_list_are_never_parsed(kind: str):
    assert code_of(encoded(Image.fromarray(photo()), kind)) in ("not-an-image", "unsupported")


@pytest.mark.parametrize("kind", FORMATS)
def test_pixels_are_counted_before_they_are_decoded(kind: str, monkeypatch: pytest.MonkeyPatch):
    content = encoded(photo(), kind)
    few = ImageLimits(max_pixels=48 * 64 - 1)
    assert read_image(content, limits=ImageLimits(max_pixels=48 * 64)).shape == (48, 64, 3)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", None)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    with pytest.raises(InputError, match="64 x 48 = 3072 pixels; at most 3071") as caught:
        read_image(content, limits=few)
    assert caught.value.code == "too-many-pixels"
    assert code_of(Image.open(io.BytesIO(content)), limits=few) == "too-many-pixels"


def test_a_bomb_is_refused_by_its_header():
    bomb = png_chunks(np.zeros((1, 1, 3), np.uint8), depth=8, colour=2, size=(20000, 20000))
    assert code_of(bomb) == "too-many-pixels"
    assert size_of(bomb, limits=ImageLimits(max_pixels=4 * 10**8)) == (20000, 20000)


@pytest.mark.parametrize("kind", FORMATS)
def test_only_our_limit_counts(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.warns(Image.DecompressionBombWarning) if kind == "TIFF" else nullcontext():
        assert read_image(encoded(photo(), kind)).shape == (48, 64, 3)
    assert Image.MAX_IMAGE_PIXELS == 2000


def test_a_warning_of_pillows_that_was_made_an_error_fails_the_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # and this test run makes warnings errors
    assert code_of(encoded(photo(), "TIFF")) == "too-many-pixels"


def test_limits_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    content = encoded(photo(), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(content)
    monkeypatch.setenv("IMAGE_ENCODERS_MAX_BYTES", str(len(content) - 1))
    assert code_of(path) == code_of(content) == "too-many-bytes"
    assert read_image(path, limits=ImageLimits()).shape == (48, 64, 3)
    monkeypatch.setenv("IMAGE_ENCODERS_MAX_BYTES", str(len(content)))
    monkeypatch.setenv("IMAGE_ENCODERS_MAX_PIXELS", "100")
    assert code_of(path) == "too-many-pixels"
    monkeypatch.setenv("IMAGE_ENCODERS_MAX_PIXELS", "many")
    with pytest.raises(InputError, match="IMAGE_ENCODERS_MAX_PIXELS is 'many'"):
        read_image(path)


def test_an_image_without_pixels_is_empty():
    content = png_chunks(np.zeros((1, 1, 3), np.uint8), depth=8, colour=2, size=(0, 5))
    assert code_of(content) in ("empty", "corrupt")
    assert code_of(Image.new("RGB", (0, 5))) == "empty"


def test_damaged_metadata_is_not_damage():
    png = png_chunks(photo(), depth=8, colour=2, between=[(b"acTL", bytes(8)), (b"eXIf", b"II*\0\xff")])
    assert np.array_equal(read_image(png), photo())
    tiff = encoded(photo(), "TIFF", description="text" * 8)
    length = tiff.index(b"\x0e\1\2\0\x21\0\0\0") + 4  # of the text
    with pytest.warns(UserWarning, match="Skipping tag 270"):  # which is for the program to hear of, or not
        found = read_image(tiff[:length] + b"\xff\xff\xff\x7f" + tiff[length + 4 :])
    assert np.array_equal(found, photo())


def test_reading_leaves_the_warning_filters_as_they_are():
    before = list(warnings.filters)
    for kind in FORMATS:
        read_image(encoded(photo(), kind))
    assert warnings.filters == before


def test_the_first_image_of_an_animated_png_is_taken():
    frames = [Image.fromarray(photo(seed=seed)) for seed in range(3)]
    content = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(read_image(content), photo())
    assert len(content) > 2 * len(pillow._without_metadata(content)[0].getvalue())


def long_text(megabytes: float) -> bytes:
    return b"x" * int(megabytes * 1e6)


METADATA = {
    "a profile": (b"iCCP", b"name\0\0" + zlib.compress(long_text(1.5))),
    "no profile": (b"iCCP", b"neither a name nor a method"),
    "a compressed text": (b"zTXt", b"workflow\0\0" + zlib.compress(long_text(1.5))),
    "a compressed text of all languages": (b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(long_text(1.5))),
    "a bomb": (b"zTXt", b"bomb\0\0" + zlib.compress(long_text(100))),
    "much plain text": (b"tEXt", b"workflow\0" + long_text(70)),
    "a text without a name": (b"tEXt", b"x" * 200),
}


@pytest.mark.parametrize("found", METADATA)
def test_a_png_is_read_whatever_metadata_it_has(found: str):
    content = png_chunks(photo(), depth=8, colour=2, between=[METADATA[found]])
    assert np.array_equal(read_image(content), photo())
    assert size_of(content) == (64, 48)
    end = content.index(b"IEND") - 4
    chunk = content.index(METADATA[found][0]) - 4
    length = 12 + len(METADATA[found][1])
    assert np.array_equal(read_image(content[:end] + content[chunk : chunk + length] + content[end:]), photo())


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>'
EXIF = b"\nexif\n      32\n" + (b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0").hex().encode()


@pytest.mark.parametrize(
    "chunk",
    [
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP + long_text(2)),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(EXIF)),
        (b"tEXt", b"Raw profile type exif\0" + EXIF),
    ],
)
def test_the_texts_of_a_png_that_say_how_to_turn_it_are_heeded(chunk: tuple[bytes, bytes]):
    content = png_chunks(photo(), depth=8, colour=2, between=[METADATA["a profile"], chunk, METADATA["a bomb"]])
    assert np.array_equal(read_image(content), np.rot90(photo(), -1))
    assert size_of(content) == (48, 64)


def test_a_png_cut_anywhere_in_its_metadata_is_truncated():
    text = (b"tEXt", b"comment\0" + long_text(0.0002))
    content = png_chunks(photo(), depth=8, colour=2, between=[text, METADATA["no profile"]])
    for length in range(40, content.index(b"IDAT")):
        assert code_of(content[:length]) == "truncated"


def test_a_png_without_metadata_is_not_copied():
    content = png_chunks(photo(), depth=8, colour=2)
    assert pillow._without_metadata(content)[0].getvalue() is content


def test_a_pil_image_that_ends_too_early_says_no_number_of_bytes():
    content = encoded(photo(120, 160), "BMP")
    with pytest.raises(InputError) as caught:
        read_image(Image.open(io.BytesIO(content[: len(content) // 2])))
    assert caught.value.code == "truncated"
    assert str(caught.value) == "PIL image of mode RGB that ends too early"


# ------------------------------------------------------------------ paths


@pytest.mark.parametrize("path", [b"/a/b.png", b"photos/K\xc3\xa4se 1.jpeg", b"C:\\a.JPG", b"a.tiff"])
def test_bytes_that_hold_a_path_are_an_error_that_asks_for_text(path: bytes):
    with pytest.raises(InputError, match=r"pass a path as str: os\.fsdecode") as caught:
        read_image(path)
    assert caught.value.code == "not-an-image"


@pytest.mark.parametrize("content", [b"hello", b"line one.\nline two.png", b"\0\1.png", b"x" * 5000 + b".png"])
def test_other_bytes_are_not_taken_for_a_path(content: bytes):
    with pytest.raises(InputError) as caught:
        read_image(content)
    assert "fsdecode" not in str(caught.value)


def test_paths_that_lead_nowhere_say_so(tmp_path: Path):
    file = tmp_path / "file.png"
    file.write_bytes(encoded(photo(), "PNG"))
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "good").symlink_to(file)
    assert read_image(tmp_path / "good").shape == (48, 64, 3)
    assert code_of(tmp_path / "missing.png") == "not-found"
    assert code_of(file / "below.png") == "not-found"
    assert code_of(tmp_path) == "not-a-file"
    assert code_of(tmp_path / "loop") == "unreadable"
    assert code_of(str(tmp_path / "null\0byte.png")) == "unreadable"
    assert code_of(str(tmp_path / ("long" * 200))) == "unreadable"
    assert code_of("") == "not-found"
    with pytest.raises(InputError, match="dangling: a symbolic link"):
        read_image(tmp_path / "dangling")


def test_web_addresses_are_not_paths():
    for address in ("https://example.org/cat.jpg", "HTTP://example.org/cat.jpg", "data:image/png;base64,AAAA"):
        assert code_of(address) == "url"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_a_device_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jpg")
    assert code_of(tmp_path / "pipe.jpg") == "not-a-file"
    assert code_of("/dev/zero") == "not-a-file"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path: Path):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(photo(), "PNG"))
    path.chmod(0)
    assert code_of(path) == "unreadable"


def test_an_open_file_gives_the_pixels_of_its_bytes(tmp_path: Path):
    path = tmp_path / "image.jpg"
    path.write_bytes(encoded(photo(), "JPEG"))
    with path.open("rb") as file:
        assert np.array_equal(read_image(file), read_image(path))
        assert code_of(file) == "empty"
    assert code_of(io.BytesIO(bytes(11)), limits=ImageLimits(max_bytes=10)) == "too-many-bytes"
    assert code_of(io.StringIO("text")) == "type"


def test_the_name_given_for_an_item_wins():
    with pytest.raises(InputError) as caught:
        read_image(b"nothing", item="upload 3")
    assert caught.value.item == "upload 3"
    assert str(caught.value).startswith("upload 3: not an image")


def test_threads_read_the_same_pixels():
    contents = [encoded(photo(seed=i), FORMATS[i % len(FORMATS)]) for i in range(28)]
    alone = [read_image(content) for content in contents]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for one, together in zip(alone, pool.map(read_image, contents)):
                assert np.array_equal(one, together)


def test_reading_leaves_its_source_unchanged():
    pixels = np.dstack([photo(), photo(seed=1)[..., 0]])
    image = palette_image(transparency=3)
    before, before_image = pixels.copy(), image.copy()
    read_image(pixels)
    read_image(image)
    assert np.array_equal(pixels, before)
    assert image.mode == before_image.mode
    assert image.tobytes() == before_image.tobytes()


def test_reading_images_does_not_need_torch():
    program = "import sys, image_encoders.inputs.image; print('torch' in sys.modules, 'transformers' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.split() == ["False", "False"]


# ------------------------------------------------------------------ HEIC


def test_heic_is_read_with_its_extra():
    heif = pytest.importorskip("pillow_heif")
    content = io.BytesIO()
    heif.from_pillow(Image.fromarray(photo())).save(content, quality=95)
    found = read_image(content.getvalue())
    assert np.abs(found.astype(int) - photo()).mean() < 5
    assert code_of(content.getvalue()[:-200]) == "truncated"


def test_heic_without_its_extra_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"image-encoders\[heif\]") as caught:
        read_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    assert caught.value.code == "unsupported"
