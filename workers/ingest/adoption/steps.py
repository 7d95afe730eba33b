"""The steps that adopt a collection of another program: its documents become items, then versions.

`ingest.adopt` makes an item of each document, `ingest.adopt_documents` writes them as pending
versions, and their vectors where these agree with the model of the collection; others are left to
`ingest.embed`. The origin is listed in pages, by metadata alone, and read document by document. An
attempt that was lost goes on with the items that it has written, and the vectors that are noted.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

import numpy as np

from shared.database.transaction import Transaction
from shared.documents import documents, ingest_items, versions
from shared.documents.documents import chunk_id
from shared.documents.ingest_items import Adoption, NewItem, OpenItem, Outcome
from shared.documents.versions import ChunkRange
from shared.errors import Cancelled, DocumentError
from shared.jobs import steps
from shared.jobs.steps import NewStep
from shared.kinds.ingest import ADOPT_DOCUMENTS_STEP
from shared.urls import CollectionUrl
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.ingest.adoption.contents import AdoptedContent, content_of, name_problem, place_of
from workers.ingest.adoption.opening import open_origin
from workers.ingest.adoption.origin import Origin, OriginChunk
from workers.ingest.erasure import delete_orphans
from workers.ingest.listing import absorb as absorb_expansion
from workers.ingest.sources import SAMPLE_CHARS, IngestRequest, sample
from workers.ingest.steps import (
    PAUSE_S,
    absorb_load,
    batches_of,
    embed_step,
    finish,
    measure_at_end,
    note_vectors,
    unread_scripts,
    write_vectors,
)
from workers.ingest.writer import Writer
from workers.models.devices import Vectors, unit
from workers.retrieval.embed import Embedder, embedders_of

DOCUMENTS_AT_ONCE: Final = 200
BATCHES_AT_ONCE: Final = 4
"""A step has no more documents, and not more chunks than fill so many embedding steps, unless one
document has."""
SAMPLED_CHUNKS: Final = 4
"""Of each batch, whose vectors are made anew to see whether they agree."""
AGREEMENT: Final = 0.99
"""The least cosine between two vectors of one model for one text. Precisions of numbers, and
spaces in the place of line ends, make less of a difference; other models a larger one."""


def adopt(context: Context) -> Done:
    """Make items of the documents of a collection, and steps that read them."""
    claim, process = context.claim, context.process
    ordinal: int = claim.payload["ordinal"]
    with process.ledger.read() as session:
        root = ingest_items.still_open(session, claim.job_id, [ordinal])
        is_listed = bool(ingest_items.names_below(session, claim.job_id, ordinal))
    if not root:
        return Done()
    if not is_listed:
        try:
            _write_items(context, root[0])
        except DocumentError as error:
            message = error.message

            def fail(transaction: Transaction) -> None:
                ingest_items.settle(transaction, claim.job_id, [ordinal], Outcome.FAILED, message)

            return Done(record=fail)
    limit = process.settings.max_job_chunks
    with process.ledger.read() as session:
        items = ingest_items.open_below(session, claim.job_id, ordinal, limit=limit)

    def record(transaction: Transaction) -> None:
        ingest_items.settle(transaction, claim.job_id, [ordinal], Outcome.LEFT_OUT)

    most_chunks = BATCHES_AT_ONCE * process.settings.embed_step_chunks
    return Done(children=list(_steps(items, most_chunks)), record=record)


def _steps(items: Sequence[OpenItem], most_chunks: int) -> Iterator[NewStep]:
    ordinals: list[int] = []
    chunks = 0
    for item in items:
        count = int(item.source["chunks"])
        if ordinals and (chunks + count > most_chunks or len(ordinals) == DOCUMENTS_AT_ONCE):
            yield _documents_step(ordinals)
            ordinals, chunks = [], 0
        ordinals.append(item.ordinal)
        chunks += count
    if ordinals:
        yield _documents_step(ordinals)


def _documents_step(ordinals: Sequence[int]) -> NewStep:
    payload = {"ordinals": list(ordinals)}
    return NewStep(name=ADOPT_DOCUMENTS_STEP, queue=Queue.INGEST, payload=payload)


@dataclass(kw_only=True)
class _Found:
    """A document of the origin, by what its chunks say."""

    chunks: int = 0
    where: dict[str, set[str]] = field(default_factory=dict)
    """The values of keys of which each chunk has one."""
    id: str | None = None
    """Of the only chunk of one without such a key, whose name it is."""


def _write_items(context: Context, root: OpenItem) -> None:
    """Raises DocumentError if the origin cannot be read, or has too much."""
    claim, process = context.claim, context.process
    url = CollectionUrl.read(root.source["url"])
    limit = process.settings.max_job_chunks
    found: dict[str, _Found] = {}
    failed: dict[str, str] = {}
    count = 0
    with open_origin(context, url) as origin:
        for page in origin.pages():
            context.check()
            count += len(page)
            if count > limit:
                raise DocumentError(
                    f"{url}: has more than {limit:,} chunks, which is what one job takes in. Raise "
                    "SLUICE_MAX_JOB_CHUNKS."
                )
            for chunk in page:
                _add(found, failed, chunk)
    shared = {"type": "adopted", "url": root.source["url"]}
    if root.source.get("metadata"):
        shared["metadata"] = root.source["metadata"]
    items = [
        NewItem(
            name=name,
            source={
                **shared,
                "name": name,
                "chunks": one.chunks,
                **({"id": one.id} if one.id is not None else {}),
                **({"where": {k: sorted(v) for k, v in one.where.items()}} if one.where else {}),
            },
        )
        for name, one in found.items()
    ]
    items += [NewItem(name=name, source=shared | {"chunks": 0}) for name in failed]
    if not items:
        raise DocumentError(f"{url}: has no chunks.")
    with process.ledger.begin() as session:
        if not steps.hold(session, claim):
            raise Cancelled
        ordinals = ingest_items.expand(session, claim.job_id, root.ordinal, items)
        messages = dict(zip(ordinals[len(found) :], failed.values(), strict=True))
        ingest_items.settle_failed(session, claim.job_id, messages)


def _add(found: dict[str, _Found], failed: dict[str, str], chunk: OriginChunk) -> None:
    place = place_of(chunk.metadata)
    name = chunk.id if place is None else place.name
    problem = name_problem(name)
    one = found.get(name)
    if problem is None and one is not None and (place is None) != (one.id is not None):
        problem = (
            f"{name}: is the name of a document, and the id of a chunk that names none. That chunk "
            "was not adopted; give it a `source`."
        )
        name = f"chunk {name}"
    if problem is not None:
        failed[name[:80]] = problem
        return
    if one is None:
        one = found[name] = _Found(id=None if place else chunk.id)
    one.chunks += 1
    if place is not None:
        one.where.setdefault(place.key, set()).add(place.value)


# Documents


def adopt_documents(context: Context) -> Done:
    """Read the documents of the step, write those that are new or have changed, and the vectors
    that agree. After a failed attempt the step is only divided, so that a document that kills its
    worker fails alone."""
    claim, process = context.claim, context.process
    ordinals: list[int] = claim.payload["ordinals"]
    if claim.counted_attempt > 1 and len(ordinals) > 1:
        return Done(children=[_documents_step([ordinal]) for ordinal in ordinals])
    with process.ledger.read() as session:
        request = IngestRequest.of_job(session, claim.job_id)
        items = ingest_items.still_open(session, claim.job_id, ordinals)
    if not items:
        return Done()
    if request.is_paused:
        return Done(again_in_s=PAUSE_S)
    embedder = embedders_of(process).get(request.model, check=context.check)
    request = replace(request, passage_prompt=embedder.passage_prompt)
    try:
        with open_origin(context, CollectionUrl.read(items[0].source["url"])) as origin:
            return _Adoption(context, request, items, embedder, origin).run()
    except DocumentError as error:  # the collection has gone
        message = error.message

        def fail(transaction: Transaction) -> None:
            ingest_items.settle(transaction, claim.job_id, ordinals, Outcome.FAILED, message)

        return Done(record=fail)


class _Adoption:
    """One run of a step."""

    def __init__(
        self,
        context: Context,
        request: IngestRequest,
        items: Sequence[OpenItem],
        embedder: Embedder,
        origin: Origin,
    ) -> None:
        self._context = context
        self._process = context.process
        self._request = request
        self._items = items
        self._embedder = embedder
        self._origin = origin
        self._reports: dict[int, Counter[Adoption]] = {}
        """What is written, by item."""
        self._again: dict[int, Counter[Adoption]] = {}
        """Chunks that are left to embedding steps, by item: written with these."""
        self._ids: dict[int, Sequence[str]] = {}
        """The ids that the chunks of each item have in the origin."""
        self._samples: dict[int, str] = {}
        self._chunk_counts: dict[UUID, int] = {}

    def run(self) -> Done:
        ordinals = self._write()
        children: list[NewStep] = []
        size = self._process.settings.embed_step_chunks
        for batch in batches_of(self._chunk_counts, size):
            self._context.check()
            if not self._write_vectors(batch, ordinals):
                children.append(embed_step(batch))

        def record(transaction: Transaction) -> None:
            for ordinal, counts in self._again.items():
                self._reports[ordinal] = self._reports[ordinal] + counts
            self._again.clear()  # it may run twice
            self._note_reports(transaction)
            transaction.after_commit(lambda: measure_at_end(self._context, self._request))

        return Done(
            result=unread_scripts(self._embedder, self._samples), children=children, record=record
        )

    # Versions

    def _write(self) -> dict[UUID, int]:
        """Write what is new as pending versions; returns the items of those versions, by these."""
        context, claim = self._context, self._context.claim
        names = {item.ordinal: str(item.source["name"]) for item in self._items}
        with self._process.ledger.read() as session:
            live = documents.live_hashes(session, self._request.collection_id, list(names.values()))
        writer = Writer(context, self._request)
        single = {
            chunk.id: chunk
            for chunk in self._origin.chunks(
                [item.source["id"] for item in self._items if "id" in item.source]
            )
        }
        for item in self._items:
            context.check()
            name = names[item.ordinal]
            if self._request.skip_existing and name in live:
                writer.add_skipped(item.ordinal)
                continue
            try:
                adopted = self._read(item, name, single)
                if live.get(name) == adopted.content.content_hash:
                    writer.add_skipped(item.ordinal)
                    continue
                writer.add(item.ordinal, adopted.content)
            except DocumentError as error:
                writer.add_failed(item.ordinal, error.message)
                continue
            self._ids[item.ordinal] = adopted.ids
            noted = item.source.get("report") or {}  # by an attempt before this one
            before = Counter({Adoption(key): count for key, count in noted.items()})
            self._reports[item.ordinal] = before | adopted.counts
            text = "\n".join(text for _, text, _ in adopted.content.chunks[:SAMPLED_CHUNKS])
            self._samples[item.ordinal] = sample(text, SAMPLE_CHARS // len(self._items))
        writer.add_record(self._note_reports)
        writer.flush()
        with self._process.ledger.read() as session:
            items = ingest_items.still_open(session, claim.job_id, list(self._ids))
        ordinals = {item.version_id: item.ordinal for item in items if item.version_id is not None}
        self._chunk_counts = {
            version_id: count
            for version_id, count in writer.chunk_counts.items()
            if version_id in ordinals
        }
        return ordinals

    def _read(self, item: OpenItem, name: str, single: Mapping[str, OriginChunk]) -> AdoptedContent:
        """Raises DocumentError for one that has gone, or cannot be a document."""
        request = self._request.of_source(item.source)
        settings = self._process.settings
        if "id" in item.source:
            chunk = single.get(item.source["id"])
            if chunk is None:
                raise DocumentError(f"{name}: is no longer there.")
            return content_of(name, [chunk], request, settings)
        return content_of(name, self._chunks(name, item.source["where"]), request, settings)

    def _chunks(self, name: str, where: Mapping[str, Sequence[str]]) -> Iterator[OriginChunk]:
        for key, values in where.items():
            for page in self._origin.having(key, values):
                self._context.check()
                for chunk in page:
                    # Another key may count before this one.
                    place = place_of(chunk.metadata)
                    if place is not None and (place.name, place.key) == (name, key):
                        yield chunk

    def _note_reports(self, session: Transaction) -> None:
        reports = {
            ordinal: {key.value: count for key, count in counts.items() if count}
            for ordinal, counts in self._reports.items()
        }
        ingest_items.report_adoption(session, self._context.claim.job_id, reports)

    # Vectors

    def _write_vectors(self, batch: Sequence[ChunkRange], ordinals: Mapping[UUID, int]) -> bool:
        """Write and note the vectors that the chunks have in the origin; False, and nothing is
        written, if the model of the collection gives others."""
        context, process, request = self._context, self._process, self._request
        with process.ledger.read() as session:
            lacking = versions.unembedded(session, batch)
        texts = {chunk_id(chunk.version_id, chunk.ordinal): chunk.text for chunk in lacking}
        # Others have vectors by an attempt before this one.
        of_versions = {chunk.version_id for chunk in lacking}
        batch = [part for part in batch if part.version_id in of_versions]
        if not batch:
            return True
        ids = {
            chunk_id(part.version_id, n): self._ids[ordinals[part.version_id]][n]
            for part in batch
            for n in range(part.first, part.end)
        }
        stored = self._origin.vectors(list(ids.values()))
        vectors = {own: stored[id_] for own, id_ in ids.items() if id_ in stored}
        given, reason = self._agreeing(texts, vectors)
        reports = self._reports if given else self._again
        for part in batch:
            report = reports.setdefault(ordinals[part.version_id], Counter())
            report.update(Adoption.KEPT if id_ in given else reason for id_ in part.chunk_ids())
        if not given:
            return False
        context.on_lost.append(lambda: delete_orphans(process, request.place, batch))
        embedded = write_vectors(context, request, batch, given)
        delete_orphans(process, request.place, batch)
        with process.ledger.begin() as session:
            if not steps.hold(session, context.claim):
                raise Cancelled
            self._note_reports(session)
            note_vectors(session, context, request, batch, embedded)
        context.on_lost.pop()
        return True

    def _agreeing(
        self, texts: Mapping[str, str], vectors: Mapping[str, Vectors]
    ) -> tuple[dict[str, Vectors], Adoption]:
        """The vectors that can be kept, of length 1; and why others cannot."""
        usable = {
            id_: vector
            for id_, vector in vectors.items()
            if id_ in texts
            and vector.shape == (self._embedder.dimension,)
            and np.isfinite(vector).all()
            and np.any(vector)
        }
        if not usable:
            shape = (self._embedder.dimension,)
            is_other = any(vector.shape != shape for vector in vectors.values())
            return {}, Adoption.OTHER_DIMENSION if is_other else Adoption.NO_VECTOR
        unit_vectors = dict(zip(usable, unit(np.stack(list(usable.values()))), strict=True))
        ids = list(unit_vectors)
        step = max(1, len(ids) // SAMPLED_CHUNKS)
        sampled = ids[::step][:SAMPLED_CHUNKS]
        own = self._embedder.encode([texts[id_] for id_ in sampled], between=self._context.check)
        cosines = np.sum(own * np.stack([unit_vectors[id_] for id_ in sampled]), axis=1)
        if cosines.min() < AGREEMENT:
            return {}, Adoption.OTHER_VECTORS
        return unit_vectors, Adoption.NO_VECTOR


ADOPT = Handler(run=adopt, absorb=absorb_expansion, finish=finish)
ADOPT_DOCUMENTS = Handler(run=adopt_documents, absorb=absorb_load, finish=finish)
