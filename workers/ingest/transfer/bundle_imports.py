"""The steps of an `import` job: a bundle becomes a collection, which nobody sees until it is whole.

The steps `import` check all of the bundle, part by part, before anything is written; then they make
the collection and write its documents. A step `import.part` for each part writes chunks and
vectors; these run side by side. With the last of them the collection is visible. Nothing is
embedded, so the model need not be there.
"""

import time
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from shared import files
from shared.database.transaction import Transaction
from shared.documents import collections, imports, indexes
from shared.documents.collections import Spec
from shared.errors import NotFound, Permanent
from shared.files import Storage
from shared.jobs import claims, jobs
from shared.jobs.steps import NewStep
from shared.kinds.bundle import IMPORT_PART_STEP, IMPORT_STEP, ImportInput, ImportResult
from shared.tables import File
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.ingest.transfer import given
from workers.ingest.transfer.bundle import Bundle, Position, StoredBundle, entry_name
from workers.retrieval.fusion import Tuning

UNIT: Final = "chunks"


def run(context: Context) -> Done:
    """Its payload is empty at first. Then it has the next `part`: it is to be checked if there is
    the `position` behind the parts before, else to have its documents written."""
    payload = context.claim.payload or {"part": 0, "position": Position().dump()}
    bundle = _open(context)
    if "position" in payload:
        return _check(context, bundle, payload)
    return _write_documents(context, bundle, payload["part"])


def _open(context: Context) -> Bundle:
    process, ids = context.process, context.input(ImportInput).file_ids
    with process.ledger.read() as session:
        by_id = {file.id: file for file in files.get_all(session, ids)}
    lacking = next((id_ for id_ in ids if id_ not in by_id), None)
    if lacking is not None:
        raise NotFound(f"There is no file {lacking} any more; send the bundle again.")
    objects = [item for id_ in ids for item in _objects(process.storage, by_id[id_])]
    return Bundle(StoredBundle(process.storage, objects), process.settings)


def _objects(storage: Storage, file: File) -> list[tuple[str, int]]:
    """Paths and sizes of what a file consists of. The storage is asked only where the ledger does
    not know: each step opens the bundle."""
    if file.parts is None:
        return [(file.path, file.size_bytes)]
    return [(path, storage.size(path)) for path in files.paths_of(file)]


def _name(context: Context, bundle: Bundle) -> str:
    return context.input(ImportInput).collection or bundle.manifest.collection.name


def _next(payload: Mapping[str, Any]) -> Done:
    return Done(children=[NewStep(name=IMPORT_STEP, queue=Queue.INGEST, payload=dict(payload))])


class _Time:
    """The time of a step."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ends = time.monotonic() + context.process.settings.bundle_step_s

    def is_up(self) -> bool:
        self._context.check()
        if time.monotonic() > self._ends:
            return True
        with self._context.process.ledger.read_single() as session:
            return claims.is_behind(session, self._context.claim)


def _check(context: Context, bundle: Bundle, payload: Mapping[str, Any]) -> Done:
    job_id, name, manifest = context.claim.job_id, _name(context, bundle), bundle.manifest
    with context.process.ledger.read() as session:
        if imports.find(session, job_id) is None:
            imports.require_free(session, name)
    number, position = payload["part"], Position(**payload["position"])
    left = _Time(context)
    while number < len(manifest.parts):
        position = position.behind(bundle.part(number), entry_name("chunks", number))
        number += 1
        if number < len(manifest.parts) and left.is_up():
            return _next({"part": number, "position": position.dump()})
    position.require_end(manifest)
    _begin(context, bundle, name)
    return _next({"part": 0})


def _begin(context: Context, bundle: Bundle, name: str) -> None:
    manifest, own = bundle.manifest, bundle.manifest.collection
    given.begin(
        context,
        name,
        Spec(
            embedding_model=manifest.embedding_model,
            dimension=manifest.dimension,
            distance=manifest.distance,
        ),
        display_name=own.display_name,
        metadata=own.metadata,
        expires_after_days=own.expires_after_days,
    )
    tuning = Tuning.load(manifest.tuning)
    with context.process.ledger.begin() as transaction:
        index = imports.hold(transaction, context.claim.job_id)
        if tuning is not None:
            indexes.note_tuning(transaction, index.id, tuning.dump())
        jobs.set_total(transaction, context.claim.job_id, manifest.chunks, UNIT)


def _write_documents(context: Context, bundle: Bundle, number: int) -> Done:
    count = len(bundle.manifest.parts)
    left = _Time(context)
    while number < count:
        lines = bundle.documents(number)
        given.write_documents(context, {line.number: line.document() for line in lines})
        number += 1
        if number < count and left.is_up():
            return _next({"part": number})
    return Done(
        children=[
            NewStep(name=IMPORT_PART_STEP, queue=Queue.INGEST, payload={"part": number})
            for number in range(count)
        ]
    )


def run_part(context: Context) -> Done:
    part = _open(context).part(context.claim.payload["part"])
    return Done(record=given.write_chunks(context, part.chunks, part.vectors))


def finish(session: Transaction, job_id: UUID) -> dict[str, Any]:
    """Make the collection visible. Raises Permanent if it is not whole."""
    index = imports.hold(session, job_id)
    if imports.count_incomplete(session, index.collection_id):
        raise Permanent("Some documents of the bundle lack chunks after the import.")
    collection = imports.publish(session, job_id)
    assert collection is not None
    summary = collections.summary(session, collection)
    result = ImportResult(
        collection=summary.name,
        embedding_model=summary.embedding_model,
        dimension=summary.dimension,
        documents=summary.documents,
        chunks=summary.chunks,
    )
    return result.model_dump(mode="json")


IMPORT = Handler(run=run, finish=finish)
IMPORT_PART = Handler(run=run_part, finish=finish)
