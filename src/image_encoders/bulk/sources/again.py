"""The bytes of what a collection holds already, by where they were found."""

from __future__ import annotations

from image_encoders.bulk.sources.archives import ArchivedImage, find_member, is_archive_name
from image_encoders.bulk.sources.places import LocalFile
from image_encoders.bulk.sources.tables import CellImage
from image_encoders.errors import InputError
from image_encoders.inputs.files import address_error
from image_encoders.inputs.image import read_bytes
from image_encoders.inputs.limits import ImageLimits


def read_again(path: str, member: str | None, limits: ImageLimits) -> bytes:
    """The bytes of a file, of a member of an archive or of a table's cell; they may be others than they were.

    path, member: as of a `Locator`

    Raises InputError, with "not-found" for what is gone, "url" for what lies elsewhere.
    """
    if (address := address_error(path, "image")) is not None:
        raise address
    if member is None:
        return read_bytes(path, limits)
    place = LocalFile.at(path)
    if is_archive_name(path):
        return ArchivedImage(place, find_member(place, member)).read(limits)
    column, _, row = member.rpartition("/")
    if not row.isdecimal():
        raise InputError("a part of a file of a kind that is not known", code="unsupported")
    return CellImage(place, column, int(row)).read(limits)
