"""Deletes what readers no longer see: vectors first, rows last, so that nothing is left behind."""

import logging
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from math import ceil
from typing import Final
from uuid import UUID

from sqlalchemy import ColumnElement

from shared.database.transaction import Transaction
from shared.documents import erasure, indexes, lexical, remote
from shared.documents.documents import parse_chunk_id
from shared.documents.indexes import IndexPlace
from shared.documents.versions import ChunkRange, GarbageVersion
from shared.errors import Permanent, Unavailable
from shared.jobs import sweeps
from shared.jobs.steps import Record
from shared.kinds.erase import EraseInput, EraseResult
from shared.tables import VectorIndex, Version
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.ingest.indexing import orphans, purge
from workers.retrieval.servers import store_of
from workers.rounds import Item, Round

log = logging.getLogger(__name__)

AT_ONCE_CHUNKS = 5000
"""Larger replaced versions are left to the sweeper."""
LIMIT = 10_000
PAGE_IDS = 1000
SLICE_CHUNKS = 500
ROWS_AT_ONCE = 5000


class Garbage:
    """The part of the sweeper that collects garbage; large versions take several rounds."""

    def __init__(self) -> None:
        self._done: dict[UUID, int] = {}

    def __call__(self, round_: Round) -> None:
        collect_garbage(round_.process, round_, self._done)


def collect_garbage(
    process: Process, round_: Round | None = None, done: dict[UUID, int] | None = None
) -> int:
    """Delete retired versions, and pending ones that no open job works on. Returns how many.

    All of them, or as many as the round allows. `done` has, for versions that are partly deleted,
    the first ordinal that still has a vector.
    """
    done = {} if done is None else done
    fine = [] if round_ is None else [~sweeps.is_left_alone(round_.part, "version", Version.id)]
    with process.ledger.begin() as session:
        garbage = erasure.retire_abandoned(
            session, *fine, limit=round_.limit_rows if round_ else LIMIT
        )
    for gone in done.keys() - {version.version_id for version in garbage}:
        del done[gone]
    count = 0
    for version in garbage:
        try:
            count += _collect_slowly(process, version, round_, done)
        except Unavailable:
            raise  # the store does not answer, for other versions neither
        except Exception as error:
            if round_ is None:
                raise
            round_.blame(Item(kind="version", id=version.version_id), error)
    return count


def _collect_slowly(
    process: Process, version: GarbageVersion, round_: Round | None, done: dict[UUID, int]
) -> bool:
    """Delete a version in slices; False if the round ends before it is deleted."""
    first = done.get(version.version_id, 0)
    while first < version.chunk_count:
        if round_ is not None and not round_.goes_on:
            return False
        end = min(first + SLICE_CHUNKS, version.chunk_count)
        part = ChunkRange(version_id=version.version_id, first=first, end=end)
        _delete(process, version.places, part.chunk_ids())
        done[version.version_id] = first = end
    deleted = ROWS_AT_ONCE
    while deleted == ROWS_AT_ONCE:
        if round_ is not None and not round_.goes_on:
            return False
        with process.ledger.begin() as session:
            deleted = erasure.remove_chunks(session, version.version_id, up_to=ROWS_AT_ONCE)
    with process.ledger.begin() as session:
        erasure.remove(session, [version.version_id])
    done.pop(version.version_id, None)
    return True


class StrayVectors:
    """The part of the sweeper that compares the store with the ledger, a few ids each round.

    A vector whose version the ledger does not have was written by a worker that came too late:
    its rows were erased or collected meanwhile. Ids that are not ours are left alone. What the
    store lacks is found by jobs of the kind `check`.
    """

    def __init__(self) -> None:
        self._name = ""
        self._offset = 0

    def __call__(self, round_: Round) -> None:
        left, begun_anew = round_.limit_rows, False
        fine = ~_is_left_alone(round_)
        while left > 0 and round_.goes_on:
            with round_.process.ledger.read() as session:
                index = indexes.next_index(session, self._name, fine, inclusive=self._offset > 0)
            if index is None:
                if begun_anew:
                    return
                self._name, self._offset, begun_anew = "", 0, True
                continue
            try:
                left -= max(1, self._look(round_.process, index, left))
            except Exception as error:
                # The next one is looked at all the same, now or in the next round.
                self._name, self._offset = index.stored_name, 0
                left -= 1
                _blame(round_, index, error)

    def _look(self, process: Process, index: VectorIndex, limit: int) -> int:
        name = index.stored_name
        offset = self._offset if name == self._name else 0
        page = StoredPage.read(process, index, limit=limit, offset=offset)
        if page.surplus:
            log.warning("%s vectors of %s belong to no chunk of it", len(page.surplus), name)
            store_of(process).delete(name, page.surplus)
        self._name = name
        is_full = page.count == limit
        self._offset = offset + page.count - len(page.surplus) if is_full else 0
        return page.count


@dataclass(frozen=True, kw_only=True)
class StoredPage:
    """Some of the ids that the store has of an index, by what the ledger says of them."""

    count: int
    surplus: list[str]
    """Of vectors that are not to be there (`indexes.surplus`)."""
    foreign: list[str]
    """That are no ids of chunks."""

    @classmethod
    def read(cls, process: Process, index: VectorIndex, *, limit: int, offset: int) -> "StoredPage":
        ids = store_of(process).id_page(index.stored_name, limit=limit, offset=offset)
        parsed = {id_: parse_chunk_id(id_) for id_ in ids}
        chunks = [chunk for chunk in parsed.values() if chunk is not None]
        with process.ledger.read() as session:
            surplus = indexes.surplus(session, index.collection_id, chunks)
        return cls(
            count=len(ids),
            surplus=[id_ for id_, chunk in parsed.items() if chunk in surplus],
            foreign=[id_ for id_, chunk in parsed.items() if chunk is None],
        )


def collect_replaced(process: Process, replaced: Sequence[GarbageVersion]) -> None:
    """Delete versions that have just been replaced, except those that are left to the sweeper."""
    small = [version for version in replaced if version.chunk_count <= AT_ONCE_CHUNKS]
    with process.ledger.read() as session:
        garbage = erasure.unused(session, small) if small else []
    collect(process, garbage)


def collect(process: Process, garbage: Iterable[GarbageVersion]) -> int:
    """Delete the vectors of these versions, verified, then their rows. Returns the number of
    vectors."""
    groups: dict[tuple[IndexPlace, ...], list[GarbageVersion]] = {}
    for version in garbage:
        groups.setdefault(tuple(version.places), []).append(version)
    vectors = 0
    for places, group in groups.items():
        ids = [id_ for version in group for id_ in version.chunk_ids()]
        vectors += _delete(process, places, ids)
        with process.ledger.begin() as session:
            erasure.remove(session, [version.version_id for version in group])
    return vectors


def _delete(process: Process, places: Iterable[IndexPlace], ids: Sequence[str]) -> int:
    return sum(store_of(process).delete(place.stored_name, ids) for place in places)


def delete_orphans(process: Process, place: IndexPlace, parts: Sequence[ChunkRange]) -> None:
    """Delete the vectors of those parts whose version is deleted or retired from an index.

    Also of retired versions: whoever deletes their rows may have looked for their vectors before
    these were written. Those that an export reads stay; they are deleted when it has ended.
    """
    with process.ledger.read() as session:
        needed = erasure.with_readers(session, {part.version_id for part in parts})
    ids = [id_ for part in parts if part.version_id not in needed for id_ in part.chunk_ids()]
    if ids:
        store_of(process).delete(place.stored_name, ids)


def drop_unless_in_ledger(process: Process, place: IndexPlace) -> None:
    """Delete a collection of the store if the ledger has no index for it."""
    with process.ledger.read() as session:
        if indexes.is_in_use(session, place):
            return
    _drop(process, place.stored_name)


def is_of_others(process: Process, stored_name: str) -> bool:
    """Whether a collection of the store is another program's: it has vectors, and none of a
    chunk. So it may be where an index was never filled, or was filled in another store."""
    count = 0
    while ids := store_of(process).id_page(stored_name, limit=PAGE_IDS, offset=count):
        if any(parse_chunk_id(id_) is not None for id_ in ids):
            return False
        count += len(ids)
    return count > 0


def _drop(process: Process, stored_name: str) -> int:
    """Drop a collection of the store unless it is another program's. Returns how many vectors it
    had."""
    if is_of_others(process, stored_name):
        log.warning("the collection %s stays in the store: Sluice has not filled it", stored_name)
        return 0
    return store_of(process).drop(stored_name)


# The `erase` step: documents or a whole collection are deleted from the ledger, the store and the
# lexical index, verified.
#
# Readers stop seeing the text with the first transaction. Rows are deleted last, in the transaction
# that records the step, so that an interrupted erasure is continued and nothing is left behind.
# Documents that do not exist are not counted.


def erase(context: Context) -> Done:
    input_ = context.input(EraseInput)
    if input_.collection is not None:
        return _erase_collection(context, input_.collection)
    return _erase_documents(context, input_.document_ids or [])


def _erase_documents(context: Context, ids: list[str]) -> Done:
    try:
        document_ids = [UUID(id_) for id_ in ids]
    except ValueError as error:
        raise Permanent("document_ids must be the ids that the document list gives.") from error
    removal = remove_documents(context, document_ids)
    return _done(removal.extent, removal.vectors, removal.record)


@dataclass(frozen=True, kw_only=True)
class Removal:
    """Documents that are hidden from readers and have no vectors any more; `record` deletes their
    rows."""

    extent: erasure.Extent
    vectors: int
    record: Record


def remove_documents(context: Context, document_ids: Sequence[UUID]) -> Removal:
    process = context.process
    with process.ledger.begin() as session:
        hidden = erasure.hide_documents(session, document_ids)
        extent = erasure.extent_of_documents(session, hidden)
        retired = erasure.garbage_of_documents(session, hidden)
        collection_ids = erasure.collections_of(session, hidden)
    vectors = 0
    for version in retired:
        context.check()
        vectors += _delete(process, version.places, version.chunk_ids())
    for collection_id in collection_ids:
        purge(process, collection_id, check=context.check)

    def delete_again() -> None:
        """Delete what an embedding step wrote meanwhile, whose rows are deleted now."""
        for garbage in retired:
            _delete(process, garbage.places, garbage.chunk_ids())

    def record(transaction: Transaction) -> None:
        erasure.delete_documents(transaction, hidden)
        transaction.after_commit(delete_again)

    return Removal(extent=extent, vectors=vectors, record=record)


def _erase_collection(context: Context, name: str) -> Done:
    process = context.process
    with process.ledger.begin() as session:
        collection_id = erasure.hide_collection(session, name)
        extent = erasure.extent_of_collection(session, collection_id)
        places = indexes.places_of(session, [collection_id]).get(collection_id, [])
    vectors = sum(_drop(process, place.stored_name) for place in places)

    def record(transaction: Transaction) -> None:
        erasure.delete_collection(transaction, collection_id)
        # What an ingest job has made in between.
        transaction.after_commit(drop_again)

    def drop_again() -> None:
        for place in places:
            drop_unless_in_ledger(process, place)

    return _done(extent, vectors, record)


def _done(
    extent: erasure.Extent,
    vectors: int,
    record: Record,
) -> Done:
    result = EraseResult(documents=extent.documents, chunks=extent.chunks, vectors=vectors)
    return Done(result=result.model_dump(), record=record)


class Leftovers:
    """What is left in Postgres of documents of a collection that were erased, and that nobody
    removes any more: versions and documents whose erasure has not ended for an hour, postings of
    versions that are gone. And the postings of collections that are gone, whichever they were."""

    def __init__(self, process: Process, collection_id: UUID, *, check: Callable[[], None]) -> None:
        self._process = process
        self._collection_id = collection_id
        self._check = check

    def count(self) -> int:
        with self._process.ledger.begin() as session:
            count = len(erasure.abandoned(session, self._collection_id, limit=LIMIT))
            count += len(erasure.empty_documents(session, self._collection_id))
            count += len(lexical.without_collection(session))
        return count + len(self._orphans(is_noted=False))

    def remove(self) -> int:
        """Returns how much there was."""
        process = self._process
        with process.ledger.read() as reading:
            garbage = erasure.abandoned(reading, self._collection_id, limit=LIMIT)
        for version in garbage:
            self._check()
            collect(process, [version])
        with process.ledger.begin() as session:
            empty = erasure.empty_documents(session, self._collection_id)
            erasure.remove_empty(session, empty)
            gone = lexical.without_collection(session)
            for collection_id in gone:
                lexical.delete_of_collection(session, collection_id)
            indexes.forget_gone(session, self._collection_id)
        orphaned = self._orphans(is_noted=True)
        purge(process, self._collection_id, check=self._check)
        return len(garbage) + len(empty) + len(gone) + len(orphaned)

    def _orphans(self, *, is_noted: bool) -> set[UUID]:
        return orphans(self._process, self._collection_id, check=self._check, is_noted=is_noted)


# Indexes that are no longer needed


def drop_indexes(round_: Round) -> None:
    """The part of the sweeper that drops indexes: retired ones after their time, and those whose
    jobs have ended without making them active. Not while the collection is exported, perhaps from
    one of them."""
    process = round_.process
    with process.ledger.begin() as session:
        indexes.retire_unfinished(session, keep_s=process.settings.retired_index_keep_s)
        is_due = (~_is_left_alone(round_), ~erasure.is_exported_index())
        due = indexes.due(session, *is_due, limit=round_.limit_rows)
    for index in due:
        if not round_.goes_on:
            return
        try:
            drop_index(process, index)
        except Exception as error:
            _blame(round_, index, error)


def drop_index(process: Process, index: VectorIndex) -> None:
    """Drop an index: its vectors first, its row last."""
    _drop(process, index.stored_name)
    with process.ledger.begin() as session:
        indexes.remove(session, index.id)


_INDEX: Final = "vector index"


def _is_left_alone(round_: Round) -> ColumnElement[bool]:
    return sweeps.is_left_alone(round_.part, _INDEX, VectorIndex.id)


def _blame(round_: Round, index: VectorIndex, error: Exception) -> None:
    """Note that an index cannot be handled. Raises Unavailable: that is no fault of an index."""
    if isinstance(error, Unavailable):
        raise error
    round_.blame(Item(kind=_INDEX, id=index.id), error)


# Documents of earlier jobs that a site or a folder no longer has


@dataclass(frozen=True, kw_only=True)
class MissingDocuments:
    names: list[str]
    warnings: list[str]
    record: Record
    """Deletes the rows of erased documents."""


def missing_documents(
    context: Context,
    collection_id: UUID,
    parent: str,
    *,
    existing: Set[str],
    is_erased: bool,
    max_share: float,
) -> MissingDocuments:
    """The documents that were read from `parent`, also in archives, whose file or page is not among
    the existing ones.

    With `is_erased` they are hidden from readers, unless they are more than `max_share` of all,
    which may have another reason.
    """
    with context.process.ledger.read() as session:
        live = remote.live_documents(session, collection_id, parent)
    missing = [document for document in live if document.origin not in existing]
    names = [document.source for document in missing]
    if not missing or not is_erased:
        return MissingDocuments(names=names, warnings=[], record=lambda _: None)
    if len(missing) > ceil(max_share * len(live)):
        warning = (
            f"{parent}: {len(missing):,} of {len(live):,} documents are no longer there, which "
            f"is more than a share of {max_share:g} (max_erased_share): none of them was erased."
        )
        return MissingDocuments(names=names, warnings=[warning], record=lambda _: None)
    removal = remove_documents(context, [document.document_id for document in missing])

    def record(transaction: Transaction) -> None:
        removal.record(transaction)
        origins = sorted({document.origin for document in missing})
        remote.forget(transaction, collection_id, origins)

    return MissingDocuments(names=names, warnings=[], record=record)


ERASE = Handler(run=erase)
