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

from shared.bounds import nfc
from shared.database.transaction import Transaction
from shared.documents import documents, ingest_items, versions
from shared.documents.documents import chunk_id
from shared.documents.ingest_items import Adoption, NewItem, OpenItem, Outcome
from shared.documents.versions import ChunkRange
from shared.errors import Cancelled, DocumentError, Permanent
from shared.jobs import steps
from shared.jobs.steps import NewStep
from shared.kinds.ingest import ADOPT_DOCUMENTS_STEP
from shared.urls import CollectionUrl
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.ingest.adoption.contents import (
    AdoptedContent,
    content_of,
    name_problem,
    place_of,
    text_of,
)
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
    lost,
    measure_at_end,
    note_vectors,
    unread_scripts,
    write_vectors,
)
from workers.ingest.writer import Writer
from workers.models.devices import Vectors, unit
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.store import DamagedCollection, MissingCollection
from workers.servers.pulls import on_demand
from workers.servers.server import ModelMissing

DOCUMENTS_AT_ONCE: Final = 200
BATCHES_AT_ONCE: Final = 4
"""A step has no more documents, and not more chunks than fill so many embedding steps, unless one
document has."""
CHUNKS_AT_ONCE: Final = 256
"""Documents are read together up to so many chunks."""
FAILED_NAME_CHARS: Final = 80
LEAST_LENGTH: Final = 1e-12
"""Of a vector; shorter ones are zeros but for rounding."""
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


def _groups(items: Sequence[OpenItem]) -> Iterator[list[OpenItem]]:
    group: list[OpenItem] = []
    chunks = 0
    for item in items:
        count = int(item.source["chunks"])
        if group and chunks + count > CHUNKS_AT_ONCE:
            yield group
            group, chunks = [], 0
        group.append(item)
        chunks += count
    if group:
        yield group


def _documents_step(ordinals: Sequence[int]) -> NewStep:
    payload = {"ordinals": list(ordinals)}
    return NewStep(name=ADOPT_DOCUMENTS_STEP, queue=Queue.INGEST, payload=payload)


@dataclass(kw_only=True)
class _Found:
    """A document that chunks of the origin name."""

    chunks: int = 0
    where: dict[str, set[str]] = field(default_factory=dict)
    """The values of keys of which each chunk has one."""


def _write_items(context: Context, root: OpenItem) -> None:
    """Raises DocumentError if the origin cannot be read, or has too much."""
    claim, process = context.claim, context.process
    url = CollectionUrl.read(root.source["url"])
    limit = process.settings.max_job_chunks
    listing = _Listing()
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
                listing.add(chunk)
    listing.end()
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
                "where": {key: sorted(values) for key, values in one.where.items()},
            },
        )
        for name, one in listing.documents.items()
    ]
    items += [
        NewItem(name=name, source={**shared, "name": name, "chunks": 1, "id": id_})
        for name, id_ in listing.single.items()
    ]
    count = len(items)
    items += [
        NewItem(name=name[:FAILED_NAME_CHARS], source=shared | {"chunks": 0})
        for name in listing.failed
    ]
    if not items:
        raise DocumentError(f"{url}: has no chunks.")
    with process.ledger.begin() as session:
        if not steps.hold(session, claim):
            raise Cancelled
        ordinals = ingest_items.expand(session, claim.job_id, root.ordinal, items)
        messages = dict(zip(ordinals[count:], listing.failed.values(), strict=True))
        ingest_items.settle_failed(session, claim.job_id, messages)


class _Listing:
    """The documents of an origin, by what its chunks say."""

    def __init__(self) -> None:
        self.documents: dict[str, _Found] = {}
        self.single: dict[str, str] = {}
        """The ids of chunks that name no document, by the names that these give them."""
        self.failed: dict[str, str] = {}
        """What cannot be adopted, with the reasons."""

    def add(self, chunk: OriginChunk) -> None:
        place = place_of(chunk.metadata)
        name = nfc(chunk.id) if place is None else place.name
        problem = name_problem(name)
        if problem is not None:
            self.failed[name] = problem
        elif place is not None:
            one = self.documents.setdefault(name, _Found())
            one.chunks += 1
            one.where.setdefault(place.key, set()).add(place.value)
        elif name in self.single:
            self._fail(chunk.id, name, "the id of another chunk that names no document")
        else:
            self.single[name] = chunk.id

    def end(self) -> None:
        """Let chunks without a document not be taken for parts of one that is called as they."""
        for name in self.single.keys() & self.documents.keys():
            self._fail(self.single.pop(name), name, "the name of a document")

    def _fail(self, id_: str, name: str, what: str) -> None:
        self.failed[f"chunk {id_}"] = (
            f"chunk {name}: has no `source`, and its id is {what}, too. It was not adopted; give "
            "it a `source`."
        )


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
    except (MissingCollection, DamagedCollection) as error:
        raise lost(process, request, error) from error
    except ModelMissing:
        raise
    except Permanent:
        if len(items) == 1:
            raise
        # One of them is the cause.
        return Done(children=[_documents_step([item.ordinal]) for item in items])
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
        unread: list[OpenItem] = []
        for item in self._items:
            if self._request.skip_existing and names[item.ordinal] in live:
                writer.add_skipped(item.ordinal)
            else:
                unread.append(item)
        for group in _groups(unread):
            chunks = self._chunks(group)
            for item in group:
                context.check()
                name = names[item.ordinal]
                try:
                    adopted = self._read(item, name, chunks.pop(item.ordinal, ()))
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

    def _read(self, item: OpenItem, name: str, chunks: Sequence[OriginChunk]) -> AdoptedContent:
        """Raises DocumentError for one that has gone, or cannot be a document."""
        if not chunks:
            raise DocumentError(f"{name}: is no longer there.")
        request = self._request.of_source(item.source)
        return content_of(name, chunks, request, self._process.settings)

    def _chunks(self, items: Sequence[OpenItem]) -> dict[int, list[OriginChunk]]:
        """The chunks of these items, by their ordinals; of one with more than a document may have,
        only so many that this is seen."""
        settings = self._process.settings
        chunks: dict[int, list[OriginChunk]] = {}
        chars: Counter[int] = Counter()

        def add(ordinal: int, chunk: OriginChunk) -> None:
            own = chunks.setdefault(ordinal, [])
            is_small = chars[ordinal] <= settings.max_document_chars
            if is_small and len(own) <= settings.max_document_chunks:
                own.append(chunk)
                chars[ordinal] += len(chunk.text or "")

        by_id = {item.source["id"]: item.ordinal for item in items if "id" in item.source}
        for chunk in self._origin.chunks(list(by_id)):
            add(by_id[chunk.id], chunk)
        by_name = {item.source["name"]: item.ordinal for item in items if "where" in item.source}
        values: dict[str, set[str]] = {}
        for item in items:
            for key, some in item.source.get("where", {}).items():
                values.setdefault(key, set()).update(some)
        for key in sorted(values):
            for page in self._origin.having(key, sorted(values[key])):
                self._context.check()
                for chunk in page:
                    place = place_of(chunk.metadata)
                    # Another key may count before this one.
                    if place is not None and place.key == key and place.name in by_name:
                        add(by_name[place.name], chunk)
        return chunks

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
        vectors = {
            own: stored[id_].vector
            for own, id_ in ids.items()
            # Not the vector of another text that was written since the chunk was read.
            if id_ in stored and own in texts and text_of(stored[id_].text) == texts[own]
        }
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
        # In 64 bits the squares of all numbers of 32 bits have a sum.
        lengths = {id_: np.linalg.norm(row.astype(np.float64)) for id_, row in vectors.items()}
        usable = {
            id_: vector.astype(np.float64)
            for id_, vector in vectors.items()
            if vector.shape == (self._embedder.dimension,)
            and np.isfinite(lengths[id_])
            and lengths[id_] > LEAST_LENGTH
        }
        if not usable:
            shape = (self._embedder.dimension,)
            is_other = any(vector.shape != shape for vector in vectors.values())
            return {}, Adoption.OTHER_DIMENSION if is_other else Adoption.NO_VECTOR
        rows = unit(np.stack(list(usable.values()))).astype(np.float32)
        unit_vectors = dict(zip(usable, rows, strict=True))
        ids = list(unit_vectors)
        step = max(1, len(ids) // SAMPLED_CHUNKS)
        sampled = ids[::step][:SAMPLED_CHUNKS]
        own = self._embedder.encode([texts[id_] for id_ in sampled], between=self._context.check)
        cosines = np.sum(own * np.stack([unit_vectors[id_] for id_ in sampled]), axis=1)
        if cosines.min() < AGREEMENT:
            return {}, Adoption.OTHER_VECTORS
        return unit_vectors, Adoption.NO_VECTOR


ADOPT = Handler(run=adopt, absorb=absorb_expansion, finish=finish)
ADOPT_DOCUMENTS = Handler(run=on_demand(adopt_documents), absorb=absorb_load, finish=finish)
