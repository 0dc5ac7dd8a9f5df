"""Texts: what is accepted as one."""

from __future__ import annotations

from typing import Any

from image_encoders.errors import InputError


def read_text(source: Any) -> str:
    """The text itself, which may be empty; InputError unless it is a `str` that UTF-8 can write."""
    if not isinstance(source, str):
        hint = "; decode it first" if isinstance(source, (bytes, bytearray)) else ""
        raise InputError(f"a {type(source).__name__}; a text (str) is accepted{hint}", code="type")
    try:
        source.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"a text with an unpaired surrogate at position {error.start}: {source[error.start]!r}", code="text"
        ) from error
    return source
