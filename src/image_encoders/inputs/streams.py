"""The bytes of files that are open already."""

from __future__ import annotations

from typing import Any

from image_encoders.errors import InputError
from image_encoders.inputs.files import check_bytes

PIECE = 2**22  # bytes asked for at a time: some files set aside all the memory that they are asked to fill


def read_stream(file: Any, what: str, max_bytes: int, hint: str = "") -> bytes:
    """What is left to read in an open binary file, or in anything with such a `read`; it is left open, at its end.

    what, hint: as of `read_file`

    Raises InputError with code type, empty, too-many-bytes or unreadable.
    """
    pieces: list[bytes] = []
    found = 0
    while True:
        try:
            piece = file.read(PIECE)
        except Exception as error:  # closed, or not open for reading, or whatever the object's own code raises
            raise InputError(f"an open file that cannot be read: {error}", code="unreadable") from error
        if piece is None:
            raise InputError("an open file that has nothing to read yet; open it without O_NONBLOCK", code="unreadable")
        if not isinstance(piece, bytes):
            raise InputError(
                f"an open file whose read gives {type(piece).__name__}, not bytes; open a {what} with mode 'rb'",
                code="type",
            )
        if not piece:
            break
        pieces.append(piece)
        found += len(piece)
        check_bytes(found, max_bytes, hint)
    if not found:
        raise InputError("an open file with nothing left to read; seek(0) goes back to its start", code="empty")
    return b"".join(pieces)
