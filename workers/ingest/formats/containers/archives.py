"""Archives -> their members, each a document: ZIP, TAR and 7-Zip. A file compressed by gzip, bzip2,
xz or Zstandard is a TAR archive or contains a single file.

Names that a ZIP archive does not mark as UTF-8 are decoded as UTF-8, CP949 or the encoding that
they look like, the same for all names of an archive (APPNOTE.TXT 4.4.4, appendix D). Folders are
not members. Links, devices, encrypted members and names that lead out of the archive are members
with an error. ZIP is read by zipfile, TAR by tarfile as a stream, 7-Zip by py7zr, which is an extra
(LGPL-2.1). Only py7zr writes to a disk, to a file without a name.
"""

import bz2
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import IO, Any, Final, Protocol

from shared.errors import DocumentError
from workers.ingest.formats.container import (
    Budget,
    Exceeded,
    Member,
    clean_name,
    encoding_of_names,
    is_litter,
)
from workers.ingest.formats.loader import Loader, RawDocument

_BLOCK_BYTES: Final = 2**18
_TAR_BLOCK_BYTES: Final = 512
_UTF8_FLAG: Final = 0x800
_ENCRYPTED_FLAG: Final = 0x1
_UNIX: Final = 3
_ENCRYPTED: Final = "is encrypted. Unpack it with its password, and ingest it then."
_LINK: Final = "is a link, which is not followed. Pack the file itself."
_SPECIAL: Final = "is no file, but a device or a pipe. Leave it out."
_TWICE: Final = "comes twice in the archive; the first one was read. Rename one of them."
_BESIDE_TWINS: Final = (
    "cannot be told apart from a member whose name comes twice. Rename one of those."
)
_ZIP_ERRORS: Final = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, struct.error,
)  # fmt: skip


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _named(document: RawDocument, budget: Budget, written: str) -> Member | str | None:
    """The name of a member; a Member with an error if the name is bad; None for files of operating
    systems, which are left out."""
    budget.count()
    name, error = clean_name(written)
    if is_litter(name):
        return None
    if not error and not budget.is_new(f"{document.name}/{name}"):
        error = _TWICE
    return Member(name=name, error=error) if error else name


# ZIP


def zip_members(document: RawDocument, budget: Budget) -> Iterator[Member]:
    data = document.content
    most = _zip_entries(data)
    if most > document.settings.archive_limit_entries:
        budget.count(most)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        budget.declare(sum(entry.file_size for entry in entries))
        _refuse_overlaps(entries, archive.start_dir, name=document.name)
        for entry, written in zip(entries, _zip_names(entries), strict=True):
            if entry.is_dir():
                budget.count()
                continue
            name = _named(document, budget, written)
            if isinstance(name, Member):
                yield name
            elif name is not None:
                yield _zip_member(archive, entry, name, budget)


def _zip_member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, budget: Budget
) -> Member:
    if entry.create_system == _UNIX and stat.S_ISLNK(entry.external_attr >> 16):
        return Member(name=name, error=_LINK)
    if entry.flag_bits & _ENCRYPTED_FLAG:
        return Member(name=name, error=_ENCRYPTED)
    if large := budget.too_large(name, entry.file_size):
        return large
    try:
        with archive.open(entry) as source:
            return Member(name=name, data=_all_of(source, budget))
    except Exceeded:
        raise
    except NotImplementedError as error:
        return Member(
            name=name,
            error=f"is packed in a way that is not supported ({error}). Pack it with deflate.",
        )
    except (*_ZIP_ERRORS, RuntimeError) as error:
        return Member(name=name, error=f"is damaged ({error}). Pack it again.")


def _all_of(source: Any, budget: Budget) -> bytes:
    blocks = []
    while block := source.read(_BLOCK_BYTES):
        budget.spend(len(block))
        blocks.append(block)
    return b"".join(blocks)


def _zip_entries(data: bytes) -> int:
    """The greatest number of entries that the central directory can have, by its size. Checked
    before zipfile reads the directory as a whole."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - 22 - 0xFFFF))
    if end < 0 or end + 22 > len(data):
        return 0
    (size,) = struct.unpack_from("<I", data, end + 12)
    if size == 0xFFFFFFFF:  # ZIP64
        end64 = data.rfind(b"PK\x06\x06", 0, end)
        if end64 < 0 or end64 + 48 > len(data):
            return 0
        (size,) = struct.unpack_from("<Q", data, end64 + 40)
    count, at = 0, end - min(size, end)
    while (at := data.find(b"PK\x01\x02", at, end)) >= 0:
        count, at = count + 1, at + 46
    return count


def _refuse_overlaps(entries: Sequence[zipfile.ZipInfo], end: int, *, name: str) -> None:
    """Refuse members that share bytes: a small archive could unpack to any size so, and no honest
    program writes one. Raises Exceeded or DocumentError."""
    reached = 0
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < reached:
            raise Exceeded(
                f"{name}: has members that overlap, which no program packs. It is not unpacked."
            )
        # The local header has at least 30 bytes and the name.
        reached = entry.header_offset + 30 + len(entry.orig_filename) + entry.compress_size
    if reached > end:
        raise DocumentError(f"{name}: is damaged: a member goes on behind the end. Pack it again.")


def _zip_names(entries: Sequence[zipfile.ZipInfo]) -> Iterator[str]:
    raw = {
        id(entry): entry.orig_filename.encode("cp437")
        for entry in entries
        if not entry.flag_bits & _UTF8_FLAG and not entry.orig_filename.isascii()
    }
    encoding = encoding_of_names(list(raw.values())) or "cp437"  # the default of the specification
    for entry in entries:
        if id(entry) not in raw:
            yield entry.orig_filename
            continue
        written = raw[id(entry)]
        yield _unicode_path(entry.extra, written) or written.decode(encoding, "replace")


def _unicode_path(extra: bytes, name: bytes) -> str | None:
    """The UTF-8 name in Info-ZIP's extra field (APPNOTE.TXT 4.6.9), if it belongs to this
    member."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        field = extra[at + 4 : at + 4 + size]
        if kind == 0x7075 and len(field) > 5 and field[0] == 1:
            (checksum,) = struct.unpack_from("<I", field, 1)
            if checksum == zlib.crc32(name):
                return field[5:].decode("utf-8", "replace")
        at += 4 + size
    return None


# TAR, and compressed streams


class _Stream:
    """A decompressed stream that counts its bytes against the budget; `peek` shows its
    beginning."""

    def __init__(self, source: _Readable, budget: Budget) -> None:
        self._source = source
        self._budget = budget
        self._head = b""

    def peek(self, size: int) -> bytes:
        while len(self._head) < size and (block := self._read(size - len(self._head))):
            self._head += block
        return self._head[:size]

    def read(self, size: int) -> bytes:
        if self._head:
            taken, self._head = self._head[:size], self._head[size:]
            return taken
        return self._read(size)

    def _read(self, size: int) -> bytes:
        block = self._source.read(size)
        self._budget.spend(len(block))
        return block


Open = Callable[[bytes], _Readable]


def _as_it_is(data: bytes) -> _Readable:
    return io.BytesIO(data)


def _gzip(data: bytes) -> _Readable:
    return gzip.GzipFile(fileobj=io.BytesIO(data))


def _bzip2(data: bytes) -> _Readable:
    return bz2.BZ2File(io.BytesIO(data))


def _xz(data: bytes) -> _Readable:
    return lzma.LZMAFile(io.BytesIO(data))


_ZSTANDARD_WINDOW_BYTES: Final = 2**27


def _zstandard(data: bytes) -> _Readable:
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTANDARD_WINDOW_BYTES)
    return decompressor.stream_reader(io.BytesIO(data), read_across_frames=True)


def stream_members(document: RawDocument, budget: Budget, *, open_: Open) -> Iterator[Member]:
    """The members of a TAR archive, or the single file that is compressed."""
    stream = _Stream(open_(document.content), budget)
    if _is_tar(stream.peek(_TAR_BLOCK_BYTES), document.name):
        yield from _tar_members(stream, document, budget)
        return
    if open_ is _as_it_is:
        raise DocumentError(f"{document.name}: is no TAR archive, or damaged. Pack it again.")
    name = clean_name(document.name.rpartition("/")[2].rpartition(".")[0])[0]
    budget.count()
    blocks, size = [], 0
    while block := stream.read(_BLOCK_BYTES):
        size += len(block)
        if large := budget.too_large(name, size):
            yield large
            return
        blocks.append(block)
    yield Member(name=name, data=b"".join(blocks))


def _is_tar(block: bytes, name: str) -> bool:
    if len(block) == _TAR_BLOCK_BYTES and not block.strip(b"\0"):
        # An empty archive, or a file of zero bytes.
        return re.search(r"\.(tar(\.\w+)?|t\w+)$", name, re.IGNORECASE) is not None
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _tar_members(stream: _Stream, document: RawDocument, budget: Budget) -> Iterator[Member]:
    # The stream is read once, from beginning to end, and not kept.
    archive: Any = stream
    with tarfile.open(
        fileobj=archive, mode="r|", encoding="utf-8", errors="surrogateescape"
    ) as source:
        while (entry := source.next()) is not None:
            source.members = []  # type: ignore[attr-defined]  # else tarfile keeps all of them
            if entry.isdir():
                budget.count()
                continue
            name = _named(document, budget, _tar_name(entry.name))
            if isinstance(name, Member):
                yield name
            elif name is not None:
                yield _tar_member(source, entry, name, budget)


def _tar_member(
    source: tarfile.TarFile, entry: tarfile.TarInfo, name: str, budget: Budget
) -> Member:
    if entry.issym() or entry.islnk():
        return Member(name=name, error=_LINK)
    if not entry.isreg():
        return Member(name=name, error=_SPECIAL)
    if large := budget.too_large(name, entry.size):
        return large
    if entry.issparse():
        budget.spend(entry.size)  # the stream does not contain holes
    file = source.extractfile(entry)
    assert file is not None
    data = file.read()
    if len(data) < entry.size:
        raise DocumentError(f"{name}: is cut off. Pack it again.")
    return Member(name=name, data=data)


def _tar_name(name: str) -> str:
    written = name.encode("utf-8", "surrogateescape")
    for encoding in ("utf-8", "cp949"):
        try:
            return written.decode(encoding)
        except UnicodeDecodeError:
            continue
    return written.decode("utf-8", "replace")


# 7-Zip


def sevenzip_members(document: RawDocument, budget: Budget) -> Iterator[Member]:
    import py7zr
    from py7zr.exceptions import PasswordRequired

    try:
        # From memory: from a file, py7zr would unpack several members at once.
        with (
            py7zr.SevenZipFile(io.BytesIO(document.content)) as archive,
            tempfile.TemporaryFile() as file,
        ):
            if archive.needs_password():
                raise PasswordRequired
            entries = archive.list()
            budget.declare(sum(entry.uncompressed for entry in entries))
            renamed = _renamed([entry.filename for entry in entries])
            names: dict[str, str] = {}
            for entry in entries:
                if entry.is_directory:
                    budget.count()
                    continue
                name = _named(document, budget, entry.filename)
                if isinstance(name, Member):
                    yield name
                elif name is not None and entry.filename in renamed:
                    yield Member(name=name, error=_BESIDE_TWINS)
                elif name is not None and not entry.is_file:
                    yield Member(name=name, error=_LINK if entry.is_symlink else _SPECIAL)
                elif name is not None:
                    large = budget.too_large(name, entry.uncompressed)
                    if large is not None:
                        yield large
                    else:
                        names[entry.filename] = name
            if not names:
                return
            unpacked: dict[str, _UnpackedMember] = {}

            class _Factory(py7zr.WriterFactory):
                def create(self, filename: str) -> py7zr.Py7zIO:
                    return unpacked.setdefault(filename, _UnpackedMember(file, budget))  # type: ignore[return-value]

            archive.extract(targets=list(names), factory=_Factory())
            for written, name in names.items():
                part = unpacked.get(PurePosixPath(written).as_posix())
                yield Member(name=name, data=b"" if part is None else part.data())
    except PasswordRequired:
        raise DocumentError(
            f"{document.name}: is encrypted. Unpack it with its password, and ingest what is in it."
        ) from None


def _renamed(names: Sequence[str]) -> set[str]:
    """The names that py7zr gives to members whose name occurred before; other members may have
    them, too."""
    return {f"{name}_{n}" for name, count in Counter(names).items() for n in range(count - 1)}


class _UnpackedMember:
    """A member that py7zr writes. All of them share one temporary file without a name, which
    vanishes with the process."""

    def __init__(self, file: IO[bytes], budget: Budget) -> None:
        self._file = file
        self._budget = budget
        self._start = file.seek(0, io.SEEK_END)
        self._size = 0

    def write(self, block: bytes | bytearray) -> int:
        self._budget.spend(len(block))
        self._file.seek(self._start + self._size)
        self._size += len(block)
        return self._file.write(block)

    def data(self) -> bytes:
        self._file.seek(self._start)
        return self._file.read(self._size)

    def size(self) -> int:
        return self._size

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


_EXAMPLE: Final = b"We open at nine."


def _zip_example() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("hours.txt"), _EXAMPLE)
    return buffer.getvalue()


def _tar_example() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("hours.txt")
        entry.size = len(_EXAMPLE)
        archive.addfile(entry, io.BytesIO(_EXAMPLE))
    return buffer.getvalue()


def _loader(members: Callable[[RawDocument, Budget], Iterator[Member]], example: bytes) -> Loader:
    return Loader(members=members, example=example, example_text=_EXAMPLE.decode())


ZIP = _loader(zip_members, _zip_example())
TAR = _loader(partial(stream_members, open_=_as_it_is), _tar_example())
GZIP = _loader(partial(stream_members, open_=_gzip), gzip.compress(_EXAMPLE, mtime=0))
BZIP2 = _loader(partial(stream_members, open_=_bzip2), bz2.compress(_EXAMPLE))
XZ = _loader(partial(stream_members, open_=_xz), lzma.compress(_tar_example()))
ZSTANDARD = _loader(
    partial(stream_members, open_=_zstandard),
    # A frame with one raw block (RFC 8878).
    bytes.fromhex("28b52ffd2010810000") + _EXAMPLE,
)
SEVENZIP = _loader(
    sevenzip_members,
    b64decode(
        "N3q8ryccAASywqZ8YQAAAAAAAAAUAAAAAAAAAI+szf9XZSBvcGVuIGF0IG5pbmUuAQBMAQQGAAEJEAAHCwEAAQEADBAA"
        "CAoB+K6g4QAABQEZAQARFQBoAG8AdQByAHMALgB0AHgAdAAAABQKAQBA3lg8mX7dARUGAQAggICBAAAAFwYQAQlRAAcL"
        "AQABISEBGAxNAAA="
    ),
)
