"""A filter means the same in Python, in PostgreSQL and, if it is exact there, in a vector store."""

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from shared.bounds import (
    FILTER_LIMIT_CONDITIONS,
    FILTER_LIMIT_DEPTH,
    FILTER_LIMIT_VALUES,
    Scalar,
    from_json,
    nfc,
    to_json,
)
from shared.config import Settings
from shared.database.engine import make_engine
from shared.documents import collections, documents
from shared.documents.documents import chunk_id
from shared.filters import OWN_KEYS, MetadataFilter, escaped
from shared.tables import Chunk, Document, Version
from shared.vector_stores import require_store
from workers.retrieval.store import VectorEntry, VectorStore
from workers.retrieval.stores.chroma import Chroma
from workers.retrieval.stores.pgvector import LEDGER, PgVector

EDGE = 2**53
NUMBERS = [
    0, 1, -1, 2, 2024, 2024.0, 0.5, -0.5, 1.5, -1.5, 0.1, 1e-300, 5e-324, -0.0, EDGE, EDGE + 1,
    EDGE + 3, float(EDGE), float(EDGE + 2), -EDGE - 1, 2**62, float(2**62), 10**18, 1e18, 2**63 - 1,
    -(2**63), float(2**63), -float(2**63), 1e19, 1e30, -1e30, 1.7976931348623157e308,
]  # fmt: skip
TEXTS = ["", " ", "a", "A", "b", "aa", "Z", "é", "가", "각", "\U0001f642", "￿", "2024", "true",
         "2024-01-31", "2024-02-01", "a'\"\\%_"]  # fmt: skip
LISTS: list[list[Any]] = [
    [], ["a"], ["a", "b"], ["2024"], [1], [2024, 0], [0.5, 1], [1.0], [EDGE + 1], [EDGE + 1, 0.5],
    [True], [True, False], [2**63 - 1], [1e30],
]  # fmt: skip
SINGLE: list[Scalar] = [*NUMBERS, *TEXTS, True, False]
KEYS = ["a", "b", "", "$price", "$and", "$$", "#", "a.b", "chroma:document", "sluice:source", "가",
        *sorted(OWN_KEYS)]  # fmt: skip
ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le,
}  # fmt: skip


class Library:
    """Chunks of one document in both stores, which are its only ones; nothing is committed."""

    def __init__(self, session: Session, store: VectorStore, name: str) -> None:
        spec = collections.Spec(embedding_model="m")
        collections.put(session, name, spec)
        self.collection_id: UUID = collections.get(session, name).id
        self.session, self.store, self.name = session, store, name
        self.document_id, self.version_id = uuid4(), uuid4()
        session.execute(
            insert(Document).values(
                id=self.document_id, collection_id=self.collection_id, source="wiki",
                live_version_id=self.version_id,
            )
        )  # fmt: skip
        session.execute(
            insert(Version).values(
                id=self.version_id, document_id=self.document_id, state="live", sha256="",
                content_hash="", size_bytes=0, chunk_count=0,
            )
        )  # fmt: skip
        self.ids: list[str] = []
        self.rows: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def hold(self, metadata: Sequence[dict[str, Any]]) -> None:
        """These instead of what it held."""
        self.session.execute(delete(Chunk).where(Chunk.version_id == self.version_id))
        rows = [
            {"version_id": self.version_id, "ordinal": n, "start": n, "text": "x", "meta": one}
            for n, one in enumerate(metadata)
        ]
        self.session.execute(insert(Chunk), rows)
        self.store.delete(self.name, self.ids)
        self.ids = [chunk_id(self.version_id, n) for n in range(len(rows))]
        # What the steps of an ingest job read again from PostgreSQL.
        stored = self.session.scalars(
            select(Chunk).where(Chunk.version_id == self.version_id).order_by(Chunk.ordinal)
        ).all()
        self.rows = [
            (
                chunk.meta,
                {"source": "wiki", "document_id": str(self.document_id), "start_index": n},
            )
            for n, chunk in enumerate(stored)
        ]
        entries = [
            VectorEntry(id=id_, text="x", metadata=meta, own=own)
            for id_, (meta, own) in zip(self.ids, self.rows, strict=True)
        ]
        vectors = np.tile(np.eye(1, 2, dtype=np.float32), (len(entries), 1))
        self.store.upsert(self.name, entries, vectors)

    def check(self, filter_: Any) -> set[int]:
        """The same chunks match everywhere; returns which."""
        where = MetadataFilter.read(filter_)
        expected = {n for n, (meta, own) in enumerate(self.rows) if where.matches(meta, own)}
        ids = {self.ids[n] for n in expected}

        found = documents.matching_chunks(self.session, self.collection_id, where, limit=1000)
        assert set(found) == ids, filter_
        vectors = np.eye(1, 2, dtype=np.float32)
        (matches,) = self.store.query(self.name, vectors, limit=1000, where=where)
        kept = {match.id for match in matches}
        assert kept >= ids, filter_
        if self.store.is_exact(where):
            assert kept == ids, filter_
        return expected


@pytest.fixture(scope="module", params=["chroma", "postgres"])
def library(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Library]:
    is_chroma = request.param == "chroma"
    store: VectorStore = (
        Chroma(settings, require_store(settings).text) if is_chroma else PgVector(settings, LEDGER)
    )
    name = f"test-{uuid4().hex[:12]}"
    store.make(name, "cosine")
    engine = make_engine(settings)
    with Session(engine) as session:
        yield Library(session, store, name)
    engine.dispose()
    store.drop(name)
    store.close()


def is_equal(one: Any, other: Any) -> bool:
    """By type, and numbers by their notation; worked out without the filters' own means."""
    if isinstance(one, bool) or isinstance(other, bool) or isinstance(one, list):
        return type(one) is type(other) and bool(one == other)
    if isinstance(one, str) or isinstance(other, str):
        return type(one) is type(other) and bool(one == other)
    return Decimal(repr(one)) == Decimal(repr(other))


def test_each_comparison_of_each_pair_of_values(library: Library) -> None:
    values: list[Any] = [*SINGLE, *LISTS]
    library.hold([*({"k": value} for value in values), {"other": 1}])
    stored = [meta.get("k") for meta, _ in library.rows]  # as they are read again
    nothing = len(values)
    everything = set(range(nothing + 1))

    for operand in SINGLE:
        equal = {
            n for n, one in enumerate(stored[:-1])
            if not isinstance(one, list) and is_equal(one, operand)
        }  # fmt: skip
        assert library.check({"k": operand}) == equal
        assert library.check({"k": {"$ne": operand}}) == everything - equal
        holding = {
            n for n, one in enumerate(stored[:-1])
            if isinstance(one, list) and any(is_equal(item, operand) for item in one)
        }  # fmt: skip
        assert library.check({"k": {"$contains": operand}}) == holding
        assert library.check({"$not": {"k": {"$contains": operand}}}) == everything - holding
        if isinstance(operand, bool):
            continue
        is_text = isinstance(operand, str)
        for sign, holds in ORDERS.items():
            ordered = {
                n for n, one in enumerate(stored[:-1])
                if isinstance(one, str if is_text else int | float) and not isinstance(one, bool)
                and holds(
                    one if is_text else Decimal(repr(one)),
                    operand if is_text else Decimal(repr(operand)),
                )
            }  # fmt: skip
            assert library.check({"k": {sign: operand}}) == ordered


singles = st.sampled_from(SINGLE) | st.text(max_size=3).map(nfc) | st.integers(
    -(2**63), 2**63 - 1
) | st.floats(allow_nan=False, allow_infinity=False)  # fmt: skip


@st.composite
def comparisons(draw: st.DrawFn) -> dict[str, Any]:
    key = escaped(draw(st.sampled_from(KEYS)))
    sign = draw(
        st.sampled_from(["", "$eq", "$ne", "$in", "$nin", "$contains", "$not", *ORDERS] * 2)
    )
    if sign in ("$in", "$nin"):
        return {key: {sign: draw(st.lists(singles, max_size=6))}}
    value = draw(singles if sign not in ORDERS else singles.filter(lambda v: type(v) is not bool))
    if sign == "$not":
        return {key: {"$not": {"$ne": value}, "$ne": draw(singles)}}
    return {key: {sign: value} if sign else value}


filters = st.recursive(
    comparisons(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=4).map(lambda parts: {"$and": parts})
        | st.lists(inner, min_size=1, max_size=4).map(lambda parts: {"$or": parts})
        | inner.map(lambda part: {"$not": part})
        | st.lists(inner, max_size=3).map(
            lambda parts: {name: value for part in parts for name, value in part.items()}
        )
    ),
    max_leaves=8,
)
storable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=3)
metadata = st.dictionaries(
    st.sampled_from(KEYS),
    st.sampled_from(SINGLE) | st.sampled_from(LISTS) | storable.map(nfc),
    max_size=8,
)


def is_storable(filter_: Any) -> bool:
    with suppress(ValueError):
        MetadataFilter.read(filter_)
        return True
    return False


@given(rows=st.lists(metadata, min_size=1, max_size=12), wheres=st.lists(filters, max_size=6))
@settings_of_hypothesis(max_examples=15, deadline=None)
def test_random_filters_mean_the_same_everywhere(
    library: Library, rows: list[dict[str, Any]], wheres: list[Any]
) -> None:
    library.hold([from_json(to_json(row)) for row in rows])
    for where in filter(is_storable, wheres):
        library.check(where)


def test_own_values_count_unless_the_metadata_has_such_a_key(library: Library) -> None:
    library.hold(
        [
            {},
            {"source": "mine", "start_index": 5, "document_id": "7"},
            {"source": ["wiki"], "start_index": "0", "document_id": ["x"]},
        ]
    )
    own_id = str(library.document_id)
    assert library.check({"source": "wiki"}) == {0}
    assert library.check({"source": "mine"}) == {1}
    assert library.check({"source": {"$contains": "wiki"}}) == {2}
    assert library.check({"source": {"$ne": "wiki"}}) == {1, 2}
    assert library.check({"source": {"$gte": "n"}}) == {0}
    assert library.check({"source": {"$nin": ["mine", "wiki"]}}) == {2}
    assert library.check({"start_index": 0}) == {0}
    assert library.check({"start_index": 0.0}) == {0}
    assert library.check({"start_index": {"$lt": 5.5}}) == {0, 1}
    assert library.check({"start_index": {"$gt": -0.5}}) == {0, 1}
    assert library.check({"start_index": {"$lt": 10**15}}) == {0, 1}
    assert library.check({"start_index": {"$in": [5, "0", 2**63 - 1]}}) == {1, 2}
    assert library.check({"document_id": own_id}) == {0}
    assert library.check({"document_id": own_id.upper()}) == set()
    assert library.check({"document_id": {"$in": [own_id, "7", "no id"]}}) == {0, 1}
    assert library.check({"document_id": {"$ne": own_id}}) == {1, 2}
    assert library.check({"document_id": {"$lt": "g"}}) == {0, 1}


def test_filters_as_large_as_they_may_be(library: Library) -> None:
    library.hold([{"n": 7, "tags": ["a"]}, {"n": 0.25}, {"source": "x"}])
    many = [*range(FILTER_LIMIT_VALUES - 1), 0.25]
    assert library.check({"n": {"$in": many}}) == {0, 1}
    assert library.check({"n": {"$nin": many}}) == {2}
    names = [f"{'n' * 90}{n}" for n in range(FILTER_LIMIT_VALUES - 1)]
    assert library.check({"source": {"$nin": [*names, "wiki"]}}) == {2}
    assert library.check({"source": {"$in": [*names, "wiki"]}}) == {0, 1}
    half = FILTER_LIMIT_CONDITIONS // 2
    deep: Any = {"$or": [*({"start_index": {"$ne": -n - 0.5}} for n in range(half)), {"n": 1}]}
    for level in range(FILTER_LIMIT_DEPTH - 3):
        deep = {"$not": deep} if level % 2 else {"$and": [deep, {"source": {"$ne": f"{level}"}}]}
    library.check(deep)
    library.check({f"k{n}": {"$gt": n + 0.5} for n in range(FILTER_LIMIT_CONDITIONS)})


def test_dates_in_one_form_compare_in_their_order(library: Library) -> None:
    days = ["2024-01-31", "2024-02-01", "2023-12-31T23:59:59", "2024", "1999-01-01"]
    library.hold([{"day": day} for day in days])
    where = MetadataFilter.read({"day": {"$gte": "2024-02"}})
    live = documents.live_chunks(
        library.session, library.collection_id, library.ids[:2], where=where
    )
    assert list(live) == library.ids[1:2]
    assert library.check({"day": {"$gte": "2024-01-01", "$lt": "2024-02-01"}}) == {0}
    assert library.check({"day": {"$lt": "2024"}}) == {2, 4}
    assert library.check({"day": {"$gt": 2023}}) == set()
