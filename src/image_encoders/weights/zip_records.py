"""The records of a zip archive, mapped where they are stored as they are."""

from __future__ import annotations

import mmap
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from image_encoders.weights.files import Malformed

INFLATED_AT_LEAST = 64 << 20  # deflated records may grow to this many bytes together,
INFLATED_RATIO = 100  # or to this many times the file's size: beyond that it is a zip bomb


class ZipRecords:
    """The records of an archive by name, read on access.

    Raises Malformed when the archive's directory is damaged, names a record twice, has records that overlap, or
    promises more than weights can inflate to.
    """

    def __init__(self, path: Path, mapped: mmap.mmap) -> None:
        self.mapped = mapped
        with zipfile.ZipFile(path) as archive:
            entries, comment = archive.infolist(), archive.comment
        (count,) = struct.unpack("<H", mapped[-12:-10])  # in the last 22 bytes, where no comment follows them
        if comment or count != min(len(entries), 0xFFFF):
            raise Malformed(f"a directory of {len(entries)} records that says {count}, or has a comment")
        names = Counter(entry.filename for entry in entries)
        if len(names) < len(entries):
            raise Malformed(f"two records are called {max(names, key=lambda name: names[name])}")
        inflated = sum(e.file_size for e in entries if e.compress_type != zipfile.ZIP_STORED)
        if inflated > max(INFLATED_AT_LEAST, INFLATED_RATIO * len(mapped)):
            raise Malformed(f"{len(mapped)} bytes that would inflate to {inflated}")
        self.entries = {entry.filename: entry for entry in entries}
        self._starts = {entry.filename: self._start(entry) for entry in entries}
        end = 0
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            if entry.header_offset < end:
                raise Malformed(f"record {entry.filename} overlaps the one before it")
            end = self._starts[entry.filename] + entry.compress_size

    def stored_at(self, name: str) -> int | None:
        """Where in the file a record's bytes lie; None when they are compressed."""
        return None if self.entries[name].compress_type != zipfile.ZIP_STORED else self._starts[name]

    def read(self, name: str) -> memoryview:
        """A record's bytes, their checksum verified: a view of the file, or inflated into memory."""
        if name not in self.entries:
            raise Malformed(f"record {name} is missing")
        entry = self.entries[name]
        view = memoryview(self.mapped)[self._starts[name] :][: entry.compress_size]
        if entry.compress_type == zipfile.ZIP_DEFLATED:
            inflated = zlib.decompressobj(-15).decompress(view, entry.file_size + 1)
            view = memoryview(bytearray(inflated))  # writable, as the mapped ones are
        elif entry.compress_type != zipfile.ZIP_STORED:
            raise Malformed(f"record {name} is compressed by method {entry.compress_type}; deflate is known")
        if len(view) != entry.file_size:
            raise Malformed(f"record {name} has {len(view)} of {entry.file_size} bytes")
        if entry.CRC and zlib.crc32(view) != entry.CRC:  # torch has an option to write 0 for "not computed"
            raise Malformed(f"record {name} has a wrong checksum")
        return view

    def _start(self, entry: zipfile.ZipInfo) -> int:
        """Where the bytes of a record begin: behind a header of their own, whose length the directory does not know."""
        header = self.mapped[entry.header_offset : entry.header_offset + 30]
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise Malformed(f"record {entry.filename} is not where the archive's directory says")
        if entry.flag_bits & 1:
            raise Malformed(f"record {entry.filename} is encrypted")
        name, more = struct.unpack("<2H", header[26:30])
        start = entry.header_offset + 30 + name + more
        if self.mapped[start - name - more : start - more] != entry.orig_filename.encode(_encoding(entry)):
            raise Malformed(f"record {entry.filename} has another name in its own header")
        if start + entry.compress_size > len(self.mapped):
            raise Malformed(f"record {entry.filename} reaches beyond the end of the file")
        return start


def _encoding(entry: zipfile.ZipInfo) -> str:
    """In which a record's name is written."""
    return "utf-8" if entry.flag_bits & 0x800 else "cp437"
