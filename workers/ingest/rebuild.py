"""The steps of a `rebuild` job: fill another vector index, compare it, make it active.

The index is filled from Postgres, document by document, in passes; each pass embeds what became
live during the one before. When little is left, both indexes are compared. Then ingestion waits for
some seconds, while the rest is filled and the index becomes the active one. A step ends after
SLUICE_REBUILD_STEP_S, or as soon as a step of a higher lane waits; the next one continues from its
cursor. Chunks that the ledger notes as embedded are not embedded again, whatever process was
killed.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import numpy as np

from shared.bounds import shown
from shared.documents import checks, collections, documents, indexes
from shared.documents.documents import ChunkView
from shared.documents.indexes import IndexPlace, Lack, Position
from shared.documents.versions import ChunkRange
from shared.errors import Cancelled, ConfigurationError, InvalidInput, NotFound, Permanent
from shared.jobs import jobs, steps
from shared.jobs.steps import NewStep
from shared.kinds.eval import JudgedQuery
from shared.kinds.rebuild import STEP, IndexComparison, RebuildInput, RebuildResult
from shared.kinds.search import Hit
from shared.models.embedding_models import canonical
from shared.tables import Collection, VectorIndex
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.ingest.erasure import drop_unless_in_ledger, is_of_others
from workers.ingest.index_vectors import (
    StepTime,
    compare,
    read_position,
    require_dimension,
    write_vectors,
    written_position,
)
from workers.retrieval.embed import embedders_of
from workers.retrieval.lexical import lexical_of
from workers.retrieval.measures import judge
from workers.retrieval.servers import store_of
from workers.retrieval.store import DamagedCollection, MissingCollection
from workers.retrieval.tuning import (
    SAMPLED_CHUNKS,
    IndexFacts,
    SampledChunk,
    pseudo_queries,
    tuning_of,
)
from workers.servers.pulls import on_demand

log = logging.getLogger(__name__)

UNIT = "chunks"
CLOSING_CHUNKS: Final = 1000
"""A pass that embeds no more than this is the last one before ingestion waits."""
PASSES: Final = 4
"""The greatest number of passes: ingestion may be faster than a rebuild."""
SEARCHES_END_S: Final = 600.0
"""How long an index stays that no rollback needs: searches that have begun still read it."""
LACKS_AT_ONCE: Final = 500


def rebuild(context: Context) -> Done:
    input_ = context.input(RebuildInput)
    process, claim = context.process, context.claim
    with process.ledger.begin() as session:
        collection, active = collections.get_with_index(session, input_.collection)
        if active.job_id == claim.job_id:  # an earlier attempt has completed it
            return _done(context, collection, active, claim.payload)
        collections.hold(session, collection.id, alone=True)
        if input_.rollback:
            index = indexes.begin_rollback(session, collection.id, claim.job_id)
        else:
            index = indexes.begin(
                session,
                collection.id,
                collection.name,
                claim.job_id,
                embedding_model=canonical(input_.model or active.embedding_model),
                distance=active.distance,
            )
    work = _Rebuild(context, input_, collection, active, index)
    try:
        return work.run(claim.payload)
    except MissingCollection as error:
        with process.ledger.read() as session:
            collections.get(session, input_.collection)  # it may have been erased
        raise Permanent(
            f"The store has lost the new vectors of {input_.collection!r} while they were made. "
            "Rebuild the collection again."
        ) from error


def _next(payload: Mapping[str, Any]) -> Done:
    return Done(children=[NewStep(name=STEP, queue=Queue.EMBED, payload=dict(payload))])


class _Rebuild:
    """One step of a rebuild.

    Its payload has `after`, the document from which it continues (in pass 0, which compares, a
    position), `pass`, the number of the pass, and `chunks`, how many of them this pass has
    embedded; at the end also `comparison`.
    """

    def __init__(
        self,
        context: Context,
        input_: RebuildInput,
        collection: Collection,
        active: VectorIndex,
        index: VectorIndex,
    ) -> None:
        self._context = context
        self._process = context.process
        self._input = input_
        self._collection = collection
        self._active = active
        self._index = index
        self._place = IndexPlace.of(index)
        self._time = StepTime(context)

    def run(self, payload: Mapping[str, Any]) -> Done:
        if not payload:
            self._begin()
            payload = {"pass": 0 if self._is_begun() else 1, "chunks": 0, "after": None}
        payload = {**payload, "before": self._active.embedding_model}
        if "comparison" in payload:
            return self._close(payload)
        number, chunks = payload["pass"], payload["chunks"]
        if number == 0:
            position = self._check(read_position(payload["after"]))
            if position is not None:
                return _next(payload | {"after": written_position(position)})
        else:
            after = UUID(payload["after"]) if payload["after"] else None
            after, count = self._fill(after, is_repeated=number > 1)
            chunks += count
            if after is not None:
                return _next(payload | {"after": str(after), "chunks": chunks})
        if number == 0 or (chunks > CLOSING_CHUNKS and number < PASSES):
            return _next(payload | {"after": None, "pass": number + 1, "chunks": 0})
        comparison = self._compare()
        self._require_quality(comparison)
        self._measure()
        return _next(payload | {"comparison": comparison and comparison.model_dump(mode="json")})

    def _begin(self) -> None:
        """Make the index in the store, and set the total of the progress. Raises NotFound if the
        collection was erased."""
        embedder = embedders_of(self._process).get(
            self._index.embedding_model, check=self._context.check
        )
        if not self._input.rollback:
            self._make()
        try:
            with self._process.ledger.begin() as session:
                collections.hold(session, self._collection.id)
                dimension = indexes.fix_dimension(session, self._index.id, embedder.dimension)
                lacking = indexes.count_lacking(session, self._index)
                jobs.set_total(session, self._context.claim.job_id, lacking, UNIT)
        except NotFound:
            drop_unless_in_ledger(self._process, self._place)
            raise
        require_dimension(embedder, self._index, dimension)

    def _make(self) -> None:
        """Make the index in the store. What lies there under its name, while nothing is noted of
        it, is of an index that was forgotten, or of an attempt that ended before its first note.
        Raises Permanent if it is somebody else's."""
        store, name = store_of(self._process), self._place.stored_name
        with self._process.ledger.read() as session:
            is_begun = indexes.has_notes(session, self._index.id)
        if not is_begun:
            if is_of_others(self._process, name):
                raise Permanent(
                    f"The store has a collection {name!r} already, which Sluice has not made. "
                    "Rename or delete it there, and rebuild the collection again."
                )
            store.drop(name)
        store.make(name, self._index.distance)

    def _is_begun(self) -> bool:
        """Whether an index was filled before: one to go back to, or what another job has left. The
        store may have lost a part of it since."""
        with self._process.ledger.read() as session:
            return indexes.has_notes(session, self._index.id)

    # Filling

    def _fill(self, after: UUID | None, *, is_repeated: bool) -> tuple[UUID | None, int]:
        """Embed chunks that the index lacks, until the time of the step is up. Returns the document
        from which the next step continues, None at the end; and the number of chunks."""
        count = 0
        while True:
            page, after_page = self._page(after)
            if not page:
                return None, count
            self._embed(page, is_repeated=is_repeated)
            count += sum(part.end - part.first for part in page)
            after = after_page
            # A document may lack more than a page; the next step then begins with it.
            if self._time.is_over:
                return after or UUID(int=0), count

    def _page(self, after: UUID | None) -> tuple[list[ChunkRange], UUID | None]:
        """The next chunks to embed, and the document before the last of theirs."""
        with self._process.ledger.read() as session:
            lacks = indexes.lacks(session, self._index, after=after, limit=LACKS_AT_ONCE)
        room = self._process.settings.embed_step_chunks
        parts: list[ChunkRange] = []
        last: Lack | None = None
        for lack in lacks:
            if room <= 0:
                break
            if last is not None and lack.document_id != last.document_id:
                after = last.document_id
            last = lack
            end = min(lack.end, lack.first + room)
            parts.append(ChunkRange(version_id=lack.version_id, first=lack.first, end=end))
            room -= end - lack.first
        return parts, after

    def _embed(self, parts: Sequence[ChunkRange], *, is_repeated: bool) -> None:
        context = self._context
        write_vectors(context, self._index, parts)
        count = sum(part.end - part.first for part in parts)
        with self._process.ledger.begin() as session:
            if not steps.hold(session, context.claim):
                raise Cancelled
            indexes.note(session, self._index.id, [(p.version_id, p.first, p.end) for p in parts])
            if is_repeated:
                jobs.extend_total(session, context.claim.job_id, count)
            jobs.advance(session, context.claim.job_id, count)

    def _check(self, position: Position | None) -> Position | None:
        """Check that the store still has the vectors that are noted of an index that was filled
        before, until the time of the step is up. Returns where the next step continues, None at
        the end. Raises Permanent if the whole index is lost."""
        while True:
            self._context.check()
            with self._process.ledger.read() as session:
                parts, position = indexes.noted(
                    session, self._index.id, position=position, chunks=LACKS_AT_ONCE
                )
            ranges = [
                ChunkRange(version_id=part.version_id, first=part.first, end=part.end)
                for part in parts
            ]
            try:
                page = compare(self._process, self._index, ranges)
            except (MissingCollection, DamagedCollection) as error:
                raise Permanent(
                    f"The store has lost the index that {self._input.collection!r} would go back "
                    f"to. Rebuild it: its model was {self._index.embedding_model!r}."
                ) from error
            if lost := sorted(page.missing | page.stale):
                with self._process.ledger.begin() as session:
                    indexes.note_lost(session, self._index.id, lost)
                    jobs.extend_total(session, self._context.claim.job_id, len(lost))
            if position is None or self._time.is_over:
                return position

    # Comparing

    def _compare(self) -> IndexComparison | None:
        """Search in both indexes. None if there are no queries and none can be made."""
        queries, answers = self._queries()
        if not queries:
            return None
        k = self._input.k
        rows = self._best(self._index, queries, k)
        assert rows is not None
        before = self._best(self._active, queries, k)
        overlap = None
        if before is not None:
            pairs = zip(rows, before, strict=True)
            overlap = round(float(np.mean([_overlap(new, old) for new, old in pairs])), 4)
        return IndexComparison(
            queries=len(queries),
            are_judged=bool(self._input.queries),
            k=k,
            overlap=overlap,
            recall=self._recall(answers, rows),
            recall_before=None if before is None else self._recall(answers, before),
        )

    def _measure(self) -> None:
        """Measure the tuning of the index, for which the first hybrid search would wait else."""
        check = self._context.check
        result = lexical_of(self._process).search(self._collection.id, "", limit=1)
        embedder = embedders_of(self._process).get(self._index.embedding_model, check=check)
        facts = IndexFacts.of(self._collection, self._index)
        tuning_of(self._process, facts, embedder, result, check=check)

    def _queries(self) -> tuple[list[str], list[JudgedQuery]]:
        if self._input.queries:
            return [judged.query for judged in self._input.queries], self._input.queries
        result = lexical_of(self._process).search(self._collection.id, "", limit=1)
        ids = result.sample(SAMPLED_CHUNKS)
        with self._process.ledger.read() as session:
            live = documents.live_chunks(session, self._collection.id, ids)
        sample = [SampledChunk(id=id_, text=live[id_].text) for id_ in ids if id_ in live]
        pairs = pseudo_queries(sample)
        return [pair.query for pair in pairs], [
            JudgedQuery(query=pair.query, relevant=[sample[pair.chunk].id]) for pair in pairs
        ]

    def _best(
        self, index: VectorIndex, queries: Sequence[str], k: int
    ) -> list[list[ChunkView]] | None:
        """The best live chunks for each query; None if the old index cannot be asked any more: the
        store has lost it, or its model is gone, which may be why the collection gets another."""
        check = self._context.check
        is_new = index.id == self._index.id
        try:
            embedder = embedders_of(self._process).get(index.embedding_model, check=check)
            vectors = embedder.encode_queries(queries, between=check)
            if not is_new and index.dimension != embedder.dimension:
                return None
            rows = store_of(self._process).query(index.stored_name, vectors, limit=k, where=None)
        except (Permanent, InvalidInput, ConfigurationError) as error:
            if is_new:
                raise
            log.info("%s is not compared with: %s", index.stored_name, error)
            return None
        ids = list(dict.fromkeys(match.id for row in rows for match in row))
        with self._process.ledger.read() as session:
            live = documents.live_chunks(session, self._collection.id, ids)
        return [[live[match.id] for match in row if match.id in live] for row in rows]

    def _recall(self, queries: Sequence[JudgedQuery], rows: Sequence[Sequence[ChunkView]]) -> float:
        shares = []
        for query, row in zip(queries, rows, strict=True):
            judged = judge(query, [_hit(chunk) for chunk in row])
            relevant = sum(grade > 0 for grade in judged.grades.values())
            shares.append(len(judged.places) / max(relevant, 1))
        return round(float(np.mean(shares)), 4)

    def _require_quality(self, comparison: IndexComparison | None) -> None:
        """Raises Permanent if the comparison is below the bounds of the job."""
        for name, bound in (
            ("overlap", self._input.min_overlap),
            ("recall", self._input.min_recall),
        ):
            value = None if comparison is None else getattr(comparison, name)
            if bound is not None and (value is None or value < bound):
                is_ = "is not known" if value is None else f"is {value:g}"
                raise Permanent(
                    f"The {name}@{self._input.k} of the new vectors {is_}, and min_{name} is "
                    f"{bound:g}: {shown(self._collection.name)} stays as it was. What was built is "
                    "used if you rebuild it again with the same model and a lower bound."
                )

    # The switch

    def _close(self, payload: Mapping[str, Any]) -> Done:
        """Let ingestion wait, fill the rest, and make the index active."""
        settings, collection_id = self._process.settings, self._collection.id
        is_same = indexes.is_same_model(self._active, self._index)
        keep_s = SEARCHES_END_S if is_same else settings.retired_index_keep_s
        while True:
            self._context.check()
            with self._process.ledger.begin() as session:
                indexes.pause(session, collection_id, for_s=settings.rebuild_pause_s)
            after: UUID | None = None
            while True:
                page, after = self._page(after)
                if not page:
                    break
                self._embed(page, is_repeated=True)
                with self._process.ledger.begin() as session:
                    indexes.pause(session, collection_id, for_s=settings.rebuild_pause_s)
            with self._process.ledger.begin() as session:
                if not steps.hold(session, self._context.claim):
                    raise Cancelled
                collections.hold(session, collection_id)
                index = indexes.switch(session, self._index.id, keep_s=keep_s)
                if index is not None:
                    checks.due_if_damaged(session, collection_id)
            if index is not None:
                return _done(self._context, self._collection, index, payload)


def _overlap(one: Sequence[ChunkView], other: Sequence[ChunkView]) -> float:
    """The share of chunks that two answers have in common; 1 of two that are empty."""
    ids, other_ids = {chunk.id for chunk in one}, {chunk.id for chunk in other}
    return len(ids & other_ids) / max(len(ids), len(other_ids)) if ids or other_ids else 1.0


def _hit(chunk: ChunkView) -> Hit:
    return Hit(
        chunk_id=chunk.id,
        document_id=str(chunk.document_id),
        source=chunk.source,
        text=chunk.text,
        start=chunk.start,
        score=0.0,
    )


def _done(
    context: Context, collection: Collection, index: VectorIndex, payload: Mapping[str, Any]
) -> Done:
    """The result of the job, once its index is active."""
    with context.process.ledger.read() as session:
        kept_until = indexes.kept_until(session, collection.id)
        chunks = collections.summary(session, collection).chunks
    result = RebuildResult(
        collection=collection.name,
        embedding_model=index.embedding_model,
        embedding_model_before=payload.get("before", index.embedding_model),
        dimension=index.dimension,
        chunks=chunks,
        comparison=payload.get("comparison"),
        rollback_until=kept_until,
    )
    return Done(result=result.model_dump(mode="json"))


REBUILD = Handler(run=on_demand(rebuild))
