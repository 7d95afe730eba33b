"""Getting many files to the server, in parallel, each at most once.

A file is hashed here and looked up there; what is stored under the same name with the same hash
is used again. A file that cannot be read or is refused becomes an error entry; what would meet
every file (no connection, no valid key) is raised.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from cli.calls import Calls
from cli.errors import ApiError, ConnectionBroken
from cli.sources import FileDocument, LocalDocument, TextDocument
from cli.wire import SourceError, StoredFile

PARALLEL_UPLOADS = 8
_LOOKUP_HASHES = 50
_REFUSALS = {400, 409, 413, 415, 422}
"""Answers that are about this one file."""

Phase = Literal["check", "upload", "ingest"]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Advance:
    """How far a phase is; `unit` is what is counted."""

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


@dataclass(kw_only=True)
class Sent:
    """What has been sent so far: the sources for the job, and what was refused."""

    sources: list[dict[str, Any]] = field(default_factory=list)
    errors: list[SourceError] = field(default_factory=list)
    uploaded_files: int = 0
    reused_files: int = 0
    named_otherwise: dict[str, str] = field(default_factory=dict)
    """The hash of each file whose bytes are stored under a name that is not among these, too."""


def send(
    calls: Calls,
    documents: Sequence[LocalDocument],
    sent: Sent,
    *,
    parallel: int,
    on_advance: Callable[[Phase, int], None],
) -> None:
    """Add these documents to `sent`, in their order; `on_advance` hears the number done."""
    files = [document for document in documents if isinstance(document, FileDocument)]
    ids: dict[str, str] = {}

    hashes: dict[str, str] = {}
    for done, (file, digest) in enumerate(_parallel(_hash, files, parallel), start=1):
        if isinstance(digest, SourceError):
            sent.errors.append(digest)
        else:
            hashes[file.name] = digest
        on_advance("check", done)

    stored = _stored(calls, hashes.values(), parallel)
    others = {digest for digest, name in stored if name not in hashes}
    for name, digest in hashes.items():
        if file_id := stored.get((digest, name)):
            ids[name] = file_id
        if digest in others:
            sent.named_otherwise[name] = digest
    sent.reused_files += len(ids)

    missing = [file for file in files if file.name in hashes and file.name not in ids]
    done = len(documents) - len(missing)
    on_advance("upload", done)
    for file, outcome in _parallel(lambda file: _upload(calls, file), missing, parallel):
        if isinstance(outcome, SourceError):
            sent.errors.append(outcome)
        else:
            ids[file.name] = outcome.id
            sent.uploaded_files += 1
        done += 1
        on_advance("upload", done)

    for document in documents:
        if isinstance(document, TextDocument):
            text = {"type": "text", "text": document.text, "name": document.name}
            sent.sources.append(text)
        elif document.name in ids:
            sent.sources.append({"type": "file", "file_id": ids[document.name]})


def _hash(file: FileDocument) -> str | SourceError:
    try:
        with file.path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return _unreadable(file, error)


def _stored(calls: Calls, hashes: Iterable[str], parallel: int) -> dict[tuple[str, str], str]:
    """The ids of stored files by hash and name."""
    wanted = sorted(set(hashes))
    parts = [
        tuple(wanted[first : first + _LOOKUP_HASHES])
        for first in range(0, len(wanted), _LOOKUP_HASHES)
    ]
    answers = _parallel(calls.files_by_hash, parts, parallel)
    return {(file.sha256, file.name): file.id for _, files in answers for file in files}


def _upload(calls: Calls, file: FileDocument) -> StoredFile | SourceError:
    try:
        return calls.upload(file.path, name=file.name)
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


def _parallel(
    function: Callable[[T], R], items: Sequence[T], workers: int
) -> Iterator[tuple[T, R]]:
    """Results as they come; an exception, also the reader's, stops what has not begun."""
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        futures = {pool.submit(function, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        # Not waited for: on Ctrl-C the client is closed next, which ends what is under way.
        pool.shutdown(wait=False, cancel_futures=True)
