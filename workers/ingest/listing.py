"""The step `ingest.list`: the files below a folder become items of the job, for load steps to read.

A file is not read again if the storage reports the same ETag, or time and size, as before
(`shared/documents/remote.py`). Another attempt of the step continues with the items already
written.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from shared.bounds import nfc
from shared.database.transaction import Transaction
from shared.documents import containers, documents, ingest_items, remote
from shared.documents.ingest_items import NewItem, Outcome
from shared.errors import Cancelled, DocumentError
from shared.jobs import steps
from shared.jobs.claims import Claim
from shared.kinds.ingest import FolderSource
from workers.attempts.context import Context, Done, Handler
from workers.ingest.erasure import missing_documents
from workers.ingest.folders import Entry, list_files
from workers.ingest.sources import IngestRequest
from workers.ingest.steps import finish, load_step
from workers.retrieval.embed import embedders_of
from workers.servers.pulls import on_demand

AT_ONCE: Final = 1000
_OWN: Final = frozenset(
    {"type", "url", "state", "max_documents", "on_vanished", "max_erased_share"}
)


def list_folder(context: Context) -> Done:
    claim, process = context.claim, context.process
    ordinal: int = claim.payload["ordinal"]
    with process.ledger.read() as session:
        options = IngestRequest.of_job(session, claim.job_id)
        root = ingest_items.still_open(session, claim.job_id, [ordinal])
    if not root:
        return Done()
    source = root[0].source
    folder = FolderSource.model_validate({k: v for k, v in source.items() if k != "state"})
    embedder = embedders_of(process).get(options.model, check=context.check)
    own = replace(options.of_source(source), passage_prompt=embedder.passage_prompt)
    if "state" not in source:
        try:
            source = _write_items(context, own, folder, source)
        except DocumentError as error:
            message = error.message

            def fail(transaction: Transaction) -> None:
                ingest_items.settle(transaction, claim.job_id, [ordinal], Outcome.FAILED, message)

            return Done(record=fail)
    state: dict[str, Any] = source["state"]
    limit = folder.max_documents
    with process.ledger.read() as session:
        existing = set(ingest_items.names_below(session, claim.job_id, ordinal))
        items = ingest_items.open_below(session, claim.job_id, ordinal, limit=limit)
    warnings = list(state["warnings"])
    missing = None
    if state["is_whole"]:
        missing = missing_documents(
            context,
            own.collection_id,
            folder.url,
            existing=existing,
            is_erased=folder.on_vanished == "erase",
            max_share=folder.max_erased_share,
        )
        warnings += missing.warnings
        state["vanished"] = missing.names

    def record(transaction: Transaction) -> None:
        if missing is not None:
            missing.record(transaction)
        ingest_items.note_source(transaction, claim.job_id, ordinal, source)
        ingest_items.settle(transaction, claim.job_id, [ordinal], Outcome.LEFT_OUT)

    size, ordinals = process.settings.load_step_documents, [item.ordinal for item in items]
    children = [
        load_step(ordinals[first : first + size]) for first in range(0, len(ordinals), size)
    ]
    return Done(children=children, record=record, warnings=warnings)


def _write_items(
    context: Context, options: IngestRequest, folder: FolderSource, source: dict[str, Any]
) -> dict[str, Any]:
    """Write an item for each file of a folder; returns the source with what was listed. Raises
    DocumentError and Unavailable."""
    claim, process = context.claim, context.process
    ordinal: int = claim.payload["ordinal"]
    listing = list_files(
        folder.url,
        folder.max_documents,
        process.settings,
        context.check,
        requested=options.options.requested,
    )
    same = _unchanged(context, options, listing.entries)
    kept = {key: value for key, value in source.items() if key not in _OWN}
    parts = [
        NewItem(
            name=nfc(entry.url),
            source={
                **kept, "type": "object", "url": entry.url, "validator": entry.validator,
                "folder": folder.url,
            },
        )
        for entry in listing.entries
    ]  # fmt: skip
    state = {
        "is_whole": listing.has_all,
        "warnings": listing.warnings(folder.url, folder.max_documents),
    }
    noted = source | {"state": state}
    with process.ledger.begin() as session:
        if not steps.hold(session, claim):
            raise Cancelled
        ingest_items.note_source(session, claim.job_id, ordinal, noted)
        ordinals = ingest_items.expand(session, claim.job_id, ordinal, parts)
        numbered = list(zip(ordinals, listing.entries, strict=True))
        twins = _twins(listing.entries)
        ingest_items.settle_failed(
            session, claim.job_id, {n: twins[e.url] for n, e in numbered if e.url in twins}
        )
        skipped = [n for n, entry in numbered if entry.url in same]
        ingest_items.settle(session, claim.job_id, skipped, Outcome.SKIPPED)
    return noted


def _twins(entries: Sequence[Entry]) -> dict[str, str]:
    """URL -> error, for files whose documents would have the same name."""
    counts = Counter(nfc(entry.url) for entry in entries)
    return {
        entry.url: f"{nfc(entry.url)} stands for {counts[nfc(entry.url)]} files, whose names look "
        "alike and differ in how Unicode writes their characters (NFC, NFD). None of them was "
        "ingested; rename or delete one of them."
        for entry in entries
        if counts[nfc(entry.url)] > 1
    }


def _unchanged(context: Context, options: IngestRequest, entries: list[Entry]) -> set[str]:
    """The URLs of files whose live documents are up to date."""
    recipe, same = options.recipe("object"), set()
    for first in range(0, len(entries), AT_ONCE):
        context.check()
        some = entries[first : first + AT_ONCE]
        names = [nfc(entry.url) for entry in some]
        with context.process.ledger.read() as session:
            known = remote.origins(session, options.collection_id, names)
            live = documents.live_hashes(session, options.collection_id, names)
            read = containers.content_hashes(session, options.collection_id, names)
        for entry, name in zip(some, names, strict=True):
            origin, current = known.get(name), read.get(name, live.get(name))
            is_same = (
                current is not None
                and origin is not None
                and (
                    (origin.etag, origin.recipe, origin.content_hash)
                    == (entry.validator, recipe, current)
                )
            )
            if is_same or (options.skip_existing and name in live):
                same.add(entry.url)
    return same


def absorb(session: Transaction, claim: Claim, message: str) -> None:
    ordinal = claim.payload["ordinal"]
    ingest_items.settle_below(session, claim.job_id, ordinal, Outcome.FAILED, message)
    ingest_items.settle(session, claim.job_id, [ordinal], Outcome.FAILED, message)


LIST = Handler(run=on_demand(list_folder), absorb=absorb, finish=finish)
