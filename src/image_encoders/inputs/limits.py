"""Limits for images."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields

from image_encoders.errors import InputError


@dataclass(frozen=True)
class ImageLimits:
    """Limits for an image, checked before it is decoded.

    max_bytes: size of the file; the default holds an image of `max_pixels` uncompressed
    max_pixels: width x height
    max_scans: of a JPEG file: a progressive one comes in about 10, and each costs a pass over the whole image
    """

    max_bytes: int = 2**29
    max_pixels: int = 178_000_000
    max_scans: int = 50

    @classmethod
    def from_environment(cls) -> ImageLimits:
        """The defaults, or the values of IMAGE_ENCODERS_MAX_BYTES, IMAGE_ENCODERS_MAX_PIXELS and ..._MAX_SCANS."""
        names = [limit.name for limit in fields(cls)]
        return cls(**{name: _limit(f"IMAGE_ENCODERS_{name.upper()}", getattr(cls, name)) for name in names})

    def check_pixels(self, width: int, height: int) -> None:
        """Raise InputError ("too-many-pixels", "empty") where an image has more than `max_pixels`, or none."""
        if width * height > self.max_pixels:
            raise InputError(
                f"{width} x {height} = {width * height} pixels; at most {self.max_pixels} are accepted "
                "(IMAGE_ENCODERS_MAX_PIXELS)",
                code="too-many-pixels",
            )
        if width < 1 or height < 1:
            raise InputError(f"an image of {width} x {height}, without pixels", code="empty")


def _limit(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{variable} is {text!r}; a whole number above 0 is accepted", code="limits")
    return int(text)
