"""Keeping a collection as files, a site or a bucket are: what is new is added, what has changed is
replaced, what has vanished is erased.

Nothing is noted between two runs: what is to be done is seen from the files and from the documents
of the collection, so a run that was cut off is finished by the next one. Of files, those with the
same hash as their document are not sent, nor archives and mails all of which has been read, unless
metadata that is to be noted is not. Documents are erased last, so that a file with a new name is
found all the time.
"""

import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sluice.calls import Calls
from sluice.errors import ApiError, InvalidInput
from sluice.ingest import (
    Advance,
    IngestReport,
    IngestRun,
    Phase,
    hash_files,
    ingest_documents,
)
from sluice.shapes import Document, SourceError
from sluice.sources import (
    Discovery,
    FileDocument,
    LocalDocument,
    RemoteDocument,
    discover,
    document_name,
    folder_documents,
    is_folder_url,
    is_url,
    site_documents,
)

MAX_ERASED_SHARE = 0.5
_ERASED_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What was done, or of a dry run what would be, by the names of documents; archives have those
    of their files."""

    collection: str
    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    erased: tuple[str, ...] = ()
    unchanged: int = 0
    errors: tuple[SourceError, ...] = ()
    """What could not be read; what the collection has of it stays."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many files in folders Sluice cannot read, by extension."""
    circular_links: tuple[str, ...] = ()
    """Links to a folder that they lie in, which were not followed."""
    is_dry_run: bool = False
    ingest: IngestReport | None = None
    """Of what was added and replaced; None where there was nothing. Of a site or a bucket, the
    server says how many documents that were, and `added` and `replaced` are empty. Documents that
    are in a changed archive no longer are `erased` here."""


@dataclass(frozen=True, kw_only=True)
class _Plan:
    report: SyncReport
    documents: Sequence[LocalDocument]
    errors: Sequence[SourceError]
    erased_ids: Sequence[str]
    scope_count: int
    """How many documents the collection has of what is synchronized."""


async def sync_documents(
    calls: Calls[Any],
    collection: str,
    paths: Sequence[str],
    run: IngestRun,
    *,
    root: str | Path | None,
    is_dry_run: bool,
    max_erased_share: float,
    suffixes: Iterable[str] | None,
    max_pages: int | None,
) -> SyncReport:
    """See `Client.sync`."""
    if not paths:
        raise InvalidInput("There is nothing to synchronize: give a folder, a file or a URL.")
    remote = [path for path in paths if is_url(path) or is_folder_url(path)]
    if remote and len(remote) < len(paths):
        raise InvalidInput("Synchronize files and URLs one after the other.")
    if max_pages is not None and not any(map(is_url, paths)):
        raise InvalidInput("max_pages goes with a site, such as https://docs.example.org/.")
    if remote:
        if is_dry_run:
            raise InvalidInput("A dry run looks at files; a site or a bucket has to be read.")
        if root is not None:
            raise InvalidInput("A root goes with files; what lies elsewhere is called by its URL.")
        return await _sync_remote(calls, collection, remote, run, max_pages, max_erased_share)
    discovery = await calls.transport.in_thread(_discover, paths, root, suffixes)
    plan = await _plan(calls, collection, paths, discovery, run, root)
    report = plan.report
    if is_dry_run:
        return replace(report, is_dry_run=True)
    _brake(len(plan.erased_ids), plan.scope_count, max_erased_share)
    if plan.documents:
        ingest = await ingest_documents(calls, collection, plan.documents, run, refused=plan.errors)
        failed = {error.source for error in ingest.errors}
        report = replace(
            report,
            added=tuple(name for name in report.added if name not in failed),
            replaced=tuple(name for name in report.replaced if name not in failed),
            errors=ingest.errors,
            ingest=ingest,
        )
    await _erase(calls, plan.erased_ids, run.timeout_s)
    return report


def _discover(
    paths: Sequence[str], root: str | Path | None, suffixes: Iterable[str] | None
) -> Discovery:
    for path in paths:
        if not Path(path).exists():
            raise InvalidInput(
                f"{path} does not exist. Nothing was changed; to erase what was read from it, use "
                "`sluice documents delete`."
            )
    if suffixes is None:
        return discover(paths, root=root)
    return discover(paths, root=root, suffixes=frozenset(suffixes))


async def _plan(
    calls: Calls[Any],
    collection: str,
    paths: Sequence[str],
    discovery: Discovery,
    run: IngestRun,
    root: str | Path | None,
) -> _Plan:
    top = Path(os.path.abspath(root if root is not None else Path.cwd()))  # noqa: PTH100
    scopes = [_scope(path, top) for path in paths]
    stored = {
        name: document
        for name, document in (await _stored(calls, collection)).items()
        if any(_is_in(document, scope) for scope in scopes)
    }
    files = [document for document in discovery.documents if isinstance(document, FileDocument)]
    unread: list[SourceError] = []

    def count(phase: Phase, done: int) -> None:
        run.on_advance(Advance(phase=phase, done=done, total=len(files), unit="files"))

    hashes = await hash_files(calls, files, unread, parallel=run.parallel_uploads, on_advance=count)
    # Files that have gone meanwhile have vanished, as have those that went before.
    gone = {error.source for error in unread} - {
        file.name for file in files if os.path.lexists(file.path)
    }
    errors = [*discovery.errors, *(error for error in unread if error.source not in gone)]
    plan = make_plan(
        collection,
        [file for file in files if file.name not in gone],
        hashes,
        stored,
        errors,
        exists=Disk(top).has,
        metadata=run.options.metadata or {},
    )
    report = replace(
        plan.report,
        left_out=discovery.left_out,
        circular_links=tuple(discovery.circular_links),
    )
    return replace(plan, report=report)


def make_plan(
    collection: str,
    files: Sequence[FileDocument],
    hashes: Mapping[str, str],
    stored: Mapping[str, Document],
    errors: Sequence[SourceError],
    *,
    exists: Callable[[str], bool],
    metadata: Mapping[str, Any] | None = None,
) -> _Plan:
    """What is to be done, from the files with their hashes, and the documents there are by their
    names. `exists` is asked of documents that no file was found for."""
    members: dict[str, list[Document]] = {}
    for document in stored.values():
        if document.container is not None:
            members.setdefault(document.container, []).append(document)
    noted = {_nfc(key): _nfc(value) for key, value in (metadata or {}).items()}

    def is_current(file: FileDocument) -> bool:
        own, digest = stored.get(file.name), hashes[file.name]
        if own is not None:
            is_same, of_it = own.sha256 == digest, [own]
        else:  # an archive, or none of it is there
            of_it = members.get(file.name, [])
            is_same = bool(of_it) and all(one.container_sha256 == digest for one in of_it)
        return is_same and all(
            one.is_whole and one.metadata.items() >= noted.items() for one in of_it
        )

    sent = [file for file in files if file.name in hashes and not is_current(file)]
    is_there = stored.keys() | members.keys()
    names = {file.name for file in files}
    vanished = [
        name
        for name, document in stored.items()
        if not names & {name, document.container} and not exists(document.container or name)
    ]
    report = SyncReport(
        collection=collection,
        added=tuple(sorted(file.name for file in sent if file.name not in is_there)),
        replaced=tuple(sorted(file.name for file in sent if file.name in is_there)),
        erased=tuple(sorted(vanished)),
        unchanged=len(hashes) - len(sent),
        errors=tuple(errors),
    )
    return _Plan(
        report=report,
        documents=sent,
        errors=errors,
        erased_ids=[stored[name].id for name in report.erased],
        scope_count=len(stored),
    )


def _nfc(value: Any) -> Any:
    """As the server keeps metadata."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    return [_nfc(item) for item in value] if isinstance(value, list | tuple) else value


def _scope(path: str, top: Path) -> tuple[str, bool]:
    """How the names of documents begin that are read from a path, or the name of the only one; and
    whether it is a folder. Raises InvalidInput."""
    whole = Path(os.path.abspath(path))  # noqa: PTH100
    if not whole.is_relative_to(top):
        raise InvalidInput(
            f"{path} is not below {top}, from which on documents are named. Choose another folder "
            "with --root."
        )
    relative = str(whole.relative_to(top))
    if not whole.is_dir():
        return document_name(relative), False
    return ("" if relative == "." else f"{document_name(relative)}/"), True


def _is_in(document: Document, scope: tuple[str, bool]) -> bool:
    """URLs are names of documents that were read from elsewhere."""
    begins, is_folder = scope
    name = document.container or document.source
    if not is_folder:
        return name == begins
    return name.startswith(begins) and "://" not in name


class Disk:
    """What lies in a folder, by names of documents: those are in NFC, and have no characters that
    cannot be sent, while the names of files are as they are."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._listed: dict[Path, dict[str, str] | None] = {}

    def has(self, name: str) -> bool:
        """Whether there is such a file, or may be: a folder that cannot be read hides what is in
        it."""
        path = self._top
        for part in name.split("/"):
            entries = self._entries(path)
            if entries is None:
                return True
            if part not in entries:
                return False
            path /= entries[part]
        return True

    def _entries(self, folder: Path) -> dict[str, str] | None:
        """The names of files by those of documents; None where they cannot be read."""
        if folder not in self._listed:
            try:
                written = [path.name for path in folder.iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                written = []
            except OSError:
                self._listed[folder] = None
                return None
            self._listed[folder] = {part: name for name in written for part in _parts(name)}
        return self._listed[folder]


def _parts(name: str) -> tuple[str, ...]:
    """What a file or folder may be in the name of a document: whether spaces stay depends on where
    it stands in that."""
    return (
        document_name(name),
        document_name(f"x/{name}").removeprefix("x/"),
        document_name(f"{name}/x").removesuffix("/x"),
        document_name(f"x/{name}/x").removeprefix("x/").removesuffix("/x"),
    )


async def _stored(calls: Calls[Any], collection: str) -> dict[str, Document]:
    stored: dict[str, Document] = {}
    try:
        async with aclosing(calls.documents(collection)) as documents:
            async for document in documents:
                stored[document.source] = document
    except ApiError as error:
        if error.status != 404:
            raise
    return stored


async def _sync_remote(
    calls: Calls[Any],
    collection: str,
    urls: Sequence[str],
    run: IngestRun,
    max_pages: int | None,
    max_erased_share: float,
) -> SyncReport:
    documents: list[RemoteDocument] = [
        *site_documents(filter(is_url, urls), max_pages=max_pages),
        *folder_documents(url for url in urls if not is_url(url)),
    ]
    ingest = await ingest_documents(calls, collection, documents, run)
    vanished, counts = set(ingest.vanished), ingest.documents
    stored = await _stored(calls, collection) if vanished else {}
    ids = [document.id for name, document in stored.items() if name in vanished]
    there = counts.added + counts.replaced + counts.skipped
    _brake(len(ids), there + len(ids), max_erased_share)
    await _erase(calls, ids, run.timeout_s)
    return SyncReport(
        collection=collection,
        erased=tuple(sorted(vanished & stored.keys())),
        unchanged=counts.skipped,
        errors=ingest.errors,
        ingest=ingest,
    )


def _brake(erased_count: int, scope_count: int, max_share: float) -> None:
    """Raises InvalidInput."""
    if erased_count > max(1, max_share * scope_count):
        raise InvalidInput(
            f"{erased_count:,} of {scope_count:,} documents have vanished, which is more than a "
            f"share of {max_share:g}: none of them was erased. If that is right, repeat it with "
            "--yes (max_erased_share=1)."
        )


async def _erase(calls: Calls[Any], ids: Sequence[str], timeout_s: float | None) -> None:
    for first in range(0, len(ids), _ERASED_AT_ONCE):
        some = list(ids[first : first + _ERASED_AT_ONCE])
        job = await calls.submit_untyped("erase", {"document_ids": some})
        (await calls.wait(job.id, timeout_s=timeout_s)).require_success()
