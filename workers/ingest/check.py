"""The steps of a `check` job: compare what the ledger has noted of a collection with the store, and
mend what differs.

Each index of the collection is gone through twice, a page at a time: what the ledger notes is
looked for in the store, and of what the store has the ledger is asked. Then comes what erasures
have left in Postgres. Chunks that are on their way in or out are no fault: the ledger notes vectors
after they were written, and says that a version is gone before its vectors are deleted. A step ends
as one of a rebuild does (`StepTime`), and behind each page with faults; the next one goes on behind
its cursor, so that what is counted was mended once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

import numpy as np
from sqlalchemy import select

from shared.database.transaction import Transaction
from shared.documents import checks, collections, indexes
from shared.documents.checks import CheckCounts, CheckState
from shared.documents.documents import chunk_id
from shared.documents.indexes import IndexState
from shared.documents.versions import ChunkRange
from shared.jobs import jobs, submission
from shared.jobs.steps import NewStep
from shared.jobs.submission import NewJob
from shared.kinds.check import STEP, CheckExamples, CheckInput, CheckResult
from shared.kinds.rebuild import REBUILD, RebuildInput
from shared.tables import Chunk, Collection, Job, VectorIndex
from shared.vocabulary import OPEN, Lane, Queue
from workers.attempts.context import Context, Done, Handler
from workers.ingest.erasure import PAGE_IDS, Leftovers, StoredPage
from workers.ingest.index_vectors import (
    ChunkKey,
    StepTime,
    compare,
    embedder_of,
    key_of,
    ranges_of,
    read_position,
    write_vectors,
    written_position,
)
from workers.retrieval.servers import store_of
from workers.retrieval.store import DamagedCollection, MissingCollection
from workers.servers.pulls import on_demand

UNIT = "chunks"
PAGE_CHUNKS: Final = 500
LARGE_SHARE: Final = 0.1
"""Where more of the chunks are embedded again, pages are as small as steps of ingestion."""
MIN_COSINE: Final = 0.98
"""Of a vector and the same made again. Models on other processors, and 16-bit stores, give 0.999;
other passages have less than this."""
EXAMPLES: Final = 10


def check(context: Context) -> Done:
    input_ = context.input(CheckInput)
    with context.process.ledger.read() as session:
        collection = collections.get(session, input_.collection)
    return _Check(context, input_, collection).run()


class _Lost(Exception):
    """The store has nothing of an index that can be used."""


class _Check:
    """One step of a check. Its payload has what is left of `indexes`, where the pass through the
    first of them goes on (`position` in the ledger, or else `offset` in the store), and what was
    found so far. `total` is of the active index alone, of which the sample is."""

    def __init__(self, context: Context, input_: CheckInput, collection: Collection) -> None:
        self._context = context
        self._process = context.process
        self._input = input_
        self._collection = collection
        self._time = StepTime(context)
        payload: Mapping[str, Any] = context.claim.payload or self._begin()
        self._indexes = [UUID(id_) for id_ in payload["indexes"]]
        self._is_in_ledger: bool = payload["is_in_ledger"]
        self._position = read_position(payload["position"])
        self._offset: int = payload["offset"]
        self._total: int = payload["total"]
        self._counts = CheckCounts(**payload["counts"])
        self._checked_before = self._counts.checked
        self._mended: int = payload["mended"]
        self._examples = CheckExamples.model_validate(payload["examples"])
        self._must_rebuild: bool = payload["must_rebuild"]

    def _begin(self) -> dict[str, Any]:
        with self._process.ledger.begin() as session:
            ids = indexes.to_check(session, self._collection.id)
            counts = [indexes.count_noted(session, id_) for id_ in ids]
            jobs.set_total(session, self._context.claim.job_id, sum(counts), UNIT)
        return {
            "indexes": list(map(str, ids)),
            "is_in_ledger": True,
            "position": None,
            "offset": 0,
            "total": counts[0] if counts else 0,
            "counts": {},
            "mended": 0,
            "examples": {},
            "must_rebuild": False,
        }

    def _payload(self) -> dict[str, Any]:
        return {
            "indexes": list(map(str, self._indexes)),
            "is_in_ledger": self._is_in_ledger,
            "position": written_position(self._position),
            "offset": self._offset,
            "total": self._total,
            "counts": asdict(self._counts),
            "mended": self._mended,
            "examples": self._examples.model_dump(),
            "must_rebuild": self._must_rebuild,
        }

    def run(self) -> Done:
        while self._indexes:
            index = self._index(self._indexes[0])
            try:
                is_done = index is None or self._go_through(index)
            except (MissingCollection, DamagedCollection, _Lost):
                self._note_lost(self._indexes[0])
                is_done = True
            if is_done:
                self._indexes.pop(0)
                self._is_in_ledger, self._position, self._offset = True, None, 0
            if self._indexes and (not is_done or self._time.is_over):
                return self._next()
        return self._close()

    def _index(self, id_: UUID) -> VectorIndex | None:
        """None if it is not to be checked any more: a job builds on it, or it is dropped."""
        with self._process.ledger.read() as session:
            return indexes.find_to_check(session, id_)

    def _next(self) -> Done:
        step = NewStep(name=STEP, queue=Queue.EMBED, payload=self._payload())
        return Done(children=[step], record=self._advance)

    def _advance(self, transaction: Transaction) -> None:
        done = self._counts.checked - self._checked_before
        if done:
            jobs.advance(transaction, self._context.claim.job_id, done)

    def _go_through(self, index: VectorIndex) -> bool:
        """False where the step is over before the index is at its end."""
        while self._is_in_ledger:
            had_faults = self._compare_page(index)
            if had_faults or self._time.is_over:
                return False
        while True:
            count, has_deleted = self._look_at_page(index)
            if count == 0:
                return True
            if has_deleted or self._time.is_over:
                return False

    # What the ledger notes

    def _compare_page(self, index: VectorIndex) -> bool:
        """Compare the next chunks that are noted; returns whether there were faults."""
        self._context.check()
        settings = self._process.settings
        is_sampled = index.state == IndexState.ACTIVE and self._total > 0
        share = self._input.sample / self._total if is_sampled else 0.0
        size = PAGE_CHUNKS if share < LARGE_SHARE else settings.embed_step_chunks
        with self._process.ledger.read() as session:
            parts, position = indexes.noted(session, index.id, position=self._position, chunks=size)
        owners = {part.version_id: part.document_id for part in parts}
        ranges = [
            ChunkRange(version_id=part.version_id, first=part.first, end=part.end) for part in parts
        ]
        page = compare(self._process, index, ranges)
        sample = [
            chunk
            for chunk in page.chunks
            if key_of(chunk) not in page.missing | page.stale and self._is_in_sample(chunk, share)
        ]
        wrong = self._wrong(index, sample)
        faults = page.missing | page.stale | wrong
        chunks = [key_of(chunk) for chunk in page.chunks]
        faulty = [key for key in chunks if key in faults]
        if not self._input.dry_run and len(faulty) > settings.embed_step_chunks:
            # The others are met again by the next step, which others may come before.
            rest = faulty[settings.embed_step_chunks]
            faulty = faulty[: settings.embed_step_chunks]
            chunks = chunks[: chunks.index(rest)]
            position = (owners[rest[0]], *rest)
        done = set(chunks)
        if faulty and not self._input.dry_run:
            self._mended += self._mend(index, faulty)
        for name, keys in (("missing", page.missing), ("stale", page.stale), ("wrong", wrong)):
            self._count(name, [chunk_id(*key) for key in chunks if key in keys])
        self._counts.sampled += sum(key_of(chunk) in done for chunk in sample)
        self._counts.checked += len(chunks)
        self._position = position
        self._is_in_ledger = position is not None
        return bool(faulty)

    def _is_in_sample(self, chunk: Chunk, share: float) -> bool:
        """The same for each attempt; other chunks for each job."""
        if share <= 0:
            return False
        name = f"{self._context.claim.job_id} {chunk_id(*key_of(chunk))}"
        number = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
        return number < share * 2**64

    def _wrong(self, index: VectorIndex, sample: Sequence[Chunk]) -> frozenset[ChunkKey]:
        """Those of the chunks whose vector is not what the model gives. Raises _Lost if the index
        has another dimension."""
        if not sample:
            return frozenset()
        ids = [chunk_id(*key_of(chunk)) for chunk in sample]
        stored = store_of(self._process).vectors(index.stored_name, ids)
        if any(len(vector) != index.dimension for vector in stored.values()):
            raise _Lost
        vectors = embedder_of(self._context, index).encode(
            [chunk.text for chunk in sample], between=self._context.check
        )
        differing = {
            key_of(chunk)
            for chunk, id_, vector in zip(sample, ids, vectors, strict=True)
            if id_ in stored and not _cosine(stored[id_], vector) >= MIN_COSINE
        }
        with self._process.ledger.read() as session:
            return frozenset(indexes.still_noted(session, index.id, differing))

    def _mend(self, index: VectorIndex, faulty: Sequence[ChunkKey]) -> int:
        """Write the vectors of these chunks to the active index; of another, note that it lacks
        them, so that going back to it makes them. Returns how many are right now."""
        ranges = ranges_of(faulty)
        with self._process.ledger.begin() as session:
            current = indexes.find(session, index.id)
            if current is not None and current.state != IndexState.ACTIVE:
                indexes.note_lost(session, index.id, faulty)
        if current is None or current.state != IndexState.ACTIVE:
            return len(faulty)
        write_vectors(self._context, index, ranges)
        again = compare(self._process, index, ranges)
        return len(faulty) - len(again.missing | again.stale)

    # What the store has

    def _look_at_page(self, index: VectorIndex) -> tuple[int, bool]:
        """Ask the ledger of the next ids of the store; returns how many there were, and whether
        some of them were deleted.

        Who writes meanwhile may move ids from one page to another: what is missed so is found by
        the next check, or by the sweeper, which goes through all stores all the time.
        """
        self._context.check()
        page = StoredPage.read(self._process, index, limit=PAGE_IDS, offset=self._offset)
        to_delete = [*page.surplus, *(page.foreign if self._input.delete_foreign else ())]
        has_deleted = bool(to_delete) and not self._input.dry_run
        if has_deleted:
            store_of(self._process).delete(index.stored_name, to_delete)
            self._mended += len(page.surplus)
            self._offset -= len(to_delete)
        self._count("surplus", page.surplus)
        self._count("foreign", page.foreign)
        self._offset += page.count
        return page.count, has_deleted

    # Lost indexes

    def _note_lost(self, index_id: UUID) -> None:
        """Count all chunks of an index as missing. Raises NotFound if the collection was erased."""
        with self._process.ledger.begin() as session:
            collections.get(session, self._input.collection)
            index = indexes.find_to_check(session, index_id)
            if index is None:
                return
            count = indexes.count_noted(session, index_id)
            is_kept = index.state == IndexState.RETIRED
            if is_kept and not self._input.dry_run:
                indexes.give_up_kept(session, index_id)
        self._counts.missing += count
        self._mended += count if is_kept and not self._input.dry_run else 0
        self._must_rebuild = self._must_rebuild or not is_kept

    def _rebuild(self) -> str:
        """The id of a job that makes the active index again: one that does so already, or a new
        one."""
        input_ = RebuildInput(collection=self._collection.name).model_dump(mode="json")
        with self._process.ledger.begin() as session:
            id_ = session.scalar(
                select(Job.id)
                .where(
                    Job.kind == REBUILD.name,
                    Job.collection == self._collection.name,
                    Job.state.in_(OPEN),
                    Job.batch_id.is_(None),
                )
                .limit(1)
            )
            if id_ is None:
                new = NewJob(
                    kind=REBUILD,
                    input=input_,
                    fair_key=self._context.claim.fair_key,
                    lane=Lane.BULK,
                    max_attempts=self._process.settings.max_attempts,
                )
                id_ = submission.submit(session, new).id
        return str(id_)

    # The end

    def _close(self) -> Done:
        leftovers = Leftovers(self._process, self._collection.id, check=self._context.check)
        leftover = leftovers.count() if self._input.dry_run else leftovers.remove()
        counts, is_dry = self._counts, self._input.dry_run
        counts.leftover = leftover
        self._mended += 0 if is_dry else leftover
        rebuild_job_id = self._rebuild() if self._must_rebuild and not is_dry else None
        is_sample_enough = not counts.wrong or self._input.sample >= self._total
        if not counts.faults:
            state = CheckState.OK
        elif self._mended < counts.faults or self._must_rebuild or not is_sample_enough:
            state = CheckState.DAMAGED
        else:
            state = CheckState.MENDED
        name = self._collection.name
        result = CheckResult(
            collection=name,
            state=state,
            **asdict(counts),
            mended=self._mended,
            examples=self._examples,
            rebuild_job_id=rebuild_job_id,
        )
        warnings: list[str] = []
        if self._must_rebuild:
            does = f"job {rebuild_job_id} makes" if rebuild_job_id else "a rebuild would make"
            warnings.append(f"The store has lost the vectors of {name!r}: {does} them again.")
        if not is_sample_enough:
            warnings.append(
                f"{counts.wrong:,} of {counts.sampled:,} sampled vectors were not those of the "
                "model, so others may be wrong as well. Check them all with a sample of "
                f"{self._total:,} (`sluice collections check {name} --sample {self._total}`), or "
                "rebuild the collection."
            )
        if counts.foreign and not self._input.delete_foreign:
            warnings.append(
                f"{counts.foreign:,} vectors in the store were not written by Sluice. No search "
                "returns them; delete_foreign deletes them."
            )

        def record(transaction: Transaction) -> None:
            collections.hold(transaction, self._collection.id)
            job_id = self._context.claim.job_id
            checks.note(transaction, self._collection.id, job_id, state, counts)
            self._advance(transaction)

        return Done(result=result.model_dump(mode="json"), warnings=warnings, record=record)

    def _count(self, name: str, ids: Sequence[str]) -> None:
        setattr(self._counts, name, getattr(self._counts, name) + len(ids))
        shown: list[str] = getattr(self._examples, name)
        shown += ids[: max(0, EXAMPLES - len(shown))]


def _cosine(one: Any, other: Any) -> float:
    norm = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.dot(one, other)) / norm if norm else 0.0


CHECK = Handler(run=on_demand(check))
