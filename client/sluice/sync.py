"""Synchronization of a collection with files, a site or a bucket: new documents are added, changed
ones replaced, and missing ones erased.

No state is kept between two runs: files are compared with the documents of the collection, so the
next run finishes one that was interrupted. A file is not sent if its document has the same hash and
the metadata of this run; an archive or a mail, if all of it was read before. Documents are erased
last, so that a renamed file can be found all the time.
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
    """The documents, by name, that were changed; of a dry run, that would be changed. For an
    archive the name is that of its file."""

    collection: str
    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    erased: tuple[str, ...] = ()
    unchanged: int = 0
    errors: tuple[SourceError, ...] = ()
    """Files that could not be read. Their documents in the collection stay."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """The number of files in folders that Sluice cannot read, by extension."""
    circular_links: tuple[str, ...] = ()
    """Links to a folder that contains them, which were not followed."""
    is_dry_run: bool = False
    ingest: IngestReport | None = None
    """None if nothing was added or replaced. For a site or a bucket the counts are here, and
    `added` and `replaced` are empty. Its `erased` counts documents that changed archives no longer
    have."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The changes that make a collection equal to files."""

    report: SyncReport
    documents: Sequence[LocalDocument]
    """The files to send."""
    errors: Sequence[SourceError]
    erased_ids: Sequence[str]
    scope_count: int
    """The number of documents in the collection that are within the synchronized paths."""


@dataclass(frozen=True, kw_only=True)
class Scope:
    """The documents that are read from one path: `name` is the only one, or else what their names
    begin with."""

    name: str
    is_folder: bool

    @classmethod
    def of_path(cls, path: str, top: Path) -> "Scope":
        """`top` is the folder that names of documents are relative to. Raises InvalidInput."""
        whole = Path(os.path.abspath(path))  # noqa: PTH100
        if not whole.is_relative_to(top):
            raise InvalidInput(
                f"{path} is not below {top}, from which on documents are named. Choose another "
                "folder with --root."
            )
        relative = str(whole.relative_to(top))
        if not whole.is_dir():
            return cls(name=document_name(relative), is_folder=False)
        return cls(name="" if relative == "." else f"{document_name(relative)}/", is_folder=True)

    def holds(self, document: Document) -> bool:
        """Whether the document is within the path. URLs are names of documents from elsewhere."""
        name = document.container or document.source
        if not self.is_folder:
            return name == self.name
        return name.startswith(self.name) and "://" not in name


async def sync_documents(
    calls: Calls[Any],
    collection: str,
    paths: Sequence[str],
    run: IngestRun,
    *,
    root: str | Path | None,
    is_dry_run: bool,
    max_erased_share: float,
    suffixes: Iterable[str],
    max_pages: int | None,
) -> SyncReport:
    """See `Client.sync`."""
    if not paths:
        raise InvalidInput("There is nothing to synchronize: give a folder, a file or a URL.")
    if not 0 <= max_erased_share <= 1:
        raise InvalidInput(f"max_erased_share is a share from 0 to 1, not {max_erased_share!r}.")
    if run.options.on_existing == "skip":
        raise InvalidInput("on_existing is skip, with which nothing that has changed is replaced.")
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
    require_few_erased(len(plan.erased_ids), plan.scope_count, max_erased_share)
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


def _discover(paths: Sequence[str], root: str | Path | None, suffixes: Iterable[str]) -> Discovery:
    for path in paths:
        if not Path(path).exists():
            raise InvalidInput(
                f"{path} does not exist. Nothing was changed; to erase what was read from it, use "
                "`sluice documents delete`."
            )
    return discover(paths, root=root, suffixes=frozenset(suffixes))


async def _plan(
    calls: Calls[Any],
    collection: str,
    paths: Sequence[str],
    discovery: Discovery,
    run: IngestRun,
    root: str | Path | None,
) -> Plan:
    top = Path(os.path.abspath(root if root is not None else Path.cwd()))  # noqa: PTH100
    scopes = [Scope.of_path(path, top) for path in paths]
    stored = {
        name: document
        for name, document in (await _stored_documents(calls, collection)).items()
        if any(scope.holds(document) for scope in scopes)
    }
    files = [document for document in discovery.documents if isinstance(document, FileDocument)]
    unread: list[SourceError] = []

    def count(phase: Phase, done: int) -> None:
        run.on_advance(Advance(phase=phase, done=done, total=len(files), unit="files"))

    hashes = await hash_files(
        calls,
        files,
        unread,
        parallel=run.parallel_uploads,
        on_advance=count,
        known=run.hashes,
    )
    # A file that was deleted during the run counts as one that was deleted before.
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
) -> Plan:
    """Compare files and their hashes with the stored documents. `hashes` and `stored` are by name.

    `exists` says of a document without a file here whether there is such a file all the same.
    """
    members: dict[str, list[Document]] = {}
    for document in stored.values():
        if document.container is not None:
            members.setdefault(document.container, []).append(document)
    new_metadata = {_nfc(key): _nfc(value) for key, value in (metadata or {}).items()}

    def is_current(file: FileDocument) -> bool:
        document, digest = stored.get(file.name), hashes[file.name]
        if document is not None:
            is_same, of_file = document.sha256 == digest, [document]
        else:  # an archive, or a new file
            of_file = members.get(file.name, [])
            is_same = bool(of_file) and all(item.container_sha256 == digest for item in of_file)
        return is_same and all(
            item.is_whole and item.metadata.items() >= new_metadata.items() for item in of_file
        )

    changed = [file for file in files if file.name in hashes and not is_current(file)]
    stored_names = stored.keys() | members.keys()
    names = {file.name for file in files}
    missing = [
        name
        for name, document in stored.items()
        if not names & {name, document.container} and not exists(document.container or name)
    ]
    report = SyncReport(
        collection=collection,
        added=tuple(sorted(file.name for file in changed if file.name not in stored_names)),
        replaced=tuple(sorted(file.name for file in changed if file.name in stored_names)),
        erased=tuple(sorted(missing)),
        unchanged=len(hashes) - len(changed),
        errors=tuple(errors),
    )
    return Plan(
        report=report,
        documents=changed,
        errors=errors,
        erased_ids=[stored[name].id for name in report.erased],
        scope_count=len(stored),
    )


def _nfc(value: Any) -> Any:
    """The value in normal form C, as the server stores metadata."""
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
    return [_nfc(item) for item in value] if isinstance(value, list | tuple) else value


class Disk:
    """The files of a folder, by the names of their documents. These are normalized
    (`document_name`), while names of files are not."""

    def __init__(self, top: Path) -> None:
        self._top = top
        self._listed: dict[Path, dict[str, str] | None] = {}

    def has(self, name: str) -> bool:
        """Whether the file exists, or may exist in a folder that cannot be read."""
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
        """The names of files by names of documents; None if the folder cannot be read."""
        if folder not in self._listed:
            try:
                file_names = [path.name for path in folder.iterdir()]
            except (FileNotFoundError, NotADirectoryError):
                file_names = []
            except OSError:
                self._listed[folder] = None
                return None
            self._listed[folder] = {part: name for name in file_names for part in _parts(name)}
        return self._listed[folder]


def _parts(name: str) -> tuple[str, ...]:
    """The forms of a file's name in a document's name: spaces are escaped only at its ends."""
    return (
        document_name(name),
        document_name(f"x/{name}").removeprefix("x/"),
        document_name(f"{name}/x").removesuffix("/x"),
        document_name(f"x/{name}/x").removeprefix("x/").removesuffix("/x"),
    )


async def _stored_documents(calls: Calls[Any], collection: str) -> dict[str, Document]:
    """The documents of a collection by name; none if there is no such collection."""
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
    stored = await _stored_documents(calls, collection) if vanished else {}
    ids = [document.id for name, document in stored.items() if name in vanished]
    kept = counts.added + counts.replaced + counts.skipped
    require_few_erased(len(ids), kept + len(ids), max_erased_share)
    await _erase(calls, ids, run.timeout_s)
    return SyncReport(
        collection=collection,
        erased=tuple(sorted(vanished & stored.keys())),
        unchanged=counts.skipped,
        errors=ingest.errors,
        ingest=ingest,
    )


def require_few_erased(erased_count: int, scope_count: int, max_share: float) -> None:
    """Raises InvalidInput if a larger share of the documents would be erased."""
    if erased_count > max(1, max_share * scope_count):
        raise InvalidInput(
            f"{erased_count:,} of {scope_count:,} documents have vanished, which is more than a "
            f"share of {max_share:g}: none of them was erased. If that is right, repeat it with "
            "--yes (max_erased_share=1)."
        )


async def _erase(calls: Calls[Any], ids: Sequence[str], timeout_s: float | None) -> None:
    for first in range(0, len(ids), _ERASED_AT_ONCE):
        batch = list(ids[first : first + _ERASED_AT_ONCE])
        job = await calls.submit_untyped("erase", {"document_ids": batch})
        (await calls.wait(job.id, timeout_s=timeout_s)).require_success()
