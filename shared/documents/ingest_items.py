"""Ingest items: one row for each source of an ingest job, with its outcome.

A source that contains many documents, such as a site or an archive, is *expanded*: each document in
it becomes an item of its own, whose `parent` is the item of the source.

Progress, result and errors of the job are counted from these rows. An outcome is written once;
later ones change nothing, so a step that runs twice counts once.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import case, func, insert, select, text, update
from sqlalchemy.orm import Session

from shared.bounds import as_object, to_json
from shared.database.transaction import Transaction
from shared.jobs import jobs
from shared.kinds.ingest import AdoptedChunks, IngestDocuments, IngestResult, SourceError
from shared.tables import IngestItem
from shared.vocabulary import OPEN


class Outcome(StrEnum):
    ADDED = "added"
    REPLACED = "replaced"
    SKIPPED = "skipped"
    FAILED = "failed"
    ERASED = "erased"
    """It was removed from a source that contains documents."""
    LEFT_OUT = "left_out"
    """No document: a source that was expanded, or a part of one that is not ingested. Not counted,
    neither in the progress nor in the result."""


@dataclass(frozen=True, kw_only=True)
class OpenItem:
    """An item without an outcome. `source` is its entry in the job's input; an item of an expanded
    source has one in the same form."""

    ordinal: int
    source: dict[str, Any]
    version_id: UUID | None
    parent: int | None = None


@dataclass(frozen=True, kw_only=True)
class NewItem:
    """A document in a source that is expanded."""

    name: str
    source: dict[str, Any]
    """In the form of an entry of the job's input."""


def add_all(session: Session, job_id: UUID, names: Sequence[str]) -> None:
    """Write the items of a new job, in the order of its sources."""
    rows = [{"job_id": job_id, "ordinal": n, "name": name} for n, name in enumerate(names)]
    session.execute(insert(IngestItem), rows)


def expand(session: Transaction, job_id: UUID, parent: int, items: Sequence[NewItem]) -> list[int]:
    """Add the items of a source, in this order; returns their ordinals.

    The job is locked until the commit, so that two steps of it do not use the same numbers. Lock
    documents before.
    """
    if not items:
        return []
    jobs.extend_total(session, job_id, len(items))
    last = session.scalar(select(func.max(IngestItem.ordinal)).where(IngestItem.job_id == job_id))
    first = (last or 0) + 1
    rows = [
        {
            "job_id": job_id, "ordinal": first + n, "name": item.name, "parent": parent,
            "source": item.source,
        }
        for n, item in enumerate(items)
    ]  # fmt: skip
    session.execute(insert(IngestItem), rows)
    return list(range(first, first + len(rows)))


def add_erased(session: Transaction, job_id: UUID, parent: int, names: Sequence[str]) -> None:
    """Add items for documents that were removed, since the source has them no more."""
    ordinals = expand(session, job_id, parent, [NewItem(name=name, source={}) for name in names])
    settle(session, job_id, ordinals, Outcome.ERASED)


def open_members(session: Session, job_id: UUID, parents: Sequence[int]) -> list[tuple[int, str]]:
    """The members of these sources without an outcome or version: ordinals and paths in the
    storage."""
    rows = session.execute(
        text("""
            SELECT ordinal, source ->> 'path' AS path FROM ingest_items
            WHERE job_id = :job_id AND parent = ANY(:parents) AND outcome IS NULL
                  AND version_id IS NULL AND source ->> 'type' = 'member'
            ORDER BY ordinal
        """),
        {"job_id": job_id, "parents": list(parents)},
    )
    return [(ordinal, path) for ordinal, path in rows]


def has_members(session: Session, job_id: UUID) -> bool:
    """Whether members of sources were written to the storage."""
    one = text("""
        SELECT true FROM ingest_items
        WHERE job_id = :job_id AND parent IS NOT NULL AND source ->> 'type' = 'member' LIMIT 1
    """)
    return session.scalar(one, {"job_id": job_id}) is not None


def names_below(session: Session, job_id: UUID, parent: int) -> list[str]:
    """The names of all items of a source, in order."""
    names = select(IngestItem.name).where(IngestItem.job_id == job_id, IngestItem.parent == parent)
    return list(session.scalars(names.order_by(IngestItem.ordinal)))


def open_below(session: Session, job_id: UUID, parent: int, *, limit: int) -> list[OpenItem]:
    """The first items of a source without an outcome or version."""
    rows = session.execute(
        select(IngestItem.ordinal, IngestItem.source)
        .where(
            IngestItem.job_id == job_id,
            IngestItem.parent == parent,
            IngestItem.outcome.is_(None),
            IngestItem.version_id.is_(None),
        )
        .order_by(IngestItem.ordinal)
        .limit(limit)
    )
    return [
        OpenItem(ordinal=ordinal, source=as_object(source), version_id=None, parent=parent)
        for ordinal, source in rows
    ]


def count_below(session: Session, job_id: UUID, parent: int, *, outcome: Outcome) -> int:
    """The number of items of a source with this outcome."""
    count = session.scalar(
        select(func.count()).where(
            IngestItem.job_id == job_id,
            IngestItem.parent == parent,
            IngestItem.outcome == outcome.value,
        )
    )
    return int(count or 0)


def existing_below(session: Session, job_id: UUID, parent: int) -> set[str]:
    """The names of the items of a source that exist: all but those that were left out, and those
    whose server says that they are gone (`gone` in their `source`)."""
    rows = session.execute(
        text("""
            SELECT name FROM ingest_items
            WHERE job_id = :job_id AND parent = :parent
              AND coalesce(outcome, '') <> 'left_out' AND source -> 'gone' IS NULL
        """),
        {"job_id": job_id, "parent": parent},
    )
    return set(rows.scalars())


def settle_below(
    session: Transaction, job_id: UUID, parent: int, outcome: Outcome, message: str
) -> None:
    """Write the outcome of the items of a source without an outcome or version."""
    ordinals = session.scalars(
        select(IngestItem.ordinal).where(
            IngestItem.job_id == job_id,
            IngestItem.parent == parent,
            IngestItem.outcome.is_(None),
            IngestItem.version_id.is_(None),
        )
    ).all()
    settle(session, job_id, ordinals, outcome, message)


def note_source(session: Session, job_id: UUID, ordinal: int, source: dict[str, Any]) -> None:
    """Change the `source` of an item."""
    session.execute(
        update(IngestItem)
        .where(IngestItem.job_id == job_id, IngestItem.ordinal == ordinal)
        .values(source=source)
    )


def still_open(session: Session, job_id: UUID, ordinals: Sequence[int]) -> list[OpenItem]:
    """Those of the items that have no outcome, in order."""
    rows = session.execute(
        select(IngestItem.ordinal, IngestItem.version_id, IngestItem.parent, IngestItem.source)
        .where(
            IngestItem.job_id == job_id,
            IngestItem.ordinal.in_(ordinals),
            IngestItem.outcome.is_(None),
        )
        .order_by(IngestItem.ordinal)
    ).all()
    in_input = [row.ordinal for row in rows if row.source is None]
    sources = dict(zip(in_input, _sources(session, job_id, in_input), strict=True))
    return [
        OpenItem(
            ordinal=row.ordinal,
            source=as_object(sources.get(row.ordinal, row.source)),
            version_id=row.version_id,
            parent=row.parent,
        )
        for row in rows
    ]


def _sources(session: Session, job_id: UUID, ordinals: Sequence[int]) -> list[Any]:
    """Entries of the job's input, by one expression: each would unpack all of the input anew."""
    if not ordinals:
        return []
    sources = session.scalar(
        text("""
            SELECT jsonb_path_query_array(input, CAST(:path AS jsonpath)) FROM jobs WHERE id = :id
        """),
        {"id": job_id, "path": f"$.sources[{','.join(map(str, ordinals))}]"},
    )
    return list(sources or ())


def hold(session: Session, job_id: UUID, ordinals: Sequence[int]) -> set[int]:
    """The items without an outcome, which nobody else can settle before the commit."""
    rows = session.scalars(
        select(IngestItem.ordinal)
        .where(
            IngestItem.job_id == job_id,
            IngestItem.ordinal.in_(ordinals),
            IngestItem.outcome.is_(None),
        )
        .order_by(IngestItem.ordinal)
        .with_for_update()
    )
    return set(rows)


def settings_of(session: Session, job_id: UUID) -> dict[str, Any]:
    """The job's input without its sources, which may be many."""
    value = session.execute(
        text("SELECT input - 'sources' FROM jobs WHERE id = :id"), {"id": job_id}
    ).scalar_one()
    assert isinstance(value, dict)
    return value


def assign(session: Session, job_id: UUID, version_ids: Mapping[int, UUID]) -> None:
    """Note which versions items became, by their ordinals."""
    session.execute(
        text("""
            UPDATE ingest_items i SET version_id = v.version_id
            FROM unnest(CAST(:ordinals AS int[]), CAST(:version_ids AS uuid[]))
                v (ordinal, version_id)
            WHERE i.job_id = :job_id AND i.ordinal = v.ordinal
        """),
        {
            "job_id": job_id,
            "ordinals": list(version_ids),
            "version_ids": list(version_ids.values()),
        },
    )


def is_grown(session: Session, version_id: UUID, *, but: tuple[UUID, int]) -> bool:
    """Whether a version has no chunks by its own count yet, and an open item other than this one
    (the job and the ordinal) is about to write them."""
    job_id, ordinal = but
    row = session.execute(
        text("""
            SELECT true FROM versions v
            JOIN ingest_items i ON i.version_id = v.id AND i.outcome IS NULL
            JOIN jobs j ON j.id = i.job_id AND j.state = ANY(:open)
            WHERE v.id = :version_id AND v.chunk_count = 0
                  AND (i.job_id <> :job_id OR i.ordinal <> :ordinal)
            LIMIT 1
        """),
        {
            "version_id": version_id,
            "job_id": job_id,
            "ordinal": ordinal,
            "open": [state.value for state in OPEN],
        },
    )
    return row.first() is not None


def count_chunks(session: Session, job_id: UUID) -> int:
    """The chunks of all versions that the job has written so far."""
    count = session.scalar(
        text("""
            SELECT coalesce(sum(chunk_count), 0) FROM versions
            WHERE id IN (SELECT version_id FROM ingest_items WHERE job_id = :job_id)
        """),
        {"job_id": job_id},
    )
    return int(count or 0)


def settle(
    session: Transaction, job_id: UUID, ordinals: Iterable[int], outcome: Outcome, message: str = ""
) -> None:
    """Write the outcome of items that have none, and count them in the job's progress."""
    changed = session.execute(
        update(IngestItem)
        .where(
            IngestItem.job_id == job_id,
            IngestItem.ordinal.in_(list(ordinals)),
            IngestItem.outcome.is_(None),
        )
        .values(outcome=outcome.value, message=message or None)
        .returning(IngestItem.ordinal)
    ).all()
    if changed and outcome is Outcome.LEFT_OUT:
        jobs.extend_total(session, job_id, -len(changed))
    elif changed:
        jobs.advance(session, job_id, len(changed))


def settle_failed(session: Transaction, job_id: UUID, messages: Mapping[int, str]) -> None:
    """Write that items have failed, each with its message. Nobody else may work on them."""
    if not messages:
        return
    session.execute(
        text("""
            UPDATE ingest_items i SET outcome = :failed, message = f.message
            FROM unnest(CAST(:ordinals AS int[]), CAST(:messages AS text[])) f (ordinal, message)
            WHERE i.job_id = :job_id AND i.ordinal = f.ordinal AND i.outcome IS NULL
        """),
        {
            "job_id": job_id,
            "failed": Outcome.FAILED.value,
            "ordinals": list(messages),
            "messages": list(messages.values()),
        },
    )
    jobs.advance(session, job_id, len(messages))


def settle_version(
    session: Transaction, job_id: UUID, version_id: UUID, outcome: Outcome, *, message: str = ""
) -> None:
    """Settle the job's open items of a version that gave it no chunks."""
    settle_versions(session, job_id, {version_id: 0}, outcome, message=message)


def settle_versions(
    session: Transaction,
    job_id: UUID,
    chunks: Mapping[UUID, int],
    outcome: Outcome,
    *,
    message: str = "",
) -> None:
    """Settle the job's open items of these versions, which have so many chunks: the first of each
    as told, its duplicates as skipped."""
    if not chunks:
        return
    settled = session.execute(
        text("""
            WITH item AS (
                SELECT i.ordinal, v.chunks,
                       row_number() OVER (PARTITION BY i.version_id ORDER BY i.ordinal) = 1 AS first
                FROM unnest(CAST(:ids AS uuid[]), CAST(:chunks AS int[])) v (id, chunks)
                JOIN ingest_items i ON i.job_id = :job_id AND i.version_id = v.id
                WHERE i.outcome IS NULL
            )
            UPDATE ingest_items i SET
                outcome = CASE WHEN item.first THEN :outcome ELSE :skipped END,
                message = CASE WHEN item.first THEN CAST(:message AS text) END,
                chunks = CASE WHEN item.first THEN item.chunks ELSE i.chunks END
            FROM item
            WHERE i.job_id = :job_id AND i.ordinal = item.ordinal AND i.outcome IS NULL
            RETURNING i.ordinal
        """),
        {
            "job_id": job_id,
            "ids": list(chunks),
            "chunks": list(chunks.values()),
            "outcome": outcome.value,
            "skipped": Outcome.SKIPPED.value,
            "message": message or None,
        },
    ).all()
    if settled:
        jobs.advance(session, job_id, len(settled))


class Adoption(StrEnum):
    """What is counted of the chunks of a document that is adopted; the names are those of the keys
    in `source.report` of its item."""

    KEPT = "kept"
    OTHER_DIMENSION = "other_dimension"
    """Embedded again, as the next two."""
    OTHER_VECTORS = "other_vectors"
    NO_VECTOR = "no_vector"
    NO_TEXT = "no_text"
    DUPLICATES = "duplicates"
    BAD_METADATA = "bad_metadata"


def report_adoption(session: Session, job_id: UUID, reports: Mapping[int, dict[str, int]]) -> None:
    """Note such counts in items, by their ordinals; these take the place of those before."""
    if not reports:
        return
    session.execute(
        text("""
            UPDATE ingest_items i
            SET source = i.source || jsonb_build_object('report', r.report)
            FROM jsonb_each(CAST(:reports AS jsonb)) r (ordinal, report)
            WHERE i.job_id = :job_id AND i.ordinal = r.ordinal::int
        """),
        {"job_id": job_id, "reports": to_json({str(n): one for n, one in reports.items()})},
    )


def adoption(session: Session, job_id: UUID) -> Counter[Adoption]:
    """The counts of all documents that a job has adopted."""
    rows = session.execute(
        text("""
            SELECT r.key, sum(r.value::bigint) AS count
            FROM ingest_items i, jsonb_each_text(i.source -> 'report') r
            WHERE i.job_id = :job_id AND i.source ->> 'type' = 'adopted'
                  AND jsonb_typeof(i.source -> 'report') = 'object'
            GROUP BY r.key
        """),
        {"job_id": job_id},
    )
    return Counter({Adoption(key): int(count) for key, count in rows})


def _adopted(session: Session, job_id: UUID) -> AdoptedChunks | None:
    """None of a job that adopts no collection."""
    is_there = text("""
        SELECT jsonb_path_exists(input, '$.sources[*] ? (@.type == "collection")')
        FROM jobs WHERE id = :id
    """)
    if not session.scalar(is_there, {"id": job_id}):
        return None
    counts = adoption(session, job_id)
    return AdoptedChunks(
        kept=counts[Adoption.KEPT],
        embedded=counts[Adoption.OTHER_DIMENSION]
        + counts[Adoption.OTHER_VECTORS]
        + counts[Adoption.NO_VECTOR],
        no_text=counts[Adoption.NO_TEXT],
        duplicates=counts[Adoption.DUPLICATES],
        bad_metadata=counts[Adoption.BAD_METADATA],
    )


@dataclass(frozen=True, kw_only=True)
class CutChunks:
    """Chunks that are longer than the window of the embedding model."""

    model: str
    documents: list[tuple[str, int]]
    """The first documents, by name, with their numbers of such chunks."""
    document_count: int
    chunk_count: int
    chunk_size: int
    """A size that would have fitted, in the unit of the splitter."""
    token_count: int
    """The tokens of these chunks, with those that the model adds; 0 from older workers."""
    unread_count: int
    """The tokens among them that were not read."""


def cut_chunks(session: Session, job_id: UUID, *, named: int = 10) -> CutChunks | None:
    """The chunks that were not read to their ends, by the results of embed steps; None if none."""
    rows = session.execute(
        text("""
            WITH cut AS (
                SELECT s.result ->> 'model' AS model, (c ->> 0)::uuid AS version_id,
                       (c ->> 1)::int AS chunks, (c ->> 2)::int AS chunk_size,
                       coalesce((c ->> 3)::bigint, 0) AS tokens,
                       coalesce((c ->> 4)::bigint, 0) AS unread
                FROM steps s, jsonb_array_elements(s.result -> 'cut') c
                WHERE s.job_id = :job_id AND s.name = 'ingest.embed' AND s.state = 'succeeded'
                      AND jsonb_typeof(s.result) = 'object'
            ), documents AS (
                SELECT min(model) AS model, version_id, sum(chunks) AS chunks,
                       min(chunk_size) AS chunk_size, sum(tokens) AS tokens, sum(unread) AS unread
                FROM cut GROUP BY version_id
            )
            SELECT d.model, i.name, d.chunks, count(*) OVER () AS documents,
                   sum(d.chunks) OVER () AS all_chunks, min(d.chunk_size) OVER () AS chunk_size,
                   sum(d.tokens) OVER () AS tokens, sum(d.unread) OVER () AS unread
            FROM documents d
            JOIN LATERAL (
                SELECT name, ordinal FROM ingest_items
                WHERE job_id = :job_id AND version_id = d.version_id ORDER BY ordinal LIMIT 1
            ) i ON true
            ORDER BY i.ordinal LIMIT :named
        """),
        {"job_id": job_id, "named": named},
    ).all()
    if not rows:
        return None
    return CutChunks(
        model=rows[0].model,
        documents=[(row.name, int(row.chunks)) for row in rows],
        document_count=rows[0].documents,
        chunk_count=int(rows[0].all_chunks),
        chunk_size=rows[0].chunk_size,
        token_count=int(rows[0].tokens),
        unread_count=int(rows[0].unread),
    )


@dataclass(frozen=True, kw_only=True)
class UnreadDocuments:
    """Documents in scripts that the embedding model was not made for."""

    model: str
    scripts: list[str]
    """Names of Unicode, the script of most documents first."""
    documents: list[str]
    """The names of the first documents."""
    document_count: int


def unread_documents(session: Session, job_id: UUID, *, named: int = 5) -> UnreadDocuments | None:
    """The documents in unknown scripts, by the results of load steps; None if none."""
    rows = session.execute(
        text("""
            SELECT min(s.result ->> 'model') AS model, i.name, array_agg(named.script) AS scripts
            FROM steps s
            CROSS JOIN LATERAL jsonb_array_elements(s.result -> 'unread') AS noted (entry)
            CROSS JOIN LATERAL jsonb_array_elements_text(noted.entry -> 1) AS named (script)
            JOIN ingest_items i
                ON i.job_id = s.job_id AND i.ordinal = (noted.entry ->> 0)::int
            WHERE s.job_id = :job_id
                  AND s.name IN ('ingest.load', 'ingest.crawl', 'ingest.adopt_documents')
                  AND s.state = 'succeeded'
                  AND jsonb_typeof(s.result) = 'object' AND i.outcome IN ('added', 'replaced')
            GROUP BY i.ordinal, i.name ORDER BY i.ordinal
        """),
        {"job_id": job_id},
    ).all()
    if not rows:
        return None
    counts = Counter(script for row in rows for script in row.scripts)
    return UnreadDocuments(
        model=rows[0].model,
        scripts=[script for script, _ in counts.most_common()],
        documents=[row.name for row in rows[:named]],
        document_count=len(rows),
    )


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Documents with the same bytes as others of the collection."""

    documents: list[tuple[str, str]]
    """The names of the first documents, each with the name of the other."""
    document_count: int


def duplicates(session: Session, job_id: UUID, *, named: int = 5) -> Duplicates | None:
    """The documents that the job has added although the collection has them; None if none."""
    rows = session.execute(
        text("""
            SELECT i.name, twin.source, count(*) OVER () AS documents
            FROM ingest_items i
            JOIN versions v ON v.id = i.version_id
            JOIN documents d ON d.id = v.document_id
            CROSS JOIN LATERAL (
                SELECT other.source FROM versions o
                JOIN documents other ON other.id = o.document_id AND other.live_version_id = o.id
                WHERE o.sha256 = v.sha256 AND o.state = 'live' AND o.id < v.id
                      AND other.collection_id = d.collection_id AND other.id <> d.id
                LIMIT 1
            ) twin
            WHERE i.job_id = :job_id AND i.outcome IN ('added', 'replaced')
            ORDER BY i.ordinal LIMIT :named
        """),
        {"job_id": job_id, "named": named},
    ).all()
    return _duplicates(rows)


def left_out_duplicates(session: Session, job_id: UUID, *, named: int = 5) -> Duplicates | None:
    """The documents that the job has skipped for that; None if none."""
    rows = session.execute(
        text("""
            SELECT name, message AS source, count(*) OVER () AS documents FROM ingest_items
            WHERE job_id = :job_id AND outcome = 'skipped' AND message IS NOT NULL
            ORDER BY ordinal LIMIT :named
        """),
        {"job_id": job_id, "named": named},
    ).all()
    return _duplicates(rows)


def _duplicates(rows: Sequence[Any]) -> Duplicates | None:
    if not rows:
        return None
    return Duplicates(
        documents=[(row.name, row.source) for row in rows], document_count=rows[0].documents
    )


def result(session: Session, job_id: UUID) -> dict[str, Any]:
    """The result of an ingest job. An item without an outcome, which is a bug, counts as failed."""
    settled = case((IngestItem.outcome.is_(None), Outcome.FAILED.value), else_=IngestItem.outcome)
    mine = IngestItem.job_id == job_id
    rows = session.execute(
        select(settled, func.count(), func.sum(IngestItem.chunks)).where(mine).group_by(settled)
    ).all()
    counts = {outcome: count for outcome, count, _ in rows}
    failures = session.execute(
        select(IngestItem.name, IngestItem.message)
        .where(mine, settled == Outcome.FAILED.value)
        .order_by(IngestItem.ordinal)
    )
    return IngestResult(
        documents=IngestDocuments(
            **{name: counts.get(name, 0) for name in IngestDocuments.model_fields}
        ),
        chunks=sum(chunks or 0 for _, _, chunks in rows),
        errors=[
            SourceError(source=name, message=message or "not processed; please report this")
            for name, message in failures
        ],
        vanished=_vanished(session, job_id),
        adopted=_adopted(session, job_id),
    ).model_dump(mode="json")


def _vanished(session: Session, job_id: UUID) -> list[str]:
    """The documents of earlier jobs that are missing, by the steps that expand sources."""
    rows = session.scalars(
        text("""
            SELECT jsonb_array_elements_text(source #> '{state,vanished}') FROM ingest_items
            WHERE job_id = :job_id AND parent IS NULL
              AND jsonb_typeof(source #> '{state,vanished}') = 'array'
            ORDER BY ordinal
        """),
        {"job_id": job_id},
    )
    return list(rows)
