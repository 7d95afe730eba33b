"""Bulk ingestion: send what the server does not have, submit, follow.

A run that was cut off is resumed by running it again (`cli/sending.py`). Whether a stored document
is up to date is the server's decision, in the job.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cli.calls import Calls
from cli.errors import ApiError
from cli.sending import PARALLEL_UPLOADS, Advance, Phase, Sent, send
from cli.sources import LocalDocument
from cli.wire import DocumentCounts, Event, IngestResult, Job, SourceError
from shared.errors import InvalidInput

SOURCES_PER_JOB = 10_000


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Given on to the server; what is `None` is left to its defaults."""

    splitter: Mapping[str, Any] | None = None
    csv: Mapping[str, Any] | None = None
    on_existing: Literal["skip", "replace"] = "replace"
    metadata: Mapping[str, Any] | None = None
    lane: str | None = None


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A file whose content is in the collection under another name, too."""

    source: str
    other: str


@dataclass(frozen=True, kw_only=True)
class IngestReport:
    """What became of all documents; `errors` names each that failed."""

    collection: str
    collection_created: bool
    job_ids: tuple[str, ...]
    finished: bool
    """False where nobody waited: then only what was refused before the job is counted."""
    documents: DocumentCounts
    chunks: int
    errors: tuple[SourceError, ...]
    warnings: tuple[str, ...]
    duplicates: tuple[Duplicate, ...]
    uploaded_files: int
    reused_files: int
    elapsed_s: float


def ingest(
    calls: Calls,
    collection: str,
    documents: Sequence[LocalDocument],
    *,
    options: IngestOptions,
    refused: Sequence[SourceError] = (),
    parallel_uploads: int = PARALLEL_UPLOADS,
    wait: bool = True,
    timeout_s: float | None = None,
    on_advance: Callable[[Advance], None] = lambda _: None,
    on_submit: Callable[[Job], None] = lambda _: None,
) -> IngestReport:
    """See `Client.ingest`. `refused` is reported with the documents that the server refuses. The
    callbacks are called in this thread."""
    if not documents and refused:
        raise InvalidInput(refused[0].message)
    if not documents:
        raise InvalidInput("There is no document to ingest.")
    started = time.monotonic()
    created = ensure_collection(calls, collection)
    sent = Sent(errors=list(refused))
    jobs: list[Job] = []
    # Each job starts as soon as its files are there, while those of the next are still sent.
    for first in range(0, len(documents), SOURCES_PER_JOB):
        batch = documents[first : first + SOURCES_PER_JOB]
        before = len(sent.sources)
        send(
            calls,
            batch,
            sent,
            parallel=parallel_uploads,
            on_advance=_counting_from(first, len(documents), on_advance),
        )
        if sources := sent.sources[before:]:
            jobs.append(_submit(calls, collection, sources, options))
            on_submit(jobs[-1])
    report = IngestReport(
        collection=collection,
        collection_created=created,
        job_ids=tuple(job.id for job in jobs),
        finished=False,
        documents=DocumentCounts(failed=len(sent.errors)),
        chunks=0,
        errors=tuple(sent.errors),
        warnings=(),
        duplicates=() if created else tuple(_duplicates(calls, collection, sent.named_otherwise)),
        uploaded_files=sent.uploaded_files,
        reused_files=sent.reused_files,
        elapsed_s=time.monotonic() - started,
    )
    if not wait:
        return report
    deadline = None if timeout_s is None else started + timeout_s
    ended = [_finish(calls, job, deadline, on_advance) for job in jobs]
    results = [IngestResult.model_validate(calls.result(job) or {}) for job in ended]
    return replace(
        report,
        finished=True,
        documents=sum((result.documents for result in results), report.documents),
        chunks=sum(result.chunks for result in results),
        errors=(*report.errors, *(error for result in results for error in result.errors)),
        warnings=tuple(warning for job in ended for warning in job.warnings),
        elapsed_s=time.monotonic() - started,
    )


def _duplicates(
    calls: Calls, collection: str, named_otherwise: Mapping[str, str]
) -> Iterator[Duplicate]:
    """Of the files whose bytes are stored under another name, those that are live there.

    The collection is read only where there are such files, for it may be large.
    """
    if not named_otherwise:
        return
    sources: dict[str, str] = {}
    wanted = set(named_otherwise.values())
    for document in calls.documents(collection):
        if document.sha256 in wanted and document.source not in named_otherwise:
            sources.setdefault(str(document.sha256), document.source)
    for name, digest in named_otherwise.items():
        if digest in sources:
            yield Duplicate(source=name, other=sources[digest])


def ensure_collection(calls: Calls, name: str) -> bool:
    """Make the collection where there is none; True if it was made."""
    try:
        calls.collection(name)
    except ApiError as error:
        if error.status != 404:
            raise
        made = calls.put_collection(name)
        calls.notify(f"Created the collection {name} (model {made.embedding_model}).")
        return True
    return False


def _counting_from(
    first: int, total: int, on_advance: Callable[[Advance], None]
) -> Callable[[Phase, int], None]:
    """The progress of one batch as progress of the whole."""

    def tell(phase: Phase, done: int) -> None:
        on_advance(Advance(phase=phase, done=first + done, total=total, unit="files"))

    return tell


def _submit(
    calls: Calls, collection: str, sources: Sequence[Mapping[str, Any]], options: IngestOptions
) -> Job:
    asked: dict[str, Any] = {
        "collection": collection,
        "sources": list(sources),
        "on_existing": options.on_existing,
    }
    for name in ("splitter", "csv", "metadata"):
        if value := getattr(options, name):
            asked[name] = dict(value)
    return calls.submit("ingest", asked, lane=options.lane)


def _finish(
    calls: Calls, job: Job, deadline: float | None, on_advance: Callable[[Advance], None]
) -> Job:
    def tell(event: Event) -> None:
        if event.event == "progress":
            on_advance(Advance.of(event.data))

    left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
    ended = calls.wait(job.id, timeout_s=left_s, on_event=tell).require_success()
    if ended.progress is not None:
        on_advance(Advance.of(ended.progress.model_dump()))
    return ended
