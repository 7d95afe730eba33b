"""Removes what readers no longer see: vectors first, rows last, so that nothing is forgotten."""

from collections.abc import Iterable, Sequence

from shared import remains, versions
from shared.versions import Part, Remains
from workers.process import Process

BATCH_VERSIONS = 200


def collect_forsaken(process: Process) -> int:
    """Collect retired versions, and pending ones that no open job works on. Returns how many."""
    with process.ledger.begin() as session:
        found = remains.forsaken(session, limit=BATCH_VERSIONS)
    collect(process, found)
    return len(found)


def collect_replaced(process: Process, replaced: Sequence[Remains]) -> None:
    """Collect what has just been replaced, less what the sweeper has to leave for now."""
    with process.ledger.read() as session:
        found = remains.unawaited(session, replaced) if replaced else []
    collect(process, found)


def collect(process: Process, found: Iterable[Remains]) -> int:
    """Delete the vectors of these versions, verified, then their rows. Returns the vectors."""
    by_collection: dict[str, list[Remains]] = {}
    for each in found:
        by_collection.setdefault(each.collection, []).append(each)
    vectors = 0
    for collection, group in by_collection.items():
        ids = [id_ for each in group for id_ in each.chunk_ids()]
        vectors += process.store.delete(collection, ids)
        with process.ledger.begin() as session:
            remains.remove(session, [each.version_id for each in group])
    return vectors


def delete_orphans(process: Process, collection: str, parts: Sequence[Part]) -> None:
    """Delete the vectors of those parts whose version is gone or retired.

    Of a retired one as well: its rows may be removed by who has looked for its vectors before.
    """
    with process.ledger.read() as session:
        wanted = versions.wanted(session, {part.version_id for part in parts})
    ids = [id_ for part in parts if part.version_id not in wanted for id_ in part.chunk_ids()]
    if ids:
        process.store.delete(collection, ids)
