"""The bytes of a source, within a limit: a file, without ever waiting for a pipe, or an open file."""

from __future__ import annotations

import os
import re
import stat
from typing import Any

from image_encoders.errors import InputError

ADDRESS = re.compile(r"(https?|ftp|s3|gs|data|file):|[a-z][a-z0-9+.-]+://", re.IGNORECASE)
PIECE = 2**22  # bytes asked for at a time: some open files set aside all the memory that they are asked to fill


def read_source(source: Any, what: str, max_bytes: int, hint: str = "", accepted: str = "") -> bytes | None:
    """The bytes of a path, of bytes, or of an open file from its current position; None for other kinds of sources.

    what, hint, accepted: as of `read_file`
    """
    if isinstance(source, (str, os.PathLike)):
        return read_file(os.fsdecode(source), what, max_bytes, hint, accepted)
    if isinstance(source, (bytes, bytearray, memoryview)):
        content = bytes(source)
        check_bytes(len(content), max_bytes, hint)
        return content
    return read_stream(source, what, max_bytes, hint) if hasattr(source, "read") else None


def source_name(source: Any) -> str | None:
    """The name of a source in error messages: its path; None if it has none."""
    return os.fsdecode(source) if isinstance(source, (str, os.PathLike)) else None


def read_file(path: str, what: str, max_bytes: int, hint: str = "", accepted: str = "") -> bytes:
    """The bytes of a regular file; never waits for a pipe or a device.

    what: the file should be, such as "image"
    hint: how to change `max_bytes`, for the message
    accepted: what other than a path might have been meant, for the message if the file does not exist

    Raises InputError with code url, not-found, not-a-file, too-many-bytes or unreadable.
    """
    if (address := address_error(path, what)) is not None:
        raise address
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            found = os.fstat(descriptor)
            check_regular(found, what)
            check_bytes(found.st_size, max_bytes, hint)
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
            if content is None:  # some of the system's files look regular, and are waited for all the same
                raise InputError(
                    f"nothing to read yet, as in a pipe; only {what} files are accepted", code="not-a-file"
                )
            return content
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise file_error(path, error, accepted) from error


def check_regular(found: os.stat_result, what: str) -> None:
    """Raise InputError ("not-a-file") for what is no regular file."""
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
        raise InputError(f"{kind}; only {what} files are accepted", code="not-a-file")


def file_error(path: str, error: OSError | ValueError, accepted: str = "") -> InputError:
    """Why a path cannot be opened or looked at: "not-found" or "unreadable"."""
    if isinstance(error, FileNotFoundError):
        found = "a symbolic link to a file that does not exist" if os.path.islink(path) else "no such file"
        return InputError(found + accepted, code="not-found")
    if isinstance(error, NotADirectoryError):
        return InputError("no such file: a part of the path is not a folder", code="not-found")
    return InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}", code="unreadable")


def read_stream(file: Any, what: str, max_bytes: int, hint: str = "") -> bytes:
    """The rest of an open binary file, or of anything with such a `read`; it is left open, at its end.

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
                f"an open file whose read() returns {type(piece).__name__}, not bytes; open the {what} with mode 'rb'",
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


def address_error(path: str, what: str) -> InputError | None:
    """What is wrong with a path that is an address, such as https://...; None where it is none.

    what: the file should be, such as "image"
    """
    if not ADDRESS.match(path):
        return None
    if path.lower().startswith("file:"):
        return InputError("a URL, not a path; leave out the file://", code="url")
    return InputError(f"a URL, not a path; download the {what} first, and give its path or bytes", code="url")


def check_bytes(found: int, max_bytes: int, hint: str = "") -> None:
    """Raise InputError where there are more bytes than accepted."""
    if found > max_bytes:
        raise bytes_error(found, max_bytes, hint)


def bytes_error(found: int, max_bytes: int, hint: str = "") -> InputError:
    """That there are more bytes than accepted."""
    return InputError(f"{found:,} bytes; at most {max_bytes:,} are accepted{hint}", code="too-many-bytes")
