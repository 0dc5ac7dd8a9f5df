"""The bytes of a file, safely: no pipe to wait for, no more than is allowed."""

from __future__ import annotations

import os
import re
import stat

from image_encoders.errors import InputError

ADDRESS = re.compile(r"(https?|ftp|s3|gs|data|file):|[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def read_file(path: str, what: str, max_bytes: int, hint: str = "", accepted: str = "") -> bytes:
    """The bytes of a regular file; never waits for a pipe or a device.

    what: the file should be, such as "picture"
    hint: how to change `max_bytes`, for the message
    accepted: what else than a path might have been meant, for the message where nothing is there

    Raises InputError with code url, not-found, not-a-file, too-many-bytes or unreadable.
    """
    if (address := address_error(path, what)) is not None:
        raise address
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or a device"
                raise InputError(f"{kind}; a {what} file is accepted", code="not-a-file")
            check_bytes(found.st_size, max_bytes, hint)
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read()
            if content is None:  # some of the system's files look regular, and are waited for all the same
                raise InputError(f"nothing to read yet, as in a pipe; a {what} file is accepted", code="not-a-file")
            return content
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        found_instead = "a symbolic link to a file that does not exist" if os.path.islink(path) else "no such file"
        raise InputError(found_instead + accepted, code="not-found") from error
    except NotADirectoryError as error:
        raise InputError("no such file: a part of the path is not a folder", code="not-found") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot be read: {reason}", code="unreadable") from error


def address_error(path: str, what: str) -> InputError | None:
    """What is wrong with a path that is an address, such as https://...; None where it is none.

    what: the file should be, such as "picture"
    """
    if not ADDRESS.match(path):
        return None
    if path.lower().startswith("file:"):
        return InputError("an address, not a path; leave out the file://", code="url")
    return InputError(f"a web address, not a path; download the {what} first, and give its path or bytes", code="url")


def check_bytes(found: int, max_bytes: int, hint: str = "") -> None:
    """Raise InputError where there are more bytes than accepted."""
    if found > max_bytes:
        raise InputError(f"{found:,} bytes; at most {max_bytes:,} are accepted{hint}", code="too-many-bytes")
