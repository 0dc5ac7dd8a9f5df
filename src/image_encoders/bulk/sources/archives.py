"""Archives, tar and zip: the images inside, as `shard.tar#name`, with the files beside them.

    shard.tar ─members, in order→ groups that share a key ─→ images, with metadata from the others

A WebDataset shard is such a tar: files of one sample stand together and differ in what follows the first dot of their
names. Nothing is written to disk, so a member's name is only a name, wherever it points.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any, cast

from image_encoders.bulk.digests import DigestTable
from image_encoders.bulk.sources.contents import Content, taken
from image_encoders.bulk.sources.files import is_image_name
from image_encoders.bulk.sources.items import Entry, Problem, Ready, Uncountable, Walk, nothing_known
from image_encoders.bulk.sources.places import Place
from image_encoders.errors import InputError, first_line
from image_encoders.inputs.files import bytes_error, check_bytes
from image_encoders.inputs.image import MAX_BYTES_HINT, ImageLimits
from image_encoders.records import Locator


def _zstandard(file: Any) -> Any:
    """What a file packed by Zstandard holds, read in order."""
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")


COMPRESSED: Mapping[str, Callable[[Any], Any]] = {
    ".tar.gz": gzip.open,
    ".tgz": gzip.open,
    ".tar.bz2": bz2.BZ2File,
    ".tbz2": bz2.BZ2File,
    ".tar.xz": lzma.LZMAFile,
    ".txz": lzma.LZMAFile,
    ".tar.zst": _zstandard,
    ".tzst": _zstandard,
}
SUFFIXES = (".tar", ".zip", *COMPRESSED)
LARGEST_SIDECAR = 1 << 20  # bytes
LARGEST_HEADER = 1 << 20  # bytes of a name, or of other attributes, of a member
LARGEST_SKIPPED = 1 << 34  # bytes of one member that are unpacked to get to the next
SMALL = 1 << 12  # bytes of what stands beside an image, and is read with the headers
BLOCK = tarfile.BLOCKSIZE
OCTAL = re.compile(rb"[0-7]{17}")


def is_archive_name(name: str) -> bool:
    """Whether a file's name ends as those of archives do."""
    return name.lower().endswith(SUFFIXES)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    offset, size: of its bytes as stored in the archive; of a zip's, offset is that of its local header
    info: of a zip's, what its directory says
    error: why it cannot be read, if that is already known
    """

    name: str
    offset: int
    size: int
    info: zipfile.ZipInfo | None = None
    error: InputError | None = None


@dataclass(eq=False)
class ArchivedImage(Ready):
    """An image in an archive: the archive's state and its offset there are its own."""

    place: Place
    member: Member
    sidecars: Mapping[str, Callable[[], bytes]] = field(default_factory=dict)
    content: Content | None = None

    def entry(self) -> Entry:
        """Itself, or, in a zip file of a store, what reads it ahead."""
        return FarMember(self) if self.member.info is not None and not self.place.near else self

    @cached_property
    def name(self) -> str:
        return f"{self.place.path}#{self.member.name}"

    @property
    def locator(self) -> Locator:
        return Locator(self.place.path, self.member.name)

    @property
    def state(self) -> str:
        return f"{self.place.state} {self.member.offset}"

    @property
    def error(self) -> InputError | None:
        return self.member.error

    @cached_property
    def metadata(self) -> Mapping[str, Any] | None:
        return _metadata(self.sidecars)

    def read(self, limits: ImageLimits) -> bytes:
        return taken(self.content, partial(read_member, self.place, self.member, limits.max_bytes))


@dataclass(frozen=True)
class FarMember:
    """An image in a zip file of a store, which is read over a network."""

    image: ArchivedImage
    path: None = None
    polite = False

    @property
    def name(self) -> str:
        return self.image.name

    @property
    def host(self) -> str:
        return self.image.place.path

    def item(self, known: Callable[[str, str], bool] = nothing_known) -> ArchivedImage:
        if self.image.error is None and not known(self.image.id, self.image.state):
            try:
                self.image.content = Content(self.image.read(ImageLimits.from_environment()))
            except InputError as error:
                self.image.member = replace(self.image.member, error=error)
        return self.image


class Archive:
    """The images in a tar or zip file."""

    def __init__(self, place: Place, walk: Walk):
        self.place, self.walk = place, walk

    @property
    def repeatable(self) -> bool:
        return self.place.near and not _compression(self.place.path)

    def check(self) -> None:
        """Raise InputError where it cannot be opened."""
        self.place.open().close()

    def entries(self) -> Iterator[Entry]:
        """Its images; what cannot be read of it comes out as one entry with the archive's name, at the end."""
        if self.walk.counting and not self.repeatable:
            raise Uncountable
        names = DigestTable()  # as there may be millions
        try:
            self.place.state  # noqa: B018  before anything of it is read
            for sample in self._samples():
                for image in self._images(sample):
                    if names.has(image.id):
                        error = InputError("another member of the archive has the same name", code="same-name")
                        yield Problem(f"{image.name} at byte {image.member.offset:,}", image.locator, error)
                    else:
                        names.add(image.id)
                        yield image.entry()
        except Exception as error:  # a damaged archive may raise anything
            yield Problem(self.place.path, Locator(self.place.path), _archive_error(error))
        else:
            self.walk.complete(self.place.id)

    def _samples(self) -> Iterator[list[_ReadMember]]:
        """Members that stand together and have the same key, as those of a WebDataset's sample do."""
        sample: list[_ReadMember] = []
        limit = ImageLimits.from_environment().max_bytes
        with self.place.open() as file:
            for member, read in _members(self.place, file):
                if sample and _key(member.name) != _key(sample[0].member.name):
                    yield sample
                    sample = []
                sample.append(self._read_ahead(member, read, limit))
            if sample:
                yield sample

    def _read_ahead(self, member: Member, read: Callable[[], bytes] | None, limit: int) -> _ReadMember:
        """A member with its bytes, where they are wanted and come by only once."""
        is_image = self.walk.settings.all_files or is_image_name(member.name)
        if read is None or member.error is not None:
            return _ReadMember(member, is_image)
        if not is_image:
            wanted = _suffix(member) in SIDECARS and member.size <= LARGEST_SIDECAR
            return _ReadMember(member, is_image, text=read() if wanted else None)
        if member.size > limit:
            return _ReadMember(replace(member, error=bytes_error(member.size, limit, MAX_BYTES_HINT)), is_image)
        image = ArchivedImage(self.place, member)
        return _ReadMember(member, is_image, None if self.walk.known(image.id, image.state) else Content(read()))

    def _images(self, sample: list[_ReadMember]) -> Iterator[ArchivedImage]:
        """The images of a sample, with the files beside them."""
        others = [one for one in sample if not one.is_image]
        lonely = len(others) == len(sample)
        sidecars: dict[str, Callable[[], bytes]] = {}
        for one in others:
            if lonely or _suffix(one.member) not in SIDECARS:
                self.walk.ignore(one.member.name)
            else:
                sidecars[_suffix(one.member)] = partial(_sidecar, self.place, one)
        for one in sample:
            if one.is_image:
                yield ArchivedImage(self.place, one.member, sidecars, one.content)


@dataclass(frozen=True, slots=True)
class _ReadMember:
    """A member, and what was read of it already: an image, or a file beside one."""

    member: Member
    is_image: bool
    content: Content | None = None
    text: bytes | None = None


def _suffix(member: Member) -> str:
    return os.path.splitext(member.name)[1].lower()


def _key(name: str) -> str:
    """The key of a WebDataset sample's files: the name up to the first dot after the last slash."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _sidecar(place: Place, one: _ReadMember) -> bytes:
    return read_member(place, one.member, LARGEST_SIDECAR) if one.text is None else one.text


def _json_metadata(text: str) -> dict[str, Any]:
    """The keys of an object, or another value as "json"; NaN and Infinity, which only Python writes, become null."""
    value = json.loads(text, parse_constant=lambda constant: None)
    return value if isinstance(value, dict) else {"json": value}


def _class_metadata(text: str) -> dict[str, Any]:
    """A class: a number where it is one."""
    try:
        return {"class": int(text)}
    except ValueError:
        return {"class": text.strip()}


# What may stand beside an image, and the metadata that is made of it; of equal keys those further down count.
SIDECARS: Mapping[str, Callable[[str], dict[str, Any]]] = {
    ".json": _json_metadata,
    ".txt": lambda text: {"caption": text},
    ".cls": _class_metadata,
}


def _metadata(sidecars: Mapping[str, Callable[[], bytes]]) -> dict[str, Any] | None:
    """The metadata beside an image."""
    found: dict[str, Any] = {}
    for suffix, parse in SIDECARS.items():
        if suffix not in sidecars:
            continue
        try:
            found |= parse(sidecars[suffix]().decode())
        except (ValueError, RecursionError) as error:
            raise InputError(f"the {suffix} beside it cannot be read: {first_line(error)}", code="metadata") from error
        except InputError as error:
            raise InputError(f"the {suffix} beside it: {error.message}", code="metadata") from error
    return found or None


# ------------------------------------------------------------------ members


def _members(place: Place, file: Any) -> Iterator[tuple[Member, Callable[[], bytes] | None]]:
    """An archive's files in order, hidden ones left out.

    The function reads the newest one's bytes, where they come by only once at that price; else there is none.
    """
    if place.path.lower().endswith(".zip"):
        found: Iterator[tuple[Member, Callable[[], bytes] | None]] = ((one, None) for one in _zip_members(file))
    else:
        unpack = _compression(place.path)
        headers = _Headers(file, unpack)
        in_order = unpack is not None or not place.near
        found = (
            (one, partial(headers.content, one) if in_order or _is_near(one) else None) for one in _tar_members(headers)
        )
    return ((member, read) for member, read in found if not member.name.rpartition("/")[2].startswith("."))


def _is_near(member: Member) -> bool:
    """Whether its bytes are most likely in the file's buffer, as its header was."""
    return member.size <= SMALL and _suffix(member) in SIDECARS


def read_member(place: Place, member: Member, max_bytes: int) -> bytes:
    """The bytes of a member of an archive."""
    if member.error is not None:
        raise member.error
    check_bytes(member.size, max_bytes, MAX_BYTES_HINT)
    if member.info is not None:
        return _unzip(place, member.info, max_bytes)
    if _compression(place.path):
        with place.open() as file:
            for found, read in _members(place, file):
                if found.offset == member.offset and read is not None:
                    return read()
        raise InputError("no longer in the archive", code="not-found")
    content = place.read(member.offset, member.size)
    if len(content) < member.size:
        raise _cut(member.name)
    return content


def find_member(place: Place, name: str) -> Member:
    """The first member of that name; InputError where there is none, or none before the archive's damage."""
    try:
        found, damage = _places(cast(Any, place), place.state)
    except Exception as error:  # a damaged archive may raise anything
        raise _archive_error(error) from error
    if name not in found:
        raise damage or InputError(f"no {name} in the archive", code="not-found")
    return found[name]


@lru_cache(maxsize=4)  # archives: hits come from few, and a tar has no directory
def _places(place: Any, state: str) -> tuple[dict[str, Member], InputError | None]:
    """The members by name, and why there may be more."""
    found: dict[str, Member] = {}
    with place.open() as file:
        try:
            for member, _ in _members(place, file):
                found.setdefault(member.name, member)
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, InputError) as error:
            return found, _archive_error(error)
    return found, None


# ------------------------------------------------------------------ tar


def _compression(path: str) -> Callable[[Any], Any] | None:
    return next((unpack for suffix, unpack in COMPRESSED.items() if path.lower().endswith(suffix)), None)


class _Headers:
    """A tar file as `tarfile` reads its headers: in order, and no header of any size.

    unpack: opens what is compressed; None: the file itself is the archive
    newest: the header block that was read last
    """

    def __init__(self, file: Any, unpack: Callable[[Any], Any] | None):
        self.compressed = unpack is not None
        self.size = None if unpack else file.seek(0, os.SEEK_END)
        self.file = unpack(file) if unpack else file
        self.at = 0
        self.newest = b""
        self.seek(0)

    def read(self, size: int) -> bytes:
        if size > LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes; at most {LARGEST_HEADER:,} are accepted")
        self.newest = self._read(size)
        return self.newest

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int) -> None:
        """Go to an offset; in what is compressed, onwards alone."""
        if not self.compressed:
            self.at = self.file.seek(offset)
            return
        if offset - self.at > LARGEST_SKIPPED:
            raise tarfile.ReadError(f"a member of more than {LARGEST_SKIPPED:,} bytes in a compressed archive")
        while self.at < offset and self._read(min(offset - self.at, 1 << 20)):
            pass

    def _read(self, size: int) -> bytes:
        content = self.file.read(size)
        self.at += len(content)
        return content

    def content(self, member: Member) -> bytes:
        """The bytes of the newest member."""
        self.seek(member.offset)
        content = self._read(member.size)
        if len(content) < member.size:
            raise _cut(member.name)
        return content


class _TarInfo(tarfile.TarInfo):
    """A header, of which `tarfile` reads all fields with care: that of a plain file in a quarter of the time."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> _TarInfo:  # type: ignore[override]
        """What a header's block says."""
        size, said = buf[124:135], buf[148:154]
        plain = len(buf) == BLOCK and buf[156:157] == tarfile.REGTYPE and not buf[345] and OCTAL.fullmatch(size + said)
        if not plain or int(said, 8) != sum(buf) - sum(buf[148:156]) + 8 * ord(" "):
            return super().frombuf(buf, encoding, errors)
        one = cls(buf[:100].partition(b"\0")[0].decode(encoding, errors))
        one.size, one.type = int(size, 8), tarfile.REGTYPE
        return one


def _tar_members(headers: _Headers) -> Iterator[Member]:
    how = {"errors": "surrogateescape", "encoding": "utf-8", "tarinfo": _TarInfo}
    with tarfile.open(fileobj=headers, mode="r:", **how) as tar:  # type: ignore[call-overload]
        while True:
            tar.members = []  # which otherwise remembers all
            one = tar.next()
            if one is None:
                break
            if one.isdir():
                continue
            plain = one.isreg() and not one.issparse()
            if plain and headers.size is not None and one.offset_data + one.size > headers.size:
                raise _cut(one.name)
            error = None
            if not plain:
                kind = f"a link to {one.linkname}" if one.islnk() or one.issym() else "a sparse file or a device"
                error = InputError(f"{kind}; only regular files in an archive are accepted", code="not-a-file")
            yield Member(one.name, one.offset_data, one.size, error=error)
    if len(headers.newest) < BLOCK:
        raise InputError("ends without the end mark of a tar archive: it may have been cut off", code="truncated")
    if headers.newest.strip(b"\0"):
        raise InputError(f"damaged at byte {tar.offset:,}: what comes after that cannot be read", code="corrupt")


def _cut(name: str) -> InputError:
    return InputError(f"ends in the middle of {name}: it may have been cut off", code="truncated")


# ------------------------------------------------------------------ zip


def _zip_members(file: Any) -> Iterator[Member]:
    with zipfile.ZipFile(file) as zipped:
        for info in sorted(zipped.infolist(), key=lambda info: (_key(info.filename), info.filename)):
            if info.is_dir():
                continue
            error = None
            if info.flag_bits & 1:
                error = InputError("encrypted; unpack the archive with its password first", code="unsupported")
            yield Member(info.filename, info.header_offset, max(info.file_size, 0), info, error)


LOCAL_HEADER = 30  # bytes, before a name and attributes of 65,535 bytes at most each


def _unzip(place: Place, info: zipfile.ZipInfo, max_bytes: int) -> bytes:
    """A member's bytes, checked; no more than its directory says."""
    check_bytes(info.compress_size, max_bytes, MAX_BYTES_HINT)
    slack = len(info.filename.encode("utf-8", "surrogateescape")) + len(info.extra) + 64
    packed = place.read(info.header_offset, LOCAL_HEADER + slack + info.compress_size)
    if packed[:4] != b"PK\x03\x04" or len(packed) < LOCAL_HEADER:
        raise InputError("no file where the archive's directory says it is", code="corrupt")
    before = LOCAL_HEADER + int.from_bytes(packed[26:28], "little") + int.from_bytes(packed[28:30], "little")
    if len(packed) < before + info.compress_size:
        packed = place.read(info.header_offset, before + info.compress_size)
    try:
        with zipfile.ZipExtFile(io.BytesIO(packed[before : before + info.compress_size]), "r", info) as file:
            content = file.read(info.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
        raise InputError(f"damaged in the archive: {first_line(error)}", code="corrupt") from error
    except NotImplementedError as error:
        raise InputError(f"compressed in an unsupported way: {first_line(error)}", code="unsupported") from error
    if len(content) != info.file_size:
        raise InputError(
            f"{len(content):,} bytes or more where the archive's directory says {info.file_size:,}", code="corrupt"
        )
    return content


def _archive_error(error: Exception) -> InputError:
    """Why nothing more of an archive can be read."""
    if isinstance(error, InputError):
        return error
    reason = first_line(error)
    cut = isinstance(error, EOFError) or "unexpected end" in reason or "ended before" in reason or "Truncated" in reason
    if cut:
        return InputError(f"ends too early ({reason}); what came before was read", code="truncated")
    return InputError(f"an archive that cannot be read: {reason}", code="corrupt")
