"""Sounds from files, bytes and arrays, and what is refused."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import wave

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from image_encoders.errors import InputError, MissingExtra
from image_encoders.inputs.audio import AudioLimits, read_audio, resample

RATE = 44100


def tone(seconds: float = 0.25, rate: int = RATE, hertz: float = 440.0, amplitude: float = 0.5) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * hertz * time)).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = RATE, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def pcm(samples: bytes, channels: int, width: int, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(samples)
    return file.getvalue()


def refusal(source: object, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        read_audio(source, **options)
    return caught.value


# ---------------------------------------------------------------- arrays


def test_floats_are_taken_as_they_are():
    samples, rate = read_audio((tone(), 48000))
    assert rate == 48000
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, tone())


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([-32768, -1, 0, 1, 32767], np.int16), np.array([-32768, -1, 0, 1, 32767]) / 32768),
        (np.array([-32768, 256], ">i2"), np.array([-1.0, 1 / 128])),
        (np.array([-(2**31), 2**30], np.int32), np.array([-1.0, 0.5])),
        (np.array([0, 128, 255], np.uint8), np.array([-1.0, 0.0, 127 / 128])),
        (np.array([0.25, -1.0], np.float64), np.array([0.25, -1.0])),
        (np.array([0.25, -1.0], np.float16), np.array([0.25, -1.0])),
        ([0.5, -0.5], np.array([0.5, -0.5])),
    ],
)
def test_the_full_scale_of_every_type_is_one(values, wanted):
    samples, _ = read_audio((values, RATE))
    assert samples.dtype == np.float32
    np.testing.assert_array_equal(samples, wanted.astype(np.float32))


def test_a_tensor_is_an_array():
    torch = pytest.importorskip("torch")
    samples, _ = read_audio((torch.from_numpy(tone()).requires_grad_(), RATE))
    np.testing.assert_array_equal(samples, tone())


def test_channels_are_mixed_or_kept_whichever_axis_they_are_on():
    left, right = tone(hertz=440), tone(hertz=880)
    mixed = ((left + right) / 2).astype(np.float32)
    for layout in (np.stack([left, right]), np.stack([left, right], axis=1)):
        samples, _ = read_audio((layout, RATE))
        np.testing.assert_allclose(samples, mixed, atol=1e-7)
        kept, _ = read_audio((layout, RATE), mono=False)
        np.testing.assert_array_equal(kept, np.stack([left, right]))
    one, _ = read_audio((left[None], RATE), mono=False)
    np.testing.assert_array_equal(one, left)


def test_the_callers_samples_stay_as_they_are():
    samples = tone()
    before = samples.copy()
    read_audio((samples, 22050), rate=RATE)
    np.testing.assert_array_equal(samples, before)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (tone(), "type"),
        (RATE, "type"),
        (None, "type"),
        ({"samples": tone(), "rate": RATE}, "type"),
        ((tone(), RATE, "extra"), "type"),
        (("a dog barks", RATE), "type"),
        ((None, RATE), "type"),
        ((np.zeros(0, np.float32), RATE), "empty"),
        ((np.zeros((2, 0), np.float32), RATE), "empty"),
        (([], RATE), "empty"),
        ((np.float32(0.5), RATE), "shape"),
        ((np.zeros((2, 3, 100), np.float32), RATE), "shape"),
        ((np.zeros((100, 100), np.float32), RATE), "shape"),
        ((np.array([0.0, np.nan], np.float32), RATE), "not-finite"),
        ((np.array([0.0, -np.inf], np.float32), RATE), "not-finite"),
        ((np.array([0.0, 1e300]), RATE), "not-finite"),
        ((np.array([0.0, 20000.0], np.float32), RATE), "amplitude"),
        ((np.array([1, 2, 3]), RATE), "dtype"),
        ((np.array([True, False]), RATE), "dtype"),
        ((np.array([1j]), RATE), "dtype"),
        ((np.array(["a"]), RATE), "dtype"),
        ((np.array([None]), RATE), "dtype"),
        (([[1.0], [1.0, 2.0]], RATE), "dtype"),
    ],
)
def test_what_is_no_sound_is_refused_with_a_code(source, code):
    assert refusal(source).code == code


@pytest.mark.parametrize(
    "rate", [0, -44100, 1, 999, 10**9, 44100.5, float("nan"), float("inf"), None, "44100", True, [44100], 1j]
)
def test_a_rate_that_cannot_be_is_refused(rate):
    error = refusal((tone(), rate))
    assert error.code == "rate"
    assert "1,000 to 768,000" in str(error)


@pytest.mark.parametrize("rate", [8000, 44100.0, np.int64(48000), np.float32(22050), 768_000])
def test_a_whole_rate_of_any_number_type_is_taken(rate):
    _, found = read_audio((tone(), rate))
    assert found == int(rate)
    assert type(found) is int


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("format", "subtype", "tolerance"),
    [
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "FLOAT", 0.0),
        ("WAVEX", "PCM_16", 2**-15),
        ("RF64", "PCM_16", 2**-15),
        ("AIFF", "PCM_16", 2**-15),
        ("FLAC", "PCM_16", 2**-15),
        ("OGG", "VORBIS", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_accepted_format_is_read_from_a_path_and_from_bytes(tmp_path, format, subtype, tolerance):
    content = encoded(tone(0.5), format=format, subtype=subtype)
    path = tmp_path / "sound.bin"  # the content says what it is
    path.write_bytes(content)
    for source in (path, str(path), content, bytearray(content), memoryview(content)):
        samples, rate = read_audio(source)
        assert rate == RATE
        assert samples.dtype == np.float32
        assert len(samples) == len(tone(0.5))
        np.testing.assert_allclose(samples, tone(0.5), rtol=0, atol=tolerance)


def test_a_stereo_file_is_mixed_or_kept():
    stereo = np.stack([tone(hertz=440), tone(hertz=1000)], axis=1)
    content = encoded(stereo, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(content)[0], stereo.mean(1), atol=1e-7)
    np.testing.assert_array_equal(read_audio(content, mono=False)[0], stereo.T)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_plain_wav_needs_no_package_and_gives_the_same(monkeypatch, width, channels):
    noise = np.random.default_rng(width).integers(0, 256, 1000 * channels * width, dtype=np.uint8).tobytes()
    content = pcm(noise, channels, width)
    wanted, _ = read_audio(content, mono=False)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    samples, rate = read_audio(content, mono=False)
    assert rate == RATE
    assert samples.shape == wanted.shape
    np.testing.assert_array_equal(samples, wanted)


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    flac, floats = encoded(tone(), format="FLAC"), encoded(tone(), subtype="FLOAT")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    monkeypatch.setitem(sys.modules, "soxr", None)
    for source in (flac, floats):
        with pytest.raises(MissingExtra, match=r"soundfile: pip install 'image-encoders\[audio\]'"):
            read_audio(source)
    with pytest.raises(MissingExtra, match=r"from 8000 Hz to 44100 Hz needs soxr: pip install"):
        read_audio((tone(), 8000), rate=RATE)


def test_an_unfinished_stream_is_read_to_its_end():
    content = bytearray(encoded(tone()))
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # what a program writes that cannot go back
    samples, _ = read_audio(bytes(content))
    assert len(samples) == len(tone())


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
@pytest.mark.parametrize("share", [0.4, 0.7, 0.95])
def test_a_cut_file_is_refused(format, share):
    content = encoded(tone(3.0), format=format)
    assert len(read_audio(content)[0])
    error = refusal(content[: int(len(content) * share)])
    assert error.code in ("truncated", "corrupt")
    assert format.lower() in str(error).lower()


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "empty"),
        (b"hello, this is not a sound at all", "not-audio"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not-audio"),
        (b"\xff\xd8\xff\xe0" + bytes(100), "not-audio"),
        (b"RIFF\x04\x00\x00\x00WEBP" + bytes(50), "not-audio"),
        (b"RIFF", "not-audio"),
        (b"fLaC", "corrupt"),
        (b"OggS", "truncated"),
        (b"ID3" + bytes(200), "corrupt"),
        (b"RIFF\x24\x00\x00\x00WAVE", "corrupt"),
        (pcm(b"", 1, 2), "empty"),
        (pcm(bytes(100), 1, 2, rate=1), "rate"),
    ],
)
def test_bytes_that_are_no_sound_are_refused_with_a_code(content, code):
    assert refusal(content).code == code


def test_a_file_of_floats_that_are_not_finite_is_refused():
    samples = tone()
    samples[7] = np.nan
    error = refusal(encoded(samples, subtype="FLOAT"))
    assert error.code == "not-finite"
    assert "1 of 11025" in str(error)


def test_paths_that_hold_no_file_are_refused_by_name(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, code in (
        (tmp_path / "none.wav", "not-found"),
        (tmp_path / "a" / "none.wav", "not-found"),
        (tmp_path, "not-a-file"),
        (pipe, "not-a-file"),
        ("a\0b", "unreadable"),
        ("x" * 5000, "unreadable"),
        ("https://example.com/a.wav", "url"),
        ("a dog barks", "not-found"),
    ):
        error = refusal(path)
        assert error.code == code
        assert error.item == str(path)
    assert "(samples, rate)" in str(refusal("a dog barks"))


def test_a_bad_file_is_named(tmp_path):
    path = tmp_path / "cut.wav"
    path.write_bytes(encoded(tone())[:1000])
    assert str(refusal(path)) == f"{path}: the WAV file ends after 1,000 of 22,094 bytes"
    assert str(refusal(path, item="clip 7")).startswith("clip 7: ")


def test_limits_are_checked_before_decoding(tmp_path):
    limits = AudioLimits(max_bytes=30_000, max_seconds=0.2, max_samples=9_000)
    assert refusal((tone(0.25), RATE), limits=limits).code == "too-long"
    assert refusal((np.zeros((2, 5000), np.float32), RATE), limits=limits).code == "too-long"
    for format in ("WAV", "FLAC", "OGG", "MP3"):
        assert refusal(encoded(tone(0.25), format=format), limits=limits).code == "too-long"
    path = tmp_path / "long.wav"
    path.write_bytes(encoded(tone(1.0)))
    assert refusal(path, limits=limits).code == "too-many-bytes"
    assert refusal(path.read_bytes(), limits=limits).code == "too-many-bytes"
    assert len(read_audio((tone(0.2), RATE), limits=limits)[0]) == 8820


def test_a_small_file_that_promises_hours_is_refused_without_the_memory():
    silence = encoded(np.zeros(RATE, np.int16), format="FLAC")
    hours = bytearray(silence)
    hours[21:26] = struct.pack(">Q", (hours[21] & 0xF0) << 32 | 44100 * 7200)[3:]  # samples in STREAMINFO
    assert refusal(bytes(hours)).code in ("too-long", "corrupt")


def test_an_error_survives_a_trip_between_processes(tmp_path):
    error = refusal(tmp_path / "none.wav")
    again = pickle.loads(pickle.dumps(error))
    assert (again.code, again.item, str(again)) == (error.code, error.item, str(error))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_give_samples_or_an_input_error(data):
    format = data.draw(st.sampled_from(["WAV", "FLAC", "OGG", "MP3", "AIFF"]))
    content = bytearray(encoded(tone(0.1), format=format))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        samples, rate = read_audio(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except InputError:
        return
    assert samples.size
    assert np.isfinite(samples).all()
    assert rate > 0


# ---------------------------------------------------------------- resampling


def test_equal_rates_leave_the_samples_alone():
    samples = tone()
    assert resample(samples, RATE, RATE) is samples


@pytest.mark.parametrize("rate", [8000, 22050, 32000, 48000, 96000])
def test_a_tone_is_the_same_tone_at_another_rate(rate):
    resampled, found = read_audio((tone(0.5, rate), rate), rate=RATE)
    assert found == RATE
    assert resampled.dtype == np.float32
    wanted = tone(0.5)
    assert abs(len(resampled) - len(wanted)) <= 1
    middle = slice(4000, 18000)  # the ends are ringing
    np.testing.assert_allclose(resampled[middle], wanted[middle], rtol=0, atol=2e-3)


def test_what_the_new_rate_cannot_hold_is_filtered_away():
    high = tone(0.5, 96000, hertz=30000)
    resampled = resample(high, 96000, RATE)
    assert np.abs(resampled[4000:18000]).max() < 1e-3


def test_every_channel_is_resampled_by_itself():
    stereo = np.stack([tone(0.2, 22050, 440), tone(0.2, 22050, 880)])
    both = resample(stereo, 22050, RATE)
    assert both.flags.c_contiguous
    np.testing.assert_allclose(both, np.stack([resample(one, 22050, RATE) for one in stereo]), atol=1e-6)
