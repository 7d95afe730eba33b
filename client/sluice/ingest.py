"""Bulk ingestion: upload the files that the server does not have, submit jobs, wait for them.

A run that was interrupted is resumed by running it again. The server decides, in the job, whether
a stored document is up to date.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sluice.calls import Calls
from sluice.errors import ApiError, ConnectionBroken, InvalidInput
from sluice.kinds import (
    CsvOptions,
    HtmlOptions,
    JsonOptions,
    Lane,
    OcrOptions,
    SpeechOptions,
    Splitter,
)
from sluice.shapes import DocumentCounts, Event, IngestOutcome, Job, SourceError, StoredFile
from sluice.sources import FileDocument, LocalDocument, RemoteDocument, TextDocument

PARALLEL_UPLOADS = 8
_SETTLED_NS = 2 * 10**9
SOURCES_PER_JOB = 10_000
_LOOKUP_HASHES = 50
_REFUSALS = {400, 409, 413, 415, 422}
"""Statuses of errors that are about this one file."""

Phase = Literal["check", "upload", "ingest"]


def ignore(_: object) -> None:
    """The default of callbacks."""


@dataclass(frozen=True, kw_only=True)
class Advance:
    """The progress of a phase. `unit` is what `done` and `total` count."""

    phase: Phase
    done: int
    total: int | None
    unit: str

    @classmethod
    def of(cls, data: dict[str, Any]) -> "Advance":
        """From a `progress` event."""
        return cls(
            phase="ingest",
            done=int(data.get("done") or 0),
            total=data.get("total"),
            unit=str(data.get("unit") or "documents"),
        )


# Uploads: many files in parallel, each at most once.
#
# A file is hashed here and looked up on the server; a file that is stored under the same name with
# the same hash is used again. A file that cannot be read, or that the server refuses, becomes an
# error entry. Errors that would meet every file (no connection, no valid key) are raised.


@dataclass(kw_only=True)
class Uploads:
    """The documents that have reached the server so far."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    """Their entries in the input of a job."""
    errors: list[SourceError] = field(default_factory=list)
    """The documents that cannot be read, or that were refused."""
    uploaded_files: int = 0
    reused_files: int = 0
    copies: dict[str, str] = field(default_factory=dict)
    """Hashes, by file name, of files whose bytes are also stored under a name outside this run."""


async def upload_documents(
    calls: Calls[Any],
    documents: Sequence[LocalDocument],
    uploads: Uploads,
    *,
    parallel: int,
    on_advance: Callable[[Phase, int], None],
) -> None:
    """Add these documents to `uploads`, in their order; `on_advance` gets the number done."""
    files = [document for document in documents if isinstance(document, FileDocument)]
    ids: dict[str, str] = {}

    hashes = await hash_files(
        calls, files, uploads.errors, parallel=parallel, on_advance=on_advance
    )
    stored = await _stored_ids(calls, hashes.values(), parallel)
    others = {digest for digest, name in stored if name not in hashes}
    for name, digest in hashes.items():
        if file_id := stored.get((digest, name)):
            ids[name] = file_id
        if digest in others:
            uploads.copies[name] = digest
    uploads.reused_files += len(ids)

    missing = [file for file in files if file.name in hashes and file.name not in ids]
    done = len(documents) - len(missing)
    on_advance("upload", done)

    async def upload(file: FileDocument) -> StoredFile | SourceError:
        return await _upload(calls, file)

    async with aclosing(calls.transport.parallel(upload, missing, parallel)) as outcomes:
        async for file, outcome in outcomes:
            if isinstance(outcome, SourceError):
                uploads.errors.append(outcome)
            else:
                ids[file.name] = outcome.id
                uploads.uploaded_files += 1
            done += 1
            on_advance("upload", done)

    for document in documents:
        if isinstance(document, TextDocument):
            text = {"type": "text", "text": document.text, "name": document.name}
            uploads.sources.append(text)
        elif isinstance(document, RemoteDocument):
            uploads.sources.append(dict(document.source))
        elif document.name in ids:
            uploads.sources.append({"type": "file", "file_id": ids[document.name]})


async def hash_files(
    calls: Calls[Any],
    files: Sequence[FileDocument],
    errors: list[SourceError],
    *,
    parallel: int,
    on_advance: Callable[[Phase, int], None],
    known: "FileHashes | None" = None,
) -> dict[str, str]:
    """The SHA-256 of each file by its name. Files that cannot be read are added to `errors`."""
    hashes: dict[str, str] = {}
    known = known or FileHashes()

    async def hash_of(file: FileDocument) -> str | SourceError:
        return await calls.transport.in_thread(_hash, file, known)

    done = 0
    async with aclosing(calls.transport.parallel(hash_of, files, parallel)) as digests:
        async for file, digest in digests:
            if isinstance(digest, SourceError):
                errors.append(digest)
            else:
                hashes[file.name] = digest
            done += 1
            on_advance("check", done)
    return hashes


class FileHashes:
    """The SHA-256 of files, which are read again only if they have changed: for programs that look
    at the same files again and again. Threads may share it."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, ...], str]] = {}

    def sha256(self, path: Path) -> str:
        """Raises OSError."""
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            state = (
                status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns,
                status.st_ctime_ns,
            )  # fmt: skip
            known = self._known.get(path)
            if known is not None and known[0] == state:
                return known[1]
            now_ns = time.time_ns()
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        # What has just been written may be written again within a tick of the system's clock.
        if now_ns - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            self._known[path] = (state, digest)
        return digest


def _hash(file: FileDocument, known: FileHashes) -> str | SourceError:
    try:
        return known.sha256(file.path)
    except OSError as error:
        return _unreadable(file, error)


async def _stored_ids(
    calls: Calls[Any], hashes: Iterable[str], parallel: int
) -> dict[tuple[str, str], str]:
    """The ids of stored files by hash and name."""
    unique = sorted(set(hashes))
    parts = [
        tuple(unique[first : first + _LOOKUP_HASHES])
        for first in range(0, len(unique), _LOOKUP_HASHES)
    ]
    async with aclosing(calls.transport.parallel(calls.files_by_hash, parts, parallel)) as answers:
        return {(file.sha256, file.name): file.id async for _, files in answers for file in files}


async def _upload(calls: Calls[Any], file: FileDocument) -> StoredFile | SourceError:
    try:
        return await calls.upload(file.path, name=file.name)
    except OSError as error:
        return _unreadable(file, error)
    except ApiError as error:
        if error.status not in _REFUSALS:
            raise
        return SourceError(source=file.name, message=error.message)
    except ConnectionBroken:
        message = (
            "The connection broke each time this file was sent; "
            "it may be too large for the server, or for a proxy before it."
        )
        return SourceError(source=file.name, message=message)


def _unreadable(file: FileDocument, error: OSError) -> SourceError:
    return SourceError(
        source=file.name, message=f"Cannot read {file.path}: {error.strerror or error}."
    )


# Jobs


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Options of the job. `None` leaves an option to the server's default."""

    splitter: Splitter | None = None
    encoding: str | None = None
    csv: CsvOptions | None = None
    html: HtmlOptions | None = None
    json: JsonOptions | None = None
    ocr: OcrOptions | None = None
    """`{}` switches on the recognition of text in pictures and on scanned pages."""
    speech: SpeechOptions | None = None
    """`{}` switches on the transcription of recordings."""
    on_existing: Literal["skip", "replace"] | None = None
    on_duplicate: Literal["warn", "skip"] | None = None
    metadata: Mapping[str, Any] | None = None
    lane: Lane | None = None

    @property
    def requested(self) -> frozenset[str]:
        """Which options it has that some formats are only read with."""
        options = {"ocr": self.ocr, "speech": self.speech}
        return frozenset(name for name, value in options.items() if value is not None)


@dataclass(frozen=True, kw_only=True)
class IngestRun:
    """How documents are sent and jobs followed. Callbacks are called in the calling thread."""

    options: IngestOptions
    parallel_uploads: int = PARALLEL_UPLOADS
    timeout_s: float | None = None
    hashes: FileHashes | None = None
    """Those of earlier runs, if the program has some."""
    on_advance: Callable[[Advance], object] = ignore
    on_submit: Callable[[Job], object] = ignore


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A file whose content is also in the collection under another name."""

    source: str
    other: str


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """The outcome for all documents; `errors` names each that failed."""

    collection: str
    collection_created: bool
    job_ids: tuple[str, ...]
    finished: bool
    """False if the run did not wait for its jobs: then only refused files are counted."""
    documents: DocumentCounts
    chunks: int
    errors: tuple[SourceError, ...]
    vanished: tuple[str, ...] = ()
    """Documents that earlier jobs read from a site, and that it no longer has."""
    warnings: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    uploaded_files: int
    reused_files: int
    elapsed_s: float


async def ingest_documents(
    calls: Calls[Any],
    collection: str,
    documents: Sequence[LocalDocument],
    run: IngestRun,
    *,
    refused: Sequence[SourceError] = (),
    wait: bool = True,
) -> IngestReport:
    """See `Client.ingest_documents`."""
    if not documents and refused:
        raise InvalidInput(refused[0].message)
    if not documents:
        raise InvalidInput("There is no document to ingest.")
    started = time.monotonic()
    created = await ensure_collection(calls, collection)
    uploads = Uploads(errors=list(refused))
    jobs: list[Job] = []
    # A job starts as soon as its files are uploaded, while those of the next are still sent.
    for first in range(0, len(documents), SOURCES_PER_JOB):
        batch = documents[first : first + SOURCES_PER_JOB]
        before = len(uploads.sources)
        await upload_documents(
            calls,
            batch,
            uploads,
            parallel=run.parallel_uploads,
            on_advance=_progress_from(first, len(documents), run.on_advance),
        )
        if sources := uploads.sources[before:]:
            jobs.append(await _submit(calls, collection, sources, run.options))
            run.on_submit(jobs[-1])
    report = IngestReport(
        collection=collection,
        collection_created=created,
        job_ids=tuple(job.id for job in jobs),
        finished=False,
        documents=DocumentCounts(failed=len(uploads.errors)),
        chunks=0,
        errors=tuple(uploads.errors),
        warnings=(),
        # With `skip` the server leaves them out, and says which.
        duplicates=()
        if created or run.options.on_duplicate == "skip"
        else await _duplicates(calls, collection, uploads.copies),
        uploaded_files=uploads.uploaded_files,
        reused_files=uploads.reused_files,
        elapsed_s=time.monotonic() - started,
    )
    if not wait:
        return report
    deadline = None if run.timeout_s is None else started + run.timeout_s
    ended = [await _finish(calls, job, deadline, run.on_advance) for job in jobs]
    results = [IngestOutcome.model_validate(await calls.result(job) or {}) for job in ended]
    return replace(
        report,
        finished=True,
        documents=sum((result.documents for result in results), report.documents),
        chunks=sum(result.chunks for result in results),
        errors=(*report.errors, *(error for result in results for error in result.errors)),
        vanished=tuple(name for result in results for name in result.vanished),
        warnings=tuple(warning for job in ended for warning in job.warnings),
        elapsed_s=time.monotonic() - started,
    )


async def _duplicates(
    calls: Calls[Any], collection: str, copies: Mapping[str, str]
) -> tuple[Duplicate, ...]:
    """The files that the collection also has under another name. `copies` are files and hashes.

    The collection may be large: it is read only if there are copies at all.
    """
    if not copies:
        return ()
    sources: dict[str, str] = {}
    digests = set(copies.values())
    async for document in calls.documents(collection):
        if document.sha256 in digests and document.source not in copies:
            sources.setdefault(str(document.sha256), document.source)
    return tuple(
        Duplicate(source=name, other=sources[digest])
        for name, digest in copies.items()
        if digest in sources
    )


async def ensure_collection(calls: Calls[Any], name: str) -> bool:
    """Make the collection if it is missing; True if it was made."""
    try:
        await calls.collection(name)
    except ApiError as error:
        if error.status != 404:
            raise
        collection = await calls.put_collection(name)
        calls.notify(f"Created the collection {name} (model {collection.embedding_model}).")
        return True
    return False


def _progress_from(
    first: int, total: int, on_advance: Callable[[Advance], object]
) -> Callable[[Phase, int], None]:
    """A callback that reports the progress of one batch as progress of all documents."""

    def count(phase: Phase, done: int) -> None:
        on_advance(Advance(phase=phase, done=first + done, total=total, unit="files"))

    return count


async def _submit(
    calls: Calls[Any], collection: str, sources: Sequence[Mapping[str, Any]], options: IngestOptions
) -> Job:
    job_input: dict[str, Any] = {"collection": collection, "sources": list(sources)}
    for name in ("encoding", "on_existing", "on_duplicate"):
        if value := getattr(options, name):
            job_input[name] = value
    if options.ocr is not None:
        job_input["ocr"] = dict(options.ocr)
    if options.speech is not None:
        job_input["speech"] = dict(options.speech)
    for name in ("splitter", "csv", "html", "json", "metadata"):
        if value := getattr(options, name):
            job_input[name] = dict(value)
    job: Job = await calls.submit_untyped("ingest", job_input, lane=options.lane)
    return job


async def _finish(
    calls: Calls[Any], job: Job, deadline: float | None, on_advance: Callable[[Advance], object]
) -> Job:
    def on_event(event: Event) -> None:
        if event.event == "progress":
            on_advance(Advance.of(event.data))

    left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
    ended: Job = (await calls.wait(job.id, timeout_s=left_s, on_event=on_event)).require_success()
    if ended.progress is not None:
        on_advance(Advance.of(ended.progress.model_dump()))
    return ended
