"""Which format a document has: by its bytes, then by its name, then by its media type.

Documents that are not text are recognized by their signature (puremagic), ZIP archives and OLE
compound files by their members: a `.docx` that is a PDF is read as PDF. The bytes of a text hardly
show what it is. So for texts the suffix of the name counts first, unless it belongs to a format
that is not text; then the media type, then the beginning of the text. All else is plain text. Only
the beginning and the table of contents of a document are read.
"""

import io
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from email.message import Message
from functools import cache
from pathlib import PurePosixPath
from typing import Final

import olefile
import puremagic

from shared.errors import DocumentError
from shared.formats import FORMATS, PLAIN_TEXT, Format

# Suffixes of files that Sluice does not read. Files with any other unknown suffix are read as text
# if their bytes are text.
_UNSUPPORTED_SUFFIXES: Final = (
    ".7z .aac .apk .avi .bin .bmp .bz2 .dll .doc .dot .eml .exe .flac .gif .gz .ico .jar .jpeg "
    ".jpg .key .m4a .mkv .mov .mp3 .mp4 .msg .msi .numbers .ogg .otf .pages .parquet .png .pps "
    ".ppt .rar .so .sqlite .tar .tgz .tif .tiff .ttf .wav .webm .webp .whl .xlsb .xz .zip .zst"
)
_UNSUPPORTED: Final = frozenset(_UNSUPPORTED_SUFFIXES.split())
_UNSUPPORTED_TYPES: Final = ("image/", "audio/", "video/", "font/")
_SUCCESSORS: Final = {
    **dict.fromkeys((".doc", ".dot", ".pages"), ".docx"),
    **dict.fromkeys((".pps", ".ppt", ".key"), ".pptx"),
    **dict.fromkeys((".xlsb", ".numbers"), ".xlsx"),
    ".rar": ".zip",
}
"""The format that users can save such documents as."""

_ZIP: Final = b"PK\x03\x04"
_EMPTY_ZIP: Final = b"PK\x05\x06"
_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_OLE_ENTRY_BYTES: Final = 128
_SAMPLE_BYTES: Final = 4096
_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
# All control characters but line ends, tabs, page breaks, and the escape character of terminals and
# of ISO-2022.
_CONTROLS: Final = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
# Errors that `zipfile` raises for archives that are damaged or encrypted.
_ZIP_DAMAGE: Final = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, KeyError, NotImplementedError,
    OSError, RuntimeError, ValueError,
)  # fmt: skip
_MEMBERS_LIMIT: Final = 4096
"""As many members of a ZIP archive are looked at; those that show its format come early."""
_END_BYTES: Final = 22 + 0xFFFF
_MIMETYPE_BYTES: Final = 256
_SURE: Final = 0.3
"""The confidence for a signature of three bytes; shorter ones also match texts with two bytes a
character."""


def format_of(name: str, content_type: str | None, data: bytes | str) -> Format:
    """The format of a document. Raises DocumentError for one that Sluice cannot read.

    A string was sent as text; its name is only a label.
    """
    suffix = PurePosixPath(name.replace("\\", "/")).suffix.lower()
    media_type, _ = split_content_type(content_type)
    by_name, by_type = _by_suffix(suffix), _by_media_type(media_type)
    if isinstance(data, str):
        return next((f for f in (by_name, by_type) if f is not None and f.is_text), PLAIN_TEXT)
    if is_binary(data):
        return _binary(name, suffix, media_type, data, by_name or by_type)
    if by_name is not None and by_name.is_text:
        return by_name
    begins = _by_beginning(data)
    if by_name is not None:
        if by_name.is_text_too:
            return by_name
        if begins is None:
            raise DocumentError(
                f"{name}: is plain text, and no {by_name.name}. If that is right, give it a name "
                "that ends with .txt; otherwise save it again."
            )
        return begins
    if begins is None and suffix in _UNSUPPORTED:
        raise _unsupported(name, f"{suffix} files are not supported")
    if by_type is not None and by_type.is_text:
        return by_type
    if begins is None and media_type and media_type.startswith(_UNSUPPORTED_TYPES):
        raise _unsupported(name, f"the type {media_type} is not supported")
    return begins or PLAIN_TEXT


def _binary(
    name: str, suffix: str, media_type: str | None, data: bytes, expected: Format | None
) -> Format:
    """The format of bytes that are not text. Plain text if none is recognized: its decoder then
    explains what is wrong."""
    known = _by_content(data)
    if known is not None and not known.is_document and data.startswith((_ZIP, _EMPTY_ZIP)):
        # A damaged document of a format based on ZIP is not an archive; its loader reports the
        # damage.
        return expected if expected is not None and _is_zipped(expected) else known
    if known is not None:
        return known
    if expected is not None:
        # A damaged document, which its loader reports; or a text in an encoding with zero bytes.
        return expected
    if suffix in _UNSUPPORTED:
        raise _unsupported(name, f"{suffix} files are not supported")
    if media_type and media_type.startswith(_UNSUPPORTED_TYPES):
        raise _unsupported(name, f"the type {media_type} is not supported")
    return PLAIN_TEXT


def split_content_type(value: str | None) -> tuple[str | None, str | None]:
    """`text/html; charset=euc-kr` -> the media type and the charset."""
    if not value:
        return None, None
    header = Message()
    header["content-type"] = value.replace("\r", " ").replace("\n", " ")
    return header.get_content_type(), header.get_content_charset()


def is_binary(data: bytes) -> bool:
    """Whether the bytes are not text in an encoding without zero bytes, judged by their beginning;
    or are of a binary format that begins with letters, such as PDF."""
    sample = data[:_SAMPLE_BYTES]
    if sample.startswith(_MARKS):
        return False
    return _CONTROLS.search(sample) is not None or _by_signature(sample) is not None


def _by_suffix(suffix: str) -> Format | None:
    return next((f for f in FORMATS.values() if suffix in f.suffixes), None)


def _by_media_type(media_type: str | None) -> Format | None:
    return next((f for f in FORMATS.values() if media_type in f.media_types), None)


def _by_signature(sample: bytes) -> Format | None:
    for format_ in FORMATS.values():
        if not format_.is_text and sample.startswith(tuple(format_.signatures)):
            return format_
    return None


def _by_beginning(data: bytes) -> Format | None:
    """The format of a text by its beginning."""
    sample = data[:_SAMPLE_BYTES].removeprefix(_MARKS[0]).lstrip().lower()
    for format_ in FORMATS.values():
        signatures = tuple(signature.lower() for signature in format_.signatures)
        if format_.is_text and sample.startswith(signatures):
            return format_
    return None


def _by_content(data: bytes) -> Format | None:
    if (format_ := _by_signature(data[:_SAMPLE_BYTES])) is not None:
        return format_
    if data.startswith((_ZIP, _EMPTY_ZIP)):
        return _by_zip_members(data) or _by_media_type("application/zip")
    if data.startswith(_OLE):
        names = _ole_names(data)
        return next((f for f in FORMATS.values() if names & set(f.ole_streams)), None)
    try:
        guesses = puremagic.magic_string(data[:_SAMPLE_BYTES] + data[-_SAMPLE_BYTES:])
    except (puremagic.PureError, ValueError):
        return None
    for guess in guesses:  # the best match first
        if guess.confidence < _SURE:
            break
        for format_ in (_by_media_type(guess.mime_type or None), _by_suffix(guess.extension)):
            # puremagic takes texts with zero bytes for this, and cannot look into these archives.
            if format_ is not None and not (
                format_.is_text or format_.zip_members or format_.ole_streams
            ):
                return format_
    return None


def _has_ole_stream(data: bytes, name: str) -> bool:
    """Whether a stream of this name exists, by its directory entry ([MS-CFB] 2.6.1): the name,
    zeros, and the length of both."""
    wide = (name + "\0").encode("utf-16-le")
    at = data.find(wide)
    while at >= 0:
        if at % _OLE_ENTRY_BYTES == 0 and data[at + 64 : at + 66] == struct.pack("<H", len(wide)):
            return True
        at = data.find(wide, at + 1)
    return False


def _ole_names(data: bytes) -> set[str]:
    """The names at the top level of a compound file; those of embedded files, such as a workbook in
    a message, do not count."""
    try:
        with olefile.OleFileIO(data) as file:
            return {path[0] for path in file.listdir(streams=True, storages=True)}
    except Exception:  # of olefile and of what it builds on, for a damaged file
        return {
            stream
            for format_ in FORMATS.values()
            for stream in format_.ole_streams
            if _has_ole_stream(data, stream)
        }


def _by_zip_members(data: bytes) -> Format | None:
    names = list(_zip_members(data))
    if "mimetype" in names and len(names) < _MEMBERS_LIMIT:
        media_type = _mimetype(data)
        format_ = _by_media_type(media_type)
        if format_ is not None:
            return format_
    for format_ in FORMATS.values():
        prefixes = tuple(format_.zip_members)
        if prefixes and any(name.startswith(prefixes) for name in names):
            return format_
    return None


def _is_zipped(format_: Format) -> bool:
    """Whether documents of the format are ZIP archives that are recognized by nothing else."""
    is_other = format_.is_text or format_.signatures or format_.ole_streams
    return not is_other and format_.is_document and not format_.holds_documents


def _mimetype(data: bytes) -> str:
    """The content of the member `mimetype`, which OpenDocument, EPUB and HWPX have."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, archive.open("mimetype") as member:
            return member.read(_MIMETYPE_BYTES).decode("ascii", "replace").strip()
    except _ZIP_DAMAGE:
        return ""  # damaged or encrypted, which the loader reports


def _zip_members(data: bytes) -> Iterator[str]:
    """The first names in the central directory (APPNOTE.TXT 4.3.12 and 4.3.16); none if it is
    damaged. Without `zipfile`, which reads all of it, perhaps millions of entries."""
    end = data.rfind(_EMPTY_ZIP, max(0, len(data) - _END_BYTES))
    if end < 0 or end + 22 > len(data):
        return
    size, offset = struct.unpack_from("<II", data, end + 12)
    at = end - size  # also where other data precede the archive
    if not 0 <= at < end:
        at = offset
    for _ in range(_MEMBERS_LIMIT):
        if data[at : at + 4] != b"PK\x01\x02" or at + 46 > len(data):
            return
        name_bytes, extra_bytes, comment_bytes = struct.unpack_from("<HHH", data, at + 28)
        yield data[at + 46 : at + 46 + name_bytes].decode("utf-8", "replace")
        at += 46 + name_bytes + extra_bytes + comment_bytes


def _unsupported(name: str, what: str) -> DocumentError:
    successor = _SUCCESSORS.get(PurePosixPath(name).suffix.lower())
    if successor is not None:
        return DocumentError(f"{name}: {what}. Save it as {successor} and ingest that.")
    return DocumentError(f"{name}: {what}. Convert it to one of {_supported_suffixes()}.")


@cache
def _suffixes(formats: tuple[Format, ...]) -> str:
    return ", ".join(suffix for format_ in formats for suffix in format_.suffixes)


def _supported_suffixes() -> str:
    return _suffixes(tuple(FORMATS.values()))
