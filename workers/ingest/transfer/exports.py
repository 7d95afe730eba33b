"""The steps of an `export` job: a collection becomes a bundle, a file that grows part by part.

The first step notes which documents are live at one moment, with their versions. The others write
the chunks of these versions and their vectors, each for SLUICE_BUNDLE_STEP_S, whatever is ingested
meanwhile; the last one writes the manifest. A document that is erased before it was reached is left
out. The bundle is a file with an end of its own (SLUICE_BUNDLE_KEEP_S).
"""

import io
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import numpy as np

from shared import files
from shared.bounds import as_object
from shared.database.transaction import Transaction
from shared.documents import collections, exports
from shared.documents.documents import chunk_id
from shared.documents.exports import LiveDocument
from shared.documents.versions import ChunkRange
from shared.errors import Permanent
from shared.files import Part, Purpose
from shared.jobs import claims, jobs
from shared.jobs.steps import NewStep
from shared.kinds.bundle import EXPORT_STEP, ExportInput, ExportResult
from shared.tables import Chunk, File, VectorIndex
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.ingest.transfer.bundle import (
    CONTENT_TYPE,
    PART_BYTES,
    PART_CHUNKS,
    PARTS_LIMIT,
    CollectionRecord,
    Manifest,
    WrittenEntry,
    line_of,
    pack_end,
    pack_part,
    records_of,
)
from workers.models.devices import Vectors
from workers.retrieval.servers import store_of
from workers.retrieval.store import MissingCollection

UNIT: Final = "chunks"
SLICE_CHUNKS: Final = 512
"""How many are read from the ledger, and asked of the store, at once."""
BLOCK_DOCUMENTS: Final = 1000
BLOCK_BYTES: Final = 4 * 2**20
"""The documents of an export are noted in blocks, each of which is held in memory as a whole."""
INCOMPLETE_KEPT: Final = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far an export is: the payload of a step."""

    file_id: str
    index_id: str
    prefix: str
    """Of the paths of the blocks with the documents."""
    blocks: int
    """How many there are."""
    block: int = 0
    row: int = 0
    """Of the next document, in its block."""
    number: int = 0
    """Of the next document, in all."""
    ordinal: int = 0
    """Of its next chunk."""
    offset: int = 0
    """How many bytes the archive has."""
    parts: int = 0
    documents: int = 0
    chunks: int = 0
    entries: str | None = None
    """The path of the entries of the last step that wrote some, with the path of those before."""


def export(context: Context) -> Done:
    payload = context.claim.payload
    place = _begin(context) if not payload else Place(**payload)
    if not payload:
        return _next(place)
    with context.process.ledger.read() as session:
        collections.get(session, context.input(ExportInput).collection)
        index = exports.index_of(session, UUID(place.index_id))
        file = files.find(session, UUID(place.file_id))
    if file is None:
        raise Permanent("The file of the export was deleted meanwhile. Export it again.")
    if index is None:
        raise Permanent(
            "The vectors that the export reads were replaced and dropped. Export it again."
        )
    if place.block == place.blocks:
        return _end(context, place, index, file)
    return _Export(context, place, index).run()


def _next(place: Place) -> Done:
    step = NewStep(name=EXPORT_STEP, queue=Queue.INGEST, payload=dict(vars(place)))
    return Done(children=[step])


def _path(context: Context, name: str) -> str:
    """Of an object that only this attempt writes; it goes with the job's folder."""
    claim = context.claim
    return f"{jobs.members_folder(claim.job_id)}/{claim.step_id}-{claim.attempt}-{name}"


def _begin(context: Context) -> Place:
    """Note the documents of one moment, and begin the file."""
    process, input_ = context.process, context.input(ExportInput)
    total = 0
    lengths: list[int] = []
    with tempfile.TemporaryFile() as spool:
        # The storage gets it afterwards: no transaction waits for another server.
        with process.ledger.read() as session:
            exports.read_moment(session)
            collection, index = collections.get_with_index(session, input_.collection)
            count = size = 0
            for document in exports.live_documents(session, collection.id):
                context.check()
                line = json.dumps(vars(document), default=str).encode() + b"\n"
                if count == BLOCK_DOCUMENTS or (count and size + len(line) > BLOCK_BYTES):
                    lengths.append(size)
                    count = size = 0
                spool.write(line)
                count, size, total = count + 1, size + len(line), total + document.chunk_count
            if count:
                lengths.append(size)
        spool.seek(0)
        prefix = _path(context, "documents")
        for n, length in enumerate(lengths):
            context.check()
            process.storage.write(f"{prefix}-{n}", io.BytesIO(spool.read(length)))
    if total > PARTS_LIMIT * PART_CHUNKS:
        raise _too_large()
    with process.ledger.begin() as transaction:
        file = files.begin(
            transaction,
            name=f"{collection.name}.zip",
            purpose=Purpose.USER_DATA,
            content_type=CONTENT_TYPE,
            expires_at=_end_of_file(context, is_whole=False),
        )
        jobs.set_total(transaction, context.claim.job_id, total, UNIT)
    return Place(file_id=str(file.id), index_id=str(index.id), prefix=prefix, blocks=len(lengths))


def _end_of_file(context: Context, *, is_whole: bool) -> datetime:
    """Each step moves it on. While others come before the next step, a day is kept at least."""
    kept = timedelta(seconds=context.process.settings.bundle_keep_s)
    return datetime.now(UTC) + (kept if is_whole else max(kept, INCOMPLETE_KEPT))


def _too_large() -> Permanent:
    return Permanent(
        f"The collection does not fit into one bundle, which has {PARTS_LIMIT:,} parts of at most "
        f"{PART_CHUNKS:,} chunks and {PART_BYTES / 2**20:g} MiB. Copy PostgreSQL and the store as "
        "a whole, or ingest the documents in the other installation."
    )


class _Export:
    """One step: parts until its time is up."""

    def __init__(self, context: Context, place: Place, index: VectorIndex) -> None:
        self._context = context
        self._process = context.process
        self._place = place
        self._index = index
        self._ends = time.monotonic() + context.process.settings.bundle_step_s
        self._block: list[LiveDocument] = []
        self._block_number = -1
        self._written: list[Part] = []
        self._entries: list[WrittenEntry] = []
        self._begin_part()

    def _begin_part(self) -> None:
        self._documents: dict[int, bytes] = {}
        self._chunks: list[bytes] = []
        self._vectors: list[Vectors] = []
        self._size = 0

    def run(self) -> Done:
        done = 0
        before = self._place.chunks
        while self._place.block < self._place.blocks and not (self._written and self._must_yield()):
            self._fill_part()
            self._write_part()
        done = self._place.chunks - before
        self._write_list()
        file_id, written = UUID(self._place.file_id), self._written

        def record(transaction: Transaction) -> None:
            if written:
                files.append(transaction, file_id, *written)
            expires_at = _end_of_file(self._context, is_whole=False)
            files.expire_at(transaction, file_id, expires_at)
            jobs.advance(transaction, self._context.claim.job_id, done)

        return replace(_next(self._place), record=record)

    def _must_yield(self) -> bool:
        if time.monotonic() > self._ends:
            return True
        with self._process.ledger.read_single() as session:
            return claims.is_behind(session, self._context.claim)

    def _fill_part(self) -> None:
        """Read chunks until a part was full, and so was written, or nothing is left."""
        parts = self._place.parts
        while self._place.parts == parts:
            wanted = self._wanted(min(SLICE_CHUNKS, PART_CHUNKS - len(self._chunks)))
            if not wanted:
                return
            self._add(wanted)

    def _wanted(self, room: int) -> list[tuple[int, LiveDocument, ChunkRange]]:
        """The next chunks, by the numbers of their documents; the place moves behind them."""
        wanted: list[tuple[int, LiveDocument, ChunkRange]] = []
        while room > 0 and self._place.block < self._place.blocks:
            place = self._place
            if self._block_number != place.block:
                self._block = self._read_block(place.block)
                self._block_number = place.block
            document = self._block[place.row]
            end = min(document.chunk_count, place.ordinal + room)
            part = ChunkRange(version_id=document.version_id, first=place.ordinal, end=end)
            wanted.append((place.number, document, part))
            room -= end - place.ordinal
            if end < document.chunk_count:
                self._place = replace(place, ordinal=end)
                continue
            row, block = place.row + 1, place.block
            if row == len(self._block):
                row, block = 0, block + 1
            self._place = replace(place, block=block, row=row, number=place.number + 1, ordinal=0)
        return wanted

    def _read_block(self, number: int) -> list[LiveDocument]:
        data = self._process.storage.read(f"{self._place.prefix}-{number}")
        return [_document_of(json.loads(line)) for line in data.splitlines()]

    def _add(self, wanted: Sequence[tuple[int, LiveDocument, ChunkRange]]) -> None:
        """Add these chunks with their vectors to the part, but for erased documents. A part that is
        full is written."""
        self._context.check()
        with self._process.ledger.read() as session:
            chunks = exports.chunks_of(session, [part for _, _, part in wanted])
        vectors = self._stored_vectors([_id(chunk) for chunk in chunks])
        with self._process.ledger.read() as session:
            there = exports.unerased(session, [document.id for _, document, _ in wanted])
        by_version: dict[UUID, list[Chunk]] = {}
        for chunk in chunks:
            by_version.setdefault(chunk.version_id, []).append(chunk)
        for number, document, part in wanted:
            rows = by_version.get(part.version_id, [])
            if document.id not in there:
                self._leave_out(document, part)
                continue
            lacking = [row for row in rows if _id(row) not in vectors]
            if lacking or len(rows) < part.end - part.first:
                what = "vectors" if lacking else "chunks"
                raise Permanent(
                    f"{document.source}: {what} of it are missing. Repair the collection with "
                    "`sluice collections check NAME --wait`, or ingest the document again, and "
                    "export it then."
                )
            if part.first == 0:
                self._documents[number] = line_of(_line(number, document))
                self._size += len(self._documents[number])
            for row in rows:
                line = line_of(
                    {
                        "document": number,
                        "ordinal": row.ordinal,
                        "start": row.start,
                        "text": row.text,
                        "metadata": as_object(row.meta),
                    }
                )
                self._chunks.append(line)
                self._vectors.append(vectors[_id(row)])
                self._size += len(line) + self._vectors[-1].nbytes
                if len(self._chunks) >= PART_CHUNKS or self._size >= PART_BYTES:
                    self._write_part()

    def _leave_out(self, document: LiveDocument, part: ChunkRange) -> None:
        if part.first > 0:
            raise Permanent(
                f"{document.source} was erased while its chunks were exported. Export it again."
            )

    def _stored_vectors(self, ids: Sequence[str]) -> dict[str, Vectors]:
        try:
            return store_of(self._process).vectors(self._index.stored_name, ids) if ids else {}
        except MissingCollection as error:
            raise Permanent(
                "The store has lost the vectors of the collection. Repair it with `sluice "
                "collections rebuild NAME --wait`, and export it then."
            ) from error

    def _write_part(self) -> None:
        if not self._chunks:
            return
        place = self._place
        if place.parts == PARTS_LIMIT:
            raise _too_large()
        data, entries = pack_part(
            place.parts,
            place.offset,
            documents=list(self._documents.values()),
            chunks=self._chunks,
            vectors=np.stack(self._vectors),
        )
        self._written.append(_write(self._context, place, data))
        self._entries += entries
        self._place = replace(
            place,
            parts=place.parts + 1,
            offset=place.offset + len(data),
            documents=place.documents + len(self._documents),
            chunks=place.chunks + len(self._chunks),
        )
        self._begin_part()

    def _write_list(self) -> None:
        """Note the entries of this step, for the manifest."""
        if self._entries:
            path = _path(self._context, "entries")
            entries = [entry.dump() for entry in self._entries]
            data = json.dumps({"before": self._place.entries, "entries": entries}).encode()
            self._process.storage.write(path, io.BytesIO(data))
            self._place = replace(self._place, entries=path)


def _write(context: Context, place: Place, data: bytes) -> Part:
    """Write bytes of the archive, which count once they are recorded."""
    context.check()
    storage = context.process.storage
    part = files.write_part(storage, UUID(place.file_id), data)
    context.on_lost.append(lambda: storage.delete(part.path))
    return part


def _end(context: Context, place: Place, index: VectorIndex, file: File) -> Done:
    """Write the manifest and the list of all entries."""
    process, job_id = context.process, context.claim.job_id
    with process.ledger.read() as session:
        collection = collections.get(session, context.input(ExportInput).collection)
    entries = _entries(context, place)
    manifest = Manifest(
        created_at=file.created_at,
        collection=CollectionRecord(
            name=collection.name,
            display_name=collection.display_name,
            metadata=collection.meta,
            expires_after_days=collection.expires_after_days,
        ),
        embedding_model=index.embedding_model,
        dimension=index.dimension,
        distance=index.distance,
        tuning=index.tuning,
        documents=place.documents,
        chunks=place.chunks,
        parts=records_of(entries),
    )
    data = pack_end(manifest, entries, place.offset)
    part = _write(context, place, data)

    expires_at = _end_of_file(context, is_whole=True)

    def record(transaction: Transaction) -> None:
        files.append(transaction, file.id, part)
        files.expire_at(transaction, file.id, expires_at)
        jobs.delete_members_later(transaction, job_id)

    result = ExportResult(
        collection=collection.name,
        embedding_model=index.embedding_model,
        dimension=index.dimension,
        documents=place.documents,
        chunks=place.chunks,
        file_id=file.id,
        size_bytes=place.offset + len(data),
        expires_at=expires_at,
    )
    return Done(result=result.model_dump(mode="json"), record=record)


def _entries(context: Context, place: Place) -> list[WrittenEntry]:
    """Of all parts, in their order."""
    steps: list[list[dict[str, Any]]] = []
    path = place.entries
    while path is not None:
        context.check()
        written = json.loads(context.process.storage.read(path))
        steps.append(written["entries"])
        path = written["before"]
    return [WrittenEntry(**entry) for step in reversed(steps) for entry in step]


def _id(chunk: Chunk) -> str:
    return chunk_id(chunk.version_id, chunk.ordinal)


def _line(number: int, document: LiveDocument) -> dict[str, Any]:
    """A document as `DocumentLine` has it."""
    hidden = ("id", "version_id")
    values = {name: value for name, value in vars(document).items() if name not in hidden}
    times = {name: values[name].isoformat() for name in ("created_at", "updated_at")}
    return {"number": number, **values, **times}


def _document_of(values: dict[str, Any]) -> LiveDocument:
    """As the first step has noted it."""
    ids = {name: UUID(values[name]) for name in ("id", "version_id")}
    times = {name: datetime.fromisoformat(values[name]) for name in ("created_at", "updated_at")}
    return LiveDocument(**(values | ids | times))


EXPORT = Handler(run=export)
