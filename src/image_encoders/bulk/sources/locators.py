"""The locator behind an id, as search results have them, and the bytes behind a locator."""

from __future__ import annotations

import os
import re

from image_encoders.bulk.sources.archives import find_member, is_archive_name, read_member
from image_encoders.bulk.sources.files import absolute
from image_encoders.bulk.sources.lance import LanceTable, is_lance
from image_encoders.bulk.sources.places import LocalFile, Place
from image_encoders.bulk.sources.stores import ObjectFile, is_object
from image_encoders.bulk.sources.tables import is_table_name, read_cell
from image_encoders.bulk.sources.urls import is_url, read_patiently
from image_encoders.bulk.sources.videos import is_video_name, read_frame
from image_encoders.errors import InputError, MissingExtra
from image_encoders.inputs.image import ImageLimits, read_bytes
from image_encoders.records import Locator
from image_encoders.tables import path_of

TIME = re.compile(r"t=(\d+(?:\.\d+)?)")
CELL = re.compile(r".+/\d+", re.DOTALL)


def locator_of(name: str) -> Locator:
    """Where an id, or a name in a list, says that an image is: at a path or an address, in shard.tar#member or
    photos.parquet#column/row, at video.mp4#t=83.2.

    The archive, table or video must be there, or in a store, where the name alone decides. A file whose own name is
    all of that comes first.
    """
    if (name.startswith("bytes:") or "#" in name) and not os.path.lexists(name):
        name = path_of(name)
        for at in (at for at, sign in enumerate(name) if sign == "#"):
            path, inside = name[:at], name[at + 1 :]
            if not is_object(path):
                if not os.path.exists(path):
                    continue
                path = absolute(path)
            if is_archive_name(path) or (is_table_name(path) and CELL.fullmatch(inside)):
                return Locator(path, inside)
            if is_video_name(path) and (time := TIME.fullmatch(inside)):
                return Locator(path, time_s=float(time[1]))
    return Locator(name)


def place_of(path: str) -> Place:
    """The archive, table or video at a locator's path."""
    if is_object(path):
        return ObjectFile(path)
    return LanceTable(path) if is_lance(path) else LocalFile(path)


def read_locator(locator: Locator, limits: ImageLimits | None = None, *, private_urls: bool = False) -> bytes:
    """The bytes of an image file, or of a frame as one, for any row's locator; on any thread.

    limits: None: `ImageLimits.from_environment()`
    private_urls: also fetch from addresses that are not public

    Raises InputError if it no longer exists, cannot be read or has too many bytes.
    """
    limits = limits or ImageLimits.from_environment()
    path = locator.path
    if is_url(path):
        return read_patiently(path, limits, private_urls)
    if locator.member is None and locator.time_s is None:
        return ObjectFile(path).read_all(limits) if is_object(path) else read_bytes(path, limits)
    place = place_of(path)
    try:
        if locator.time_s is not None:
            return read_frame(place, locator.time_s, limits)
        assert locator.member is not None
        if is_archive_name(path):
            return read_member(place, find_member(place, locator.member), limits.max_bytes)
        column, _, row = locator.member.rpartition("/")
        return read_cell(place, column, int(row))
    except MissingExtra as error:
        raise InputError(str(error), code="unsupported") from error
    except ValueError as error:
        raise InputError(f"no {locator.member} in it", code="not-found") from error
