"""Bundles: the format of a collection in a file, which docs/bundles.md describes for others.

A bundle is a ZIP archive. It is written part by part, by different steps: the entries of a part do
not depend on where they will lie, and the list of all entries comes last, with the manifest. It is
read part by part, too. Nothing in an archive is believed: names, sizes, checksums, shapes and
values are checked, and nothing is unpacked to a disk.
"""

import hashlib
import io
import json
import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal, TypeVar
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from pydantic import AfterValidator, AwareDatetime, Field, TypeAdapter, ValidationError

from shared.bounds import (
    INT64_MAX,
    METADATA_LIMIT_BYTES,
    CollectionName,
    Count,
    Line,
    ModelName,
    Natural,
    SourceName,
    cut,
    is_storable_text,
    nfc,
    nfc_metadata,
    shown,
)
from shared.config import BundleSettings
from shared.documents.imports import DOCUMENTS_LIMIT, ImportedChunk, ImportedDocument
from shared.errors import InvalidInput
from shared.files import PARTS_LIMIT as OBJECTS_LIMIT
from shared.files import Storage
from shared.vocabulary import Shape
from workers.models.devices import Vectors, lengths_of

T = TypeVar("T")

FORMAT: Final = "sluice-bundle"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
CONTENT_TYPE: Final = "application/zip"
PART_CHUNKS: Final = 2048
PART_BYTES: Final = 8 * 2**20
"""Of texts, metadata and vectors in one part, but for a single chunk that is larger."""
PARTS_LIMIT: Final = OBJECTS_LIMIT - 1
"""Each is an object of the file of an export, which has one more for the end; and a step of an
import."""
PART_LIMIT_CHUNKS: Final = 8 * PART_CHUNKS
"""Of a part that is read: one transaction writes them."""
_MANIFEST_LIMIT_BYTES: Final = 16 * 2**20
"""PARTS_LIMIT parts take 5 MiB."""
_DIRECTORY_LIMIT_BYTES: Final = 8 * 2**20
"""Of the list of entries, which zipfile reads as a whole; that of PARTS_LIMIT parts has 3 MiB."""
_COMPRESSION: Final = 1
"""The fastest: a higher level saves a tenth of the text."""
_DATE: Final = (1980, 1, 1, 0, 0, 0)
"""Of all entries, so that the same collection gives the same parts."""
_ENTRIES: Final = {"documents": "jsonl", "chunks": "jsonl", "vectors": "npy"}
_DIMENSION_LIMIT: Final = 2**16
_BUFFER_BYTES: Final = 4 * 2**20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


# What is in the entries


def _storable(text: str) -> str:
    if not is_storable_text(text):
        raise ValueError("holds a NUL character or half of a surrogate pair")
    return text


def _flat(limit_bytes: int) -> AfterValidator:
    """Metadata as ingestion writes them: no objects, no lists in lists. Longer than those of
    requests, for documents add their own."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        for key, item in value.items():
            items = item if isinstance(item, list) else [item]
            if not is_storable_text(key) or not all(map(_is_single, items)):
                raise ValueError(
                    f"{shown(key)} must be a text, a number, true or false, or a list of these, "
                    "without NUL characters, halves of surrogate pairs, or more than 64 bits"
                )
        if value and len(json.dumps(value, ensure_ascii=False).encode()) > limit_bytes:
            raise ValueError(f"is larger than {limit_bytes:,} bytes as JSON")
        return nfc_metadata(value)

    return AfterValidator(check)


def _is_single(value: Any) -> bool:
    if isinstance(value, str):
        return is_storable_text(value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and -INT64_MAX - 1 <= value <= INT64_MAX


# As ingestion, in Unicode's normal form C: other programs may have written the bundle.
Storable = Annotated[str, AfterValidator(_storable), AfterValidator(nfc)]
Name = Annotated[SourceName, AfterValidator(nfc)]
FlatMetadata = Annotated[dict[str, Any], _flat(PART_BYTES)]


class DocumentLine(Shape):
    """A line of `documents/…jsonl`."""

    number: Annotated[int, Field(ge=0, lt=DOCUMENTS_LIMIT)]
    source: Name
    chunk_count: Natural
    sha256: Sha256
    content_hash: Annotated[Line, Field(min_length=1)]
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)]
    metadata: FlatMetadata = Field(default_factory=dict)
    attributes: FlatMetadata | None = None
    source_id: Name | None = None
    container: Name | None = None
    created_at: AwareDatetime
    updated_at: AwareDatetime

    def document(self) -> ImportedDocument:
        return ImportedDocument(
            **{name: getattr(self, name) for name in type(self).model_fields if name != "number"}
        )


class ChunkLine(Shape):
    """A line of `chunks/…jsonl`; line n belongs to row n of `vectors/…npy`."""

    document: Annotated[int, Field(ge=0, lt=DOCUMENTS_LIMIT)]
    ordinal: Count
    start: Count
    text: Storable
    metadata: FlatMetadata = Field(default_factory=dict)

    def chunk(self) -> ImportedChunk:
        return ImportedChunk(
            document=self.document,
            ordinal=self.ordinal,
            start=self.start,
            text=self.text,
            metadata=self.metadata,
        )


class Entry(Shape):
    """A checksum and a size of what an entry of the archive has, unpacked."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, lt=2**63)]


class PartRecord(Shape):
    """Part n has the entries `documents/n.jsonl`, `chunks/n.jsonl` and `vectors/n.npy`."""

    documents: Entry
    chunks: Entry
    vectors: Entry


class CollectionRecord(Shape):
    name: CollectionName
    display_name: Annotated[Line, AfterValidator(nfc)] | None = None
    metadata: Annotated[dict[str, Any], _flat(METADATA_LIMIT_BYTES)] = Field(default_factory=dict)
    expires_after_days: Annotated[int, Field(ge=1, le=365)] | None = None
    """The same bounds as in OpenAI's API, where it is set."""


class Manifest(Shape):
    """`manifest.json`."""

    format: Literal["sluice-bundle"] = FORMAT
    version: Literal[1] = VERSION
    created_at: AwareDatetime
    collection: CollectionRecord
    embedding_model: ModelName
    dimension: Annotated[int, Field(ge=1, le=_DIMENSION_LIMIT)] | None
    distance: Literal["cosine", "ip", "l2"]
    tuning: FlatMetadata | None = None
    documents: Annotated[int, Field(ge=0, lt=DOCUMENTS_LIMIT)]
    chunks: Annotated[int, Field(ge=0, lt=2**63)]
    parts: Annotated[list[PartRecord], Field(fail_fast=True, max_length=PARTS_LIMIT)]


_DOCUMENT_LINE: Final = TypeAdapter(DocumentLine)
_CHUNK_LINE: Final = TypeAdapter(ChunkLine)


def entry_name(kind: str, number: int) -> str:
    return f"{kind}/{number:06d}.{_ENTRIES[kind]}"


# Writing


@dataclass(frozen=True, kw_only=True)
class WrittenEntry:
    """An entry as the archive's list of entries, and the manifest, have it."""

    name: str
    is_packed: bool
    crc: int
    packed_bytes: int
    size_bytes: int
    sha256: str
    offset: int
    """Where it begins, in the archive."""

    def info(self) -> ZipInfo:
        info = _info(self.name, is_packed=self.is_packed)
        info.CRC, info.compress_size = self.crc, self.packed_bytes
        info.file_size, info.header_offset = self.size_bytes, self.offset
        return info

    def dump(self) -> dict[str, Any]:
        return asdict(self)


def _info(name: str, *, is_packed: bool) -> ZipInfo:
    info = ZipInfo(name, _DATE)
    info.compress_type = ZIP_DEFLATED if is_packed else ZIP_STORED
    info.external_attr = 0o644 << 16
    return info


def pack_part(
    number: int,
    offset: int,
    *,
    documents: Sequence[bytes],
    chunks: Sequence[bytes],
    vectors: Vectors,
) -> tuple[bytes, list[WrittenEntry]]:
    """The bytes of part `number`, which lie at `offset` in the archive, and its entries. Documents
    and chunks are lines (`line_of`)."""
    matrix = io.BytesIO()
    np.save(matrix, np.ascontiguousarray(vectors, dtype="<f4"), allow_pickle=False)
    contents = {
        "documents": b"".join(documents),
        "chunks": b"".join(chunks),
        "vectors": matrix.getvalue(),
    }
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for kind, data in contents.items():
            info = _info(entry_name(kind, number), is_packed=kind != "vectors")
            archive.writestr(info, data, compresslevel=_COMPRESSION)
        end = buffer.tell()
        infos = archive.infolist()
    written = [
        WrittenEntry(
            name=info.filename,
            is_packed=info.compress_type == ZIP_DEFLATED,
            crc=info.CRC,
            packed_bytes=info.compress_size,
            size_bytes=info.file_size,
            sha256=hashlib.sha256(data).hexdigest(),
            offset=offset + info.header_offset,
        )
        for info, data in zip(infos, contents.values(), strict=True)
    ]
    return buffer.getvalue()[:end], written


def line_of(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class _Tail(io.BytesIO):
    """The end of a file, as a file in which positions count from the beginning of all of it."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self._offset = offset

    def tell(self) -> int:
        return super().tell() + self._offset

    def seek(self, position: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET:
            position -= self._offset
        return super().seek(position, whence) + self._offset


def pack_end(manifest: Manifest, entries: Sequence[WrittenEntry], offset: int) -> bytes:
    """The bytes behind the last part: the manifest, and the list of all entries."""
    tail = _Tail(offset)
    data = json.dumps(manifest.model_dump(mode="json"), ensure_ascii=False, indent=1).encode()
    with ZipFile(tail, "w") as archive:
        archive.filelist.extend(entry.info() for entry in entries)
        archive.writestr(_info(MANIFEST, is_packed=True), data)
    return tail.getvalue()


def records_of(entries: Sequence[WrittenEntry]) -> list[PartRecord]:
    """What the manifest has of the entries of whole parts, in their order."""
    checked = [Entry(sha256=entry.sha256, size_bytes=entry.size_bytes) for entry in entries]
    size = len(_ENTRIES)
    return [
        PartRecord(**dict(zip(_ENTRIES, checked[first : first + size], strict=True)))
        for first in range(0, len(checked), size)
    ]


# Reading


class StoredBundle(io.RawIOBase):
    """Objects of the storage, one behind the other, as one file to read."""

    def __init__(self, storage: Storage, objects: Iterable[tuple[str, int]]) -> None:
        """`objects`: paths with sizes in bytes."""
        self._storage = storage
        self._objects: list[tuple[int, str]] = []
        self._size = 0
        for path, size_bytes in objects:
            self._objects.append((self._size, path))
            self._size += size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, position: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + position < 0:
            raise ValueError("a position before the beginning of the file")
        self._position = base + position
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        count = 0
        for n, (first, path) in enumerate(self._objects):
            end = self._objects[n + 1][0] if n + 1 < len(self._objects) else self._size
            if not first <= self._position < end or count == len(view):
                continue
            length = min(len(view) - count, end - self._position)
            start = self._position - first
            data = self._storage.part(path, start, start + length)
            view[count : count + len(data)] = data
            count += len(data)
            self._position += len(data)
            if len(data) < length:
                break
        return count


class _BoundedReader(io.BufferedReader):
    """A file of which nobody reads more at once than `limit_bytes`: how much zipfile reads, the
    archive says."""

    def __init__(self, stream: io.RawIOBase, limit_bytes: int) -> None:
        super().__init__(stream, _BUFFER_BYTES)
        self.limit_bytes = limit_bytes

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > self.limit_bytes:
            raise BadZipFile(f"{size:,} bytes at once; at most {self.limit_bytes:,} are read")
        return super().read(size)


@dataclass(frozen=True, kw_only=True)
class BundlePart:
    """A part that has been checked by itself. `vectors` has the shape (chunks, dimension), values
    as they are in the bundle."""

    documents: list[DocumentLine]
    chunks: list[ImportedChunk]
    vectors: Vectors


_BROKEN: Final = (
    "The bundle is damaged, or not complete: {}. Send it again; if that does not help, export the "
    "collection again."
)


_DAMAGE: Final = (
    BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, OverflowError, struct.error,
)  # fmt: skip
"""What zipfile raises."""


class Bundle:
    """A bundle to read. Every call raises InvalidInput for what is wrong with it, with
    the name of the entry."""

    def __init__(self, stream: io.RawIOBase, settings: BundleSettings) -> None:
        self._limit_bytes = settings.bundle_part_limit_mib * 2**20
        self._limit_chunks = settings.bundle_limit_chunks
        reader = _BoundedReader(stream, _DIRECTORY_LIMIT_BYTES)
        try:
            self._archive = ZipFile(reader)
        except _DAMAGE as error:
            raise InvalidInput(_BROKEN.format(f"it is no whole ZIP archive ({error})")) from error
        # What is packed may be a little larger than before.
        reader.limit_bytes = 2 * max(self._limit_bytes, _MANIFEST_LIMIT_BYTES)
        self._infos = self._read_infos()
        self.manifest = self._read_manifest()
        self._require_entries()

    def _read_infos(self) -> dict[str, ZipInfo]:
        infos: dict[str, ZipInfo] = {}
        for info in self._archive.infolist():
            name = info.filename
            is_known = name == MANIFEST or any(
                re.fullmatch(rf"{kind}/[0-9]{{6,9}}\.{suffix}", name, re.ASCII)
                for kind, suffix in _ENTRIES.items()
            )
            if not is_known or name != info.orig_filename:
                raise InvalidInput(
                    f"The bundle has an entry {shown(name)}, which is none of a bundle. Make the "
                    "bundle with `sluice collections export`."
                )
            if name in infos:
                raise InvalidInput(f"The bundle has the entry {name} twice.")
            if info.flag_bits & 1 or info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise InvalidInput(
                    f"{name}: is encrypted, or packed in a way that bundles are not. Pack it with "
                    "deflate, or not at all."
                )
            limit = _MANIFEST_LIMIT_BYTES if name == MANIFEST else self._limit_bytes
            if info.file_size > limit:
                raise InvalidInput(
                    f"{name}: has {info.file_size:,} bytes; an entry has at most {limit:,} "
                    "(SLUICE_BUNDLE_PART_LIMIT_MIB)."
                )
            infos[name] = info
        return infos

    def _read_manifest(self) -> Manifest:
        if MANIFEST not in self._infos:
            raise InvalidInput(
                f"The file has no {MANIFEST}, so it is no bundle. Make one by `sluice collections "
                "export`."
            )
        value = _json(self._data(MANIFEST), MANIFEST)
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise InvalidInput(f"{MANIFEST}: its format is not {FORMAT!r}.")
        if value.get("version") != VERSION:
            raise InvalidInput(
                f"{MANIFEST}: the bundle has version {shown(value.get('version'))} of the format, "
                f"and this Sluice reads version {VERSION}. Import it with the release that wrote "
                "it, or a newer one."
            )
        manifest = _parsed(TypeAdapter(Manifest), value, MANIFEST)
        if manifest.chunks > self._limit_chunks:
            raise InvalidInput(
                f"The bundle has {manifest.chunks:,} chunks; at most {self._limit_chunks:,} are "
                "imported (SLUICE_BUNDLE_LIMIT_CHUNKS)."
            )
        if manifest.parts and manifest.dimension is None:
            raise InvalidInput(f"{MANIFEST}: dimension is null, and there are vectors.")
        return manifest

    def _require_entries(self) -> None:
        expected = {
            entry_name(kind, number)
            for number in range(len(self.manifest.parts))
            for kind in _ENTRIES
        } | {MANIFEST}
        if lacking := sorted(expected - self._infos.keys()):
            raise InvalidInput(_BROKEN.format(f"{lacking[0]} is missing"))
        if surplus := sorted(self._infos.keys() - expected):
            raise InvalidInput(f"{surplus[0]}: is not in {MANIFEST}.")

    def part(self, number: int) -> BundlePart:
        """Part `number`, checked by itself."""
        record = self.manifest.parts[number]
        names = {kind: entry_name(kind, number) for kind in _ENTRIES}
        documents = self.documents(number)
        data = self._checked_data(names["chunks"], record.chunks)
        chunks = [
            _parsed(_CHUNK_LINE, line, where).chunk()
            for where, line in _json_lines(data, names["chunks"])
        ]
        del data
        data = self._checked_data(names["vectors"], record.vectors)
        vectors = self._vectors(data, names["vectors"], len(chunks))
        return BundlePart(documents=documents, chunks=chunks, vectors=vectors)

    def documents(self, number: int) -> list[DocumentLine]:
        """The documents of a part."""
        name = entry_name("documents", number)
        data = self._checked_data(name, self.manifest.parts[number].documents)
        return [_parsed(_DOCUMENT_LINE, line, where) for where, line in _json_lines(data, name)]

    def _vectors(self, data: bytes, name: str, count: int) -> Vectors:
        try:
            vectors = np.load(io.BytesIO(data), allow_pickle=False)
        except Exception as error:  # its head is Python, whose parser fails in many ways
            reason = cut(f"{type(error).__name__}: {error}", 200)
            raise InvalidInput(f"{name}: is no array of numpy (.npy): {reason}.") from error
        shape = (count, self.manifest.dimension)
        if not isinstance(vectors, np.ndarray) or vectors.dtype != np.dtype("<f4"):
            raise InvalidInput(f"{name}: is no array of 32-bit floats ('<f4').")
        if vectors.shape != shape:
            raise InvalidInput(
                f"{name}: has the shape {shown(str(vectors.shape))}, and {shape} is that of its "
                "chunks and of the dimension in the manifest."
            )
        lengths = lengths_of(vectors)
        bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
        if len(bad):
            raise InvalidInput(
                f"{name}: row {bad[0]} has values that are no finite numbers, or only zeros."
            )
        return vectors

    def _checked_data(self, name: str, entry: Entry) -> bytes:
        data = self._data(name)
        if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise InvalidInput(_BROKEN.format(f"{name} has another checksum than in {MANIFEST}"))
        return data

    def _data(self, name: str) -> bytes:
        info = self._infos[name]
        try:
            with self._archive.open(info) as stream:
                # With a size: else zipfile unpacks up to a GiB before it cuts what is too much off.
                return stream.read(info.file_size + 1)
        except _DAMAGE as error:
            raise InvalidInput(_BROKEN.format(f"{name}: {error}")) from error


@dataclass(frozen=True, kw_only=True)
class Position:
    """What comes next: chunk `ordinal` of the document `document`, which has `chunk_count`; numbers
    of documents that come are at least `number`. It is JSON in the payload of a step."""

    number: int = 0
    document: int = 0
    ordinal: int = 0
    chunk_count: int = 0
    documents: int = 0
    """How many there were."""
    chunks: int = 0

    def behind(self, part: BundlePart, name: str) -> "Position":
        """The position behind a part. Raises InvalidInput unless its chunks are those of its
        documents, in order: each document begins in the part that has it, and goes on in the next
        ones."""
        number, document = self.number, self.document
        ordinal, chunk_count = self.ordinal, self.chunk_count
        waiting = iter(part.documents)
        for n, chunk in enumerate(part.chunks, start=1):
            if ordinal == chunk_count:
                line = next(waiting, None)
                if line is None or line.number < number:
                    raise InvalidInput(
                        f"{name}: documents and chunks do not fit each other at line {n} of the "
                        "chunks: numbers of documents rise, and each begins in its own part."
                    )
                number, document = line.number + 1, line.number
                ordinal, chunk_count = 0, line.chunk_count
            if (chunk.document, chunk.ordinal) != (document, ordinal):
                raise InvalidInput(
                    f"{name}: line {n} of the chunks is chunk {chunk.ordinal} of document "
                    f"{chunk.document}, and chunk {ordinal} of document {document} comes next."
                )
            ordinal += 1
        if next(waiting, None) is not None:
            raise InvalidInput(f"{name}: has a document of which no chunk is there.")
        return Position(
            number=number,
            document=document,
            ordinal=ordinal,
            chunk_count=chunk_count,
            documents=self.documents + len(part.documents),
            chunks=self.chunks + len(part.chunks),
        )

    def require_end(self, manifest: Manifest) -> None:
        """Raises InvalidInput unless this is the end of a bundle."""
        counts = (manifest.documents, manifest.chunks)
        if self.ordinal != self.chunk_count or (self.documents, self.chunks) != counts:
            raise InvalidInput(
                f"The bundle has {self.documents:,} documents and {self.chunks:,} chunks, and its "
                f"manifest says {manifest.documents:,} and {manifest.chunks:,}, all complete."
            )

    def dump(self) -> dict[str, int]:
        return asdict(self)


def _json(data: bytes, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{where}: is no JSON in UTF-8.") from None


def _json_lines(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    if data.count(b"\n") > PART_LIMIT_CHUNKS:
        raise InvalidInput(
            f"{name}: has more than {PART_LIMIT_CHUNKS:,} lines. Write more, smaller parts."
        )
    for number, line in enumerate(io.BytesIO(data), start=1):
        if line.strip():
            where = f"{name}, line {number:,}"
            yield where, _json(line, where)


def _parsed(adapter: TypeAdapter[T], value: Any, where: str) -> T:
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(cut(str(part), 80) for part in first["loc"])
        reason = first["msg"].removeprefix("Value error, ")
        raise InvalidInput(f"{where}: {f'{place}: ' if place else ''}{reason}.") from None
