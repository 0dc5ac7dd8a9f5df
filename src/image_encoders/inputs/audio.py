"""Sounds: files, bytes and arrays to samples with their rate.

source ─read_audio→ (T,) float32 in [-1, 1] and its rate ─resample→ (T,) at the rate a net wants
"""

from __future__ import annotations

import io
import math
import os
import wave
from dataclasses import dataclass
from typing import Any

import numpy as np

from image_encoders.arrays import as_array
from image_encoders.errors import InputError, MissingExtra
from image_encoders.inputs.files import read_source, source_name

MIN_RATE, MAX_RATE = 1_000, 768_000  # [Hz]
MAX_CHANNELS = 32
MAX_AMPLITUDE = 16.0  # 24 dB over full scale: louder samples are on another scale
STREAMED = 0x7FFFF000  # a RIFF chunk said to be this long or longer was written before its length was known
MP3_FRAME = 1152  # samples

FORMATS = "WAV, FLAC, Ogg, MP3, AIFF"
ACCEPTED = "accepted: a path, a sound file's bytes, an open file, or (samples, rate)"


@dataclass(frozen=True)
class AudioLimits:
    """Limits for a sound.

    max_bytes: size of the file
    max_seconds: duration
    max_samples: of all channels together; the default takes 400 MB
    """

    max_bytes: int = 2**28
    max_seconds: float = 300.0
    max_samples: int = 100_000_000


def read_audio(
    source: Any,
    *,
    rate: int | None = None,
    mono: bool = True,
    limits: AudioLimits | None = None,
    item: str | None = None,
) -> tuple[np.ndarray, int]:
    """The samples of one sound, (T,) float32, and their rate [Hz].

    source: a path; the bytes of a sound file (WAV, FLAC, Ogg, MP3, AIFF); an open file, read from its
        current position; or a pair (samples, rate):
        samples (T,), (channels, T) or (T, channels), at most 32 channels, an array or a tensor: floats in [-1, 1],
        or int16, int32, uint8, whose full scale (32768 for int16) becomes 1
        rate [Hz], a whole number from 1,000 to 768,000
    rate: resample to this [Hz]; None: leave the rate as it is
    mono: mix several channels to their mean; False: such a sound is (channels, T)
    item: its name in error messages; None: the path

    Raises InputError: "not-found", "not-a-file", "unreadable", "url"; "too-many-bytes", "too-long"; "empty",
    "not-audio", "truncated", "corrupt"; "type", "dtype", "shape", "not-finite", "amplitude", "rate".
    Raises MissingExtra if soundfile (for files other than plain WAV) or soxr (for another rate) is not installed.
    """
    limits = limits or AudioLimits()
    try:
        encoded = read_source(source, "sound", limits.max_bytes, accepted=f"; {ACCEPTED}")
        if encoded is not None:
            samples, found = _decode(encoded, limits)
        elif isinstance(source, (tuple, list)) and len(source) == 2:
            samples, found = _from_pair(source[0], source[1], limits)
        else:
            hint = "; samples come with their rate" if hasattr(source, "__array__") else ""
            raise InputError(f"a {type(source).__name__}{hint}; {ACCEPTED}", code="type")
        samples = _checked(samples)
        samples = samples[0] if len(samples) == 1 else samples.mean(0, dtype=np.float32) if mono else samples
        return (samples, found) if rate is None else (resample(samples, found, check_rate(rate)), int(rate))
    except InputError as error:
        if (name := item or source_name(source)) is None:
            raise
        raise error.named(name) from error.__cause__


def resample(samples: np.ndarray, rate: int, to: int) -> np.ndarray:
    """The same sound at another rate.

    samples: (T,) or (channels, T) float32
    rate, to: [Hz]
    returns: float32, ceil or floor of T * to / rate samples long; `samples` itself if the rates are equal

    Raises MissingExtra without the soxr package.
    Source: the SoX resampler at its quality "HQ", what librosa has used since 0.10.
    """
    if rate == to:
        return samples
    try:
        import soxr
    except ImportError as error:
        raise MissingExtra("soxr", "audio", f"resampling from {rate} Hz to {to} Hz") from error
    return np.ascontiguousarray(soxr.resample(samples.T, rate, to, quality="HQ").T, dtype=np.float32)


def check_rate(rate: Any) -> int:
    """A rate [Hz] as an int; InputError ("rate") unless it is a whole number of a plausible size."""
    number = isinstance(rate, (int, float, np.integer, np.floating)) and not isinstance(rate, bool)
    if not number or not MIN_RATE <= rate <= MAX_RATE or rate != int(rate):
        raise InputError(
            f"a rate of {rate!r:.40}; accepted: a whole number of Hz from {MIN_RATE:,} to {MAX_RATE:,}", code="rate"
        )
    return int(rate)


def _checked(samples: np.ndarray) -> np.ndarray:
    """`samples`; InputError if there are none, or some are not valid."""
    if samples.size == 0:
        raise InputError("a sound without samples; at least one is needed", code="empty")
    bad = samples.size - np.count_nonzero(np.isfinite(samples))
    if bad:
        raise InputError(f"{bad} of {samples.size} samples are NaN or infinite; all must be finite", code="not-finite")
    loudest = float(np.abs(samples).max())
    if loudest > MAX_AMPLITUDE:
        raise InputError(
            f"samples reach {loudest:g}; floats are in [-1, 1]: divide 16-bit samples by 32768, or pass them as int16",
            code="amplitude",
        )
    return samples


def _from_pair(array: Any, rate: Any, limits: AudioLimits) -> tuple[np.ndarray, int]:
    """(channels, T) float32 and the rate, from a caller's pair."""
    if isinstance(array, (str, bytes, os.PathLike)) or array is None:
        raise InputError(f"a pair that begins with a {type(array).__name__}; {ACCEPTED}", code="type")
    found = check_rate(rate)
    samples = as_array(array)
    if samples.ndim not in (1, 2):
        raise InputError(f"samples of shape {samples.shape}; accepted: (T,), (channels, T)", code="shape")
    samples = np.atleast_2d(samples)
    if len(samples) > MAX_CHANNELS >= samples.shape[1]:
        samples = samples.T  # (T, channels), as sound files are laid out
    _check_size(samples.shape[1], len(samples), found, limits)
    return _full_scale(samples), found


def _full_scale(samples: np.ndarray) -> np.ndarray:
    """Samples of any accepted type as float32 with full scale 1."""
    if samples.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what overflows is refused as infinite
            return samples.astype(np.float32, copy=False)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - 128) / 128
    if samples.dtype.newbyteorder("=") in (np.int16, np.int32):
        return (samples / -float(np.iinfo(samples.dtype).min)).astype(np.float32)
    raise InputError(f"samples of type {samples.dtype}; wanted floats in [-1, 1], int16, int32 or uint8", code="dtype")


def _check_size(frames: int, channels: int, rate: int, limits: AudioLimits) -> None:
    if channels > MAX_CHANNELS:
        raise InputError(f"{channels} channels; at most {MAX_CHANNELS} are accepted", code="shape")
    if frames > limits.max_seconds * rate or frames * channels > limits.max_samples:
        raise InputError(
            f"{frames / rate:,.1f} s of sound, {channels} x {frames:,} samples; at most {limits.max_seconds:g} s and "
            f"{limits.max_samples:,} samples are accepted: cut it into parts",
            code="too-long",
        )


# ------------------------------------------------------------------ files


def _decode(content: bytes, limits: AudioLimits) -> tuple[np.ndarray, int]:
    """(channels, T) float32 and the rate, from the bytes of a file."""
    if not content:
        raise InputError("an empty file, 0 bytes", code="empty")
    kind = _kind(content)
    if kind is None:
        raise InputError(
            f"not a sound file, it begins with {content[:8].hex(' ')}; accepted: {FORMATS}", code="not-audio"
        )
    end = {"WAV": _wav_end, "AIFF": _aiff_end, "Ogg": _ogg_end}.get(kind, len)(content)
    if end > len(content) + 1:  # decoders pass over this in silence; a last padding byte may be missing
        whole = "" if math.isinf(end) else f" of {int(end):,}"
        raise InputError(f"the {kind} file ends after {len(content):,}{whole} bytes", code="truncated")
    try:
        import soundfile
    except ImportError as error:
        if kind != "WAV":
            raise MissingExtra("soundfile", "audio", f"reading {kind} files") from error
        return _decode_wav(content, limits)
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            rate, channels, announced = check_rate(file.samplerate), file.channels, file.frames
            if kind != "MP3":  # whose length may be an estimate
                _check_size(announced, channels, rate, limits)
            longest = min(int(limits.max_seconds * rate), limits.max_samples // channels)
            samples = file.read(min(announced, longest + 1), dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
        reason = str(getattr(error, "error_string", error)).strip(" .")
        raise InputError(f"a damaged {kind} file: {reason}", code="corrupt") from error
    _check_size(len(samples), channels, rate, limits)
    exact = kind == "MP3" and any(tag in content[:4096] for tag in (b"Xing", b"Info"))  # such headers state the length
    if exact and announced - len(samples) > 2 * MP3_FRAME:
        raise InputError(f"the MP3 file ends after {len(samples):,} of {announced:,} samples", code="truncated")
    return samples.T, rate


def _decode_wav(content: bytes, limits: AudioLimits) -> tuple[np.ndarray, int]:
    """The same by the standard library, for plain PCM."""
    try:
        with wave.open(io.BytesIO(content)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), check_rate(file.getframerate())
            _check_size(file.getnframes(), channels, rate, limits)
            encoded = np.frombuffer(file.readframes(file.getnframes()), np.uint8)
    except (wave.Error, EOFError) as error:
        if "unknown format" in str(error):  # floats, and the extensible header
            raise MissingExtra("soundfile", "audio", "reading WAV files other than plain PCM") from error
        raise InputError(f"a damaged WAV file: {error}", code="corrupt") from error
    frames = encoded[: len(encoded) // (width * channels) * width * channels].reshape(-1, channels, width)
    if width == 1:
        return _full_scale(frames[:, :, 0].T), rate
    wide = np.zeros((*frames.shape[:2], 4), np.uint8)
    wide[:, :, 4 - width :] = frames  # little-endian: the low bytes stay zero
    return _full_scale(wide.view("<i4")[:, :, 0].T), rate


def _kind(content: bytes) -> str | None:
    """The format by its first bytes; None for what is not accepted."""
    if content[:4] in (b"RIFF", b"RIFX", b"RF64") and content[8:12] == b"WAVE":
        return "WAV"
    if content[:4] == b"FORM" and content[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    for kind, magic in (("FLAC", b"fLaC"), ("Ogg", b"OggS"), ("MP3", b"ID3")):
        if content.startswith(magic):
            return kind
    if len(content) > 2 and content[0] == 0xFF and content[1] & 0xE6 == 0xE2:  # MPEG audio, layer III
        return "MP3"
    return None


def _wav_end(content: bytes) -> float:
    """Where the chunk with the samples ends."""
    order = "big" if content[:4] == b"RIFX" else "little"
    at = 12
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], order)  # type: ignore[arg-type]
        if content[at : at + 4] == b"data":
            return at + 8 + size if size < STREAMED else len(content)
        at += 8 + size + size % 2
    return len(content) if at == len(content) else at + 8


def _aiff_end(content: bytes) -> float:
    return 8 + int.from_bytes(content[4:8], "big")


def _ogg_end(content: bytes) -> float:
    """Where the last page ends; infinity if it is not marked as the last."""
    at = content.rfind(b"OggS\0")
    header = content[at : at + 27]
    if len(header) < 27 or not header[5] & 4:
        return math.inf
    segments = content[at + 27 : at + 27 + header[26]]
    return at + 27 + header[26] + sum(segments)
