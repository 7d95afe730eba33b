"""The steps of an ingest job: plan, load, embed.

`plan` writes one item for each source and makes load steps of a few sources each; `load` reads,
splits and writes pending versions; `embed` writes vectors and makes versions live. A bad source
is one failed item, never a failed job. Each step may run any number of times.
"""

from collections.abc import Iterable, Iterator
from uuid import UUID

from sqlalchemy.orm import Session

from shared import collections, documents, files, items, jobs, versions
from shared.claims import Claim
from shared.document_models import Collection
from shared.errors import DocumentError, NotFound, Permanent
from shared.items import Outcome
from shared.payloads import IngestInput
from shared.queue import Queue
from shared.steps import NewStep
from shared.versions import Part, VersionState
from workers.ingest.collect import collect_replaced, delete_orphans, drop_unless_wanted
from workers.ingest.content import Order, make, read, source_name
from workers.ingest.outcomes import absorb_embed, absorb_load, finish, parts_of
from workers.ingest.vectors import write_vectors
from workers.ingest.writer import Writer
from workers.process import Process
from workers.step import Context, Done, Handler


def plan(context: Context) -> Done:
    """Name the sources and spread them over load steps."""
    job_id = context.claim.job_id
    process = context.process
    with process.ledger.read() as session:
        wanted = IngestInput.model_validate(jobs.get(session, job_id).input)
        collection = collections.get(session, wanted.collection)
        sources = [source.model_dump() for source in wanted.sources]
        uploads = files.of_sources(session, sources)
        names = [source_name(source, uploads) for source in sources]
    _make_in_store(process, collection)

    def record(session: Session) -> None:
        jobs.set_total(session, job_id, len(names), "documents")
        items.add_all(session, job_id, names)

    size = process.settings.load_step_documents
    children = [
        _load_step(range(first, min(first + size, len(names))))
        for first in range(0, len(names), size)
    ]
    return Done(children=children, record=record)


def _make_in_store(process: Process, collection: Collection) -> None:
    """Make the collection in Chroma. Raises NotFound where it was erased meanwhile.

    No transaction waits for Chroma. So an erasure may come in between; then what was made goes.
    """
    with process.ledger.begin() as session:
        collections.hold(session, collection.id)
    process.store.make(collection.name, collection.distance)
    try:
        with process.ledger.begin() as session:
            collections.hold(session, collection.id)
    except NotFound:
        drop_unless_wanted(process, collection.name)
        raise


def load(context: Context) -> Done:
    """Read and split the step's sources, write them as pending versions, order their embedding.

    After a failed attempt the step only breaks itself up, so that a source that kills its worker
    ends alone.
    """
    claim, process = context.claim, context.process
    ordinals: list[int] = claim.payload["ordinals"]
    if claim.attempt > 1 and len(ordinals) > 1:
        return Done(children=[_load_step([ordinal]) for ordinal in ordinals])
    with process.ledger.read() as session:
        order = Order.of_job(session, claim.job_id)
        todo = items.still_open(session, claim.job_id, ordinals)
        uploads = files.of_sources(session, [item.source for item in todo])
        names = [source_name(item.source, uploads) for item in todo]
        live = documents.live_hashes(session, order.collection_id, names)
    writer = Writer(context, order)
    for item, name in zip(todo, names, strict=True):
        context.check()
        try:
            if order.skip_existing and name in live:
                writer.add_skipped(item.ordinal)
                continue
            raw = read(process, order, item.source, uploads)
            # Asked before loading and splitting, which unchanged documents need not.
            if live.get(name) == raw.content_hash:
                writer.add_skipped(item.ordinal)
            else:
                writer.add(item.ordinal, make(process, order, raw))
        except (DocumentError, NotFound) as error:
            writer.add_failed(item.ordinal, error.message)
    writer.flush()
    with process.ledger.read() as session:
        written = [item.version_id for item in items.still_open(session, claim.job_id, ordinals)]
        counts = versions.chunk_counts(session, [v for v in written if v is not None])
    return Done(children=_embed_steps(counts, process.settings.embed_step_chunks))


def embed(context: Context) -> Done:
    """Write the vectors of the step's chunks, then make complete versions live."""
    claim, process = context.claim, context.process
    parts = parts_of(claim)
    if claim.attempt > 1 and len(parts) > 1:
        return Done(children=[_embed_step([part]) for part in parts])
    with process.ledger.read() as session:
        order = Order.of_job(session, claim.job_id)
    # Vectors whose version is gone must not stay, whatever happens from here on.
    context.on_lost.append(lambda: delete_orphans(process, order.collection, parts))
    try:
        cuts = write_vectors(context, order, parts)
    except Permanent:
        if len(parts) == 1:
            raise
        return Done(children=[_embed_step([part]) for part in parts])  # only one is to blame
    delete_orphans(process, order.collection, parts)
    noted: list[versions.Embedded] = []

    def record(session: Session) -> None:
        versions.lock_documents_of(session, [part.version_id for part in parts])
        noted[:] = [_note(session, claim, part) for part in parts]  # it may be run twice

    def after() -> None:
        if any(each.state in (None, VersionState.RETIRED) for each in noted):
            delete_orphans(process, order.collection, parts)
        collect_replaced(process, [each.replaced for each in noted if each.replaced])

    result = {
        "model": order.model,
        "cut": [[str(v), cut.chunks, cut.chunk_size] for v, cut in cuts.items()],
    }
    return Done(result=result if cuts else None, record=record, after=after)


def _note(session: Session, claim: Claim, part: Part) -> versions.Embedded:
    """Book a part's vectors, and the outcome of its document where that is now decided."""
    noted = versions.note_embedded(session, part)
    job_id, version_id = claim.job_id, part.version_id
    if noted.state is VersionState.LIVE:
        outcome, chunks = Outcome.ADDED, noted.chunk_count
        if noted.by_another:
            outcome, chunks = Outcome.SKIPPED, 0  # another job was first with the same content
        elif noted.replaced:
            outcome = Outcome.REPLACED
        items.settle_version(session, job_id, version_id, outcome, chunks=chunks)
    elif noted.state is VersionState.RETIRED and noted.superseded:
        items.settle_version(session, job_id, version_id, Outcome.SKIPPED)
    elif noted.state is not VersionState.PENDING:
        message = "The document was erased while it was ingested; ingest it again if need be."
        items.settle_version(session, job_id, version_id, Outcome.FAILED, message=message)
    return noted


def _load_step(ordinals: Iterable[int]) -> NewStep:
    return NewStep(name="ingest.load", queue=Queue.INGEST, payload={"ordinals": list(ordinals)})


def _embed_steps(counts: dict[UUID, int], size: int) -> list[NewStep]:
    """Steps of at most `size` chunks: small documents together, large ones in several parts."""
    steps: list[NewStep] = []
    batch: list[Part] = []
    room = size
    for part in _cut(counts, size):
        length = part.end - part.first
        if batch and length > room:
            steps.append(_embed_step(batch))
            batch, room = [], size
        batch.append(part)
        room -= length
    if batch:
        steps.append(_embed_step(batch))
    return steps


def _cut(counts: dict[UUID, int], size: int) -> Iterator[Part]:
    for version_id, count in counts.items():
        for first in range(0, count, size):
            yield Part(version_id=version_id, first=first, end=min(first + size, count))


def _embed_step(parts: list[Part]) -> NewStep:
    payload = {"parts": [[str(part.version_id), part.first, part.end] for part in parts]}
    return NewStep(name="ingest.embed", queue=Queue.EMBED, payload=payload)


PLAN = Handler(run=plan)
LOAD = Handler(run=load, absorb=absorb_load, finish=finish)
EMBED = Handler(run=embed, absorb=absorb_embed, finish=finish)
