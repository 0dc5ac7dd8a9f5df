"""Frames of videos that PyAV encodes here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from drawn import rows

from fake_encoder import FakeEncoder
from image_encoders.bulk.run import Report, run
from image_encoders.bulk.sources import SourceItem, find, videos
from image_encoders.collection import Collection
from image_encoders.errors import InputError
from image_encoders.inputs.image import ImageLimits, read_image

RATE = 10  # frames/s
LIMITS = ImageLimits()
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200)]


def film(path: Path, seconds: int, *, codec: str = "libx264", gop: int = 20, scene_s: int = 4) -> Path:
    """A video whose grey part brightens by the second and whose colour changes by the scene."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.bit_rate = 2_000_000
        noise = np.random.default_rng(0).integers(0, 40, (48, 64, 3), np.uint8)
        for number in range(seconds * RATE):
            pixels = np.empty((48, 64, 3), np.uint8)
            pixels[:] = COLOURS[number // (scene_s * RATE) % len(COLOURS)]
            pixels[:24] = 8 * (number // RATE)
            pixels[24:] += np.roll(noise[24:], number, axis=1)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def second_of(content: bytes) -> int:
    """Which second of the film a frame is from, by its grey part."""
    return round(float(read_image(content)[4:20].mean()) / 8)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def encode(*arguments: str, **options: Any) -> dict[str, int]:
    encoder = FakeEncoder()
    report: Report = run(find(arguments, **options), encoder, Collection.open_or_create("index", encoder))
    assert report.total == report.encoded + report.reused + report.unchanged + report.failed
    names = ("encoded", "reused", "unchanged", "failed")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


def failures() -> dict[str, str]:
    return {one.id.rpartition("/")[2]: one.message for one in Collection.open("index").failures()}


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.avi"])
def test_a_frame_is_taken_every_so_many_seconds_and_known_ones_are_not_decoded(
    here: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    film(here / name, 12, codec="mpeg4" if name.endswith("avi") else "libx264")
    found = list(find([name], frames="2.5"))
    assert [one.id for one in found] == [f"{here}/{name}#t={time}" for time in ("0", "2.5", "5", "7.5", "10")]
    assert [one.locator.time_s for one in found] == [0, 2.5, 5, 7.5, 10]
    assert [second_of(one.read(LIMITS)) for one in found] == [0, 2, 5, 7, 10]
    assert encode(name, frames="2.5") == {"encoded": 5}
    monkeypatch.setattr(videos, "read_frame", lambda *arguments: pytest.fail("a frame was decoded"))
    assert encode(name, frames="2.5") == {"unchanged": 5}


def test_frames_are_the_same_in_whatever_order_they_are_asked_for(here: Path) -> None:
    film(here / "film.mp4", 12)
    found = list(find(["film.mp4"], frames="0.7"))
    expected = [one.read(LIMITS) for one in found]
    order = np.random.default_rng(1).permutation(len(found))
    assert [found[place].read(LIMITS) for place in order] == [expected[place] for place in order]


def test_a_frame_is_found_again_by_its_address(here: Path) -> None:
    film(here / "film.mp4", 12)
    assert encode("film.mp4", frames="4") == {"encoded": 3}
    [again] = find(["-"], stdin=io.BytesIO(b"film.mp4#t=8"))
    assert second_of(again.read(LIMITS)) == 8
    expected = FakeEncoder().encode_image([again.read(LIMITS)])[0]
    [hit] = Collection.open("index").search(expected, 1)
    assert hit.id == f"{here}/film.mp4#t=8"
    assert rows(Collection.open("index"))[hit.id]["path"] == f"{here}/film.mp4"


def test_the_first_frame_of_each_scene_is_taken(here: Path) -> None:
    film(here / "film.mp4", 20, scene_s=5)
    found = list(find(["film.mp4"], frames="scenes"))
    assert [one.locator.time_s for one in found] == [0, 5, 10, 15]
    assert [second_of(one.read(LIMITS)) for one in found] == [0, 5, 10, 15]
    assert [second_of(one.read(LIMITS)) for one in found] == [0, 5, 10, 15]
    assert encode("film.mp4", frames="scenes") == {"encoded": 4}
    assert encode("film.mp4", frames="scenes") == {"unchanged": 4}


@pytest.mark.parametrize("frames", ["1", "scenes"])
def test_a_video_whose_middle_is_damaged_gives_the_other_frames_and_says_where(here: Path, frames: str) -> None:
    path = film(here / "film.mp4", 20, scene_s=2)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [(float(p.pts * p.time_base), p.pos, p.size) for p in container.demux(stream) if p.pts is not None]
    content = bytearray(path.read_bytes())
    for time_s, at, size in packets:
        if 8.2 <= time_s < 11.5:
            content[at + 5 : at + size] = b"\xa5" * (size - 5)
    path.write_bytes(content)
    # up to the next frame that is made from no other, at 12 s
    counted = {"encoded": 9, "failed": 1} if frames == "scenes" else {"encoded": 17, "failed": 3}
    assert encode("film.mp4", frames=frames) == counted
    times = [name.partition("=")[2] for name in failures()]
    assert times in (["8.1"], ["8.2"]) if frames == "scenes" else set(times) == {"9", "10", "11"}
    said = "the video is damaged at {:.2f} s, and cannot be decoded there"
    assert failures() == {f"film.mp4#t={time}": said.format(float(time)) for time in times}
    for one in find(["film.mp4"], frames=frames):
        if one.id.rpartition("/")[2] not in failures():
            assert second_of(one.read(LIMITS)) == one.locator.time_s


def test_a_video_that_was_cut_gives_what_is_there(here: Path) -> None:
    path = film(here / "film.mkv", 20)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    report = encode("film.mkv", frames="2")
    assert report["encoded"] >= 3
    assert report["failed"] >= 3
    cut = film(here / "cut.mp4", 5)
    cut.write_bytes(cut.read_bytes()[:1000])  # whose directory is at its end
    assert encode("cut.mp4") == {"failed": 1}


@pytest.mark.parametrize("content", [b"", b"no video", b"RIFF\0\0\0\0WAVEfmt "])
def test_what_is_no_video_is_one_failure(here: Path, content: bytes) -> None:
    Path("film.mp4").write_bytes(content)
    assert encode("film.mp4") == {"failed": 1}


@pytest.mark.parametrize("frames", ["0", "-1", "nan", "inf", "often"])
def test_a_wish_that_is_no_time_is_refused(here: Path, frames: str) -> None:
    with pytest.raises(InputError, match="accepted: a number of seconds"):
        find(["."], frames=frames)


def test_many_videos_are_read_with_few_of_them_open(here: Path) -> None:
    for number in range(8):
        film(here / f"{number}.mp4", 2 + number % 2)
    assert encode("*.mp4", frames="1").get("encoded", 0) >= 3
    assert len(videos._open) <= videos.OPEN


@pytest.mark.parametrize("name", ["a.ts", "a.mts", "a.mpg", "a.mkv"])
def test_streams_without_an_index_give_every_frame_in_any_order(here: Path, name: str) -> None:
    film(here / name, 6, codec="mpeg2video")
    assert encode(name, frames="1") == {"encoded": 6}
    items = list(find([name], frames="1"))
    for item in [items[4], items[0], items[5], items[2]]:
        assert second_of(item.read(LIMITS)) == items.index(item)


def test_what_becomes_of_frames_behind_the_end_does_not_depend_on_their_order(here: Path) -> None:
    content = film(here / "whole.mkv", 12).read_bytes()
    (here / "cut.mkv").write_bytes(content[: len(content) // 2])

    def outcome(item: SourceItem) -> int | str:
        try:
            return second_of(item.read(LIMITS))
        except InputError as error:
            return error.code

    items = list(find(["cut.mkv"], frames="1"))
    expected = [outcome(item) for item in items]
    assert expected[:5] == [0, 1, 2, 3, 4]
    assert expected[8:] == ["truncated"] * 4
    for first in (4, 10, 11):  # it passes those before it, and keeps them for whoever asks next
        assert outcome(items[0]) == 0
        assert outcome(items[first]) == expected[first]
        assert [outcome(item) for item in items] == expected
