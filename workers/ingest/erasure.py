"""Removes what readers no longer see: vectors first, rows last, so that nothing is forgotten."""

import logging
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from math import ceil
from uuid import UUID

from sqlalchemy import select

from shared.database.transaction import Transaction
from shared.documents import erasure, indexes, remote, versions
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
from workers.ingest.indexing import purge
from workers.retrieval.servers import store_of
from workers.rounds import Item, Round

log = logging.getLogger(__name__)

AT_ONCE_CHUNKS = 5000
"""Replaced versions beyond this are left to the sweeper, which has time."""
LIMIT = 10_000
SLICE_CHUNKS = 500
ROWS_AT_ONCE = 5000


class Garbage:
    """The part of the sweeper that collects garbage, that of large versions in several rounds."""

    def __init__(self) -> None:
        self._done: dict[UUID, int] = {}

    def __call__(self, round_: Round) -> None:
        collect_garbage(round_.process, round_, self._done)


def collect_garbage(
    process: Process, round_: Round | None = None, done: dict[UUID, int] | None = None
) -> int:
    """Collect retired versions, and pending ones that no open job works on. Returns how many.

    All of them, or as much as the round allows. `done` has, of versions that are half collected,
    the ordinal from which on there are vectors left.
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
            raise  # Chroma is away, and will be for the others
        except Exception as error:
            if round_ is None:
                raise
            round_.blame(Item(kind="version", id=version.version_id), error)
    return count


def _collect_slowly(
    process: Process, version: GarbageVersion, round_: Round | None, done: dict[UUID, int]
) -> bool:
    """Collect a version a slice at a time; False where the round ends before it is gone."""
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
    """The part of the sweeper that compares Chroma with the ledger, a few ids each round.

    A vector whose version the ledger does not have was written by a worker that came too late:
    its rows were erased or collected meanwhile. Ids that are not ours are left alone.
    """

    def __init__(self) -> None:
        self._name = ""
        self._offset = 0

    def __call__(self, round_: Round) -> None:
        left, begun_anew = round_.limit_rows, False
        while left > 0 and round_.goes_on:
            with round_.process.ledger.read() as session:
                place = indexes.next_place(session, self._name, inclusive=self._offset > 0)
            if place is None:
                if begun_anew:
                    return
                self._name, self._offset, begun_anew = "", 0, True
                continue
            left -= max(1, self._look(round_.process, place, left))

    def _look(self, process: Process, place: IndexPlace, limit: int) -> int:
        name = place.stored_name
        offset = self._offset if name == self._name else 0
        ids = store_of(process).id_page(name, limit=limit, offset=offset)
        by_id = {id_: parsed[0] for id_ in ids if (parsed := parse_chunk_id(id_))}
        version_ids = set(by_id.values())
        with process.ledger.read() as session:
            known = set(session.scalars(select(Version.id).where(Version.id.in_(version_ids))))
        stray = [id_ for id_, version_id in by_id.items() if version_id not in known]
        if stray:
            log.warning("%s vectors of %s have no version any more", len(stray), name)
            store_of(process).delete(name, stray)
        self._name = name
        self._offset = offset + len(ids) - len(stray) if len(ids) == limit else 0
        return len(ids)


def collect_replaced(process: Process, replaced: Sequence[GarbageVersion]) -> None:
    """Collect what has just been replaced, less what the sweeper has to leave for now."""
    small = [version for version in replaced if version.chunk_count <= AT_ONCE_CHUNKS]
    with process.ledger.read() as session:
        garbage = erasure.without_open_items(session, small) if small else []
    collect(process, garbage)


def collect(process: Process, garbage: Iterable[GarbageVersion]) -> int:
    """Delete the vectors of these versions, verified, then their rows. Returns the vectors."""
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
    """Delete the vectors of those parts from an index whose version is gone or retired.

    Of a retired one as well: its rows may be removed by who has looked for its vectors before.
    """
    with process.ledger.read() as session:
        current = versions.live_or_pending(session, {part.version_id for part in parts})
    ids = [id_ for part in parts if part.version_id not in current for id_ in part.chunk_ids()]
    if ids:
        store_of(process).delete(place.stored_name, ids)


def drop_unless_in_ledger(process: Process, place: IndexPlace) -> None:
    """Delete a collection of the store of which the ledger has no index (any more)."""
    with process.ledger.read() as session:
        if indexes.is_in_use(session, place):
            return
    store_of(process).drop(place.stored_name)


# The `erase` step: documents or a whole collection, out of both stores and of the lexical index,
# verified.
#
# Readers stop seeing the text in the first transaction. Rows go last, in the transaction that
# records the step, so that an interrupted erasure is taken up again with nothing forgotten.
# Documents that do not exist are not counted: they are as gone as they should be.


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
    """Documents that readers no longer see, whose vectors are gone; `record` deletes their rows."""

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
        """What an embedding step wrote in between, whose rows are now gone."""
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
    vectors = sum(store_of(process).drop(place.stored_name) for place in places)

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


# Indexes that nobody needs any more


def drop_indexes(round_: Round) -> None:
    """The part of the sweeper that drops indexes: replaced ones after their time, and those whose
    jobs have ended without making them active."""
    process = round_.process
    with process.ledger.begin() as session:
        indexes.retire_unfinished(session, keep_s=process.settings.retired_index_keep_s)
        due = indexes.due(session, limit=round_.limit_rows)
    for index in due:
        if not round_.goes_on:
            return
        try:
            drop_index(process, index)
        except Exception as error:
            round_.blame(Item(kind="vector index", id=index.id), error)


def drop_index(process: Process, index: VectorIndex) -> None:
    """Vectors first, the row last, so that nothing is forgotten."""
    store_of(process).drop(index.stored_name)
    with process.ledger.begin() as session:
        indexes.remove(session, index.id)


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
    """The documents that were read from `parent`, also in archives, and whose file or page is not
    among the existing ones.

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
