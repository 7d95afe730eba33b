"""The vector store `postgres`: PostgreSQL with the extension `vector` (pgvector), 0.8 or newer.

`postgres` is the database of the ledger, so that one backup has all; `postgresql://...` is another
one, of this installation alone. The schema `vectors` is made at first use, not by the migrations,
for most databases have no such extension. In it are:

- `collections`, which lists the collections: names, the tables with their vectors, dimensions;
- a table for each collection, made once its dimension is known: `id`, `embedding`, `text` and
  `metadata`. The metadata has the chunk's own values `source`, `document_id` and `start_index`
  where the user's has no such key, so filters are SQL on one column, and exact.

A table is searched exactly until it is larger than SLUICE_PGVECTOR_INDEX_ABOVE_MIB. Then it gets an
HNSW index of the vectors and a GIN index of the metadata. If HNSW gives fewer chunks than were
asked for, the search is repeated exactly. With a filter, those of the LARGEST_EF_SEARCH nearest
count that match it: if they are EF_SEARCH_FACTOR times as many as were asked for, the best of them
are the result; otherwise the filter is narrow, and the search is exact. Where HNSW looks on by
itself until it has enough, it loses 3 to 4 of 100 chunks under a filter that one in a hundred
matches, be it in `strict_order` or in `relaxed_order`.

The similarity is the inner product, whatever distance a collection has: vectors have length 1.
pgvector indexes up to 2,000 dimensions as `vector`, up to 4,000 as `halfvec` (16-bit floats, which
change a cosine by about 0.00001); vectors of more are searched exactly, whatever their number.

Each transaction sets its own timeouts and nothing is set for a session, so it works through
pgbouncer in transaction mode.
"""

import hashlib
import logging
import struct
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import psycopg
from psycopg.pq import Format
from sqlalchemy import (
    REAL,
    Column,
    ColumnElement,
    Connection,
    Double,
    Engine,
    Integer,
    MetaData,
    Select,
    Table,
    TableClause,
    Text,
    bindparam,
    cast,
    column,
    delete,
    event,
    func,
    literal,
    select,
    table,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.types import UserDefinedType

from shared.bounds import nfc, nfc_value
from shared.config import Settings
from shared.database.engine import make_portable_engine, psycopg_url
from shared.database.sqlstates import Meaning, first_line, trouble_of
from shared.documents import filtering
from shared.errors import Permanent, StepError, Unavailable
from shared.filters import MetadataFilter
from workers.models.devices import Vectors
from workers.retrieval.store import REBUILD, Match, MissingCollection, VectorEntry, is_same

log = logging.getLogger(__name__)

T = TypeVar("T")

LEDGER = "postgres"
"""The URL that means the database of the ledger."""
SCHEMA = "vectors"
BATCH = 500
VECTOR_DIMENSIONS = 2000
"""pgvector's HNSW index takes so many dimensions of `vector` at most."""
HALFVEC_DIMENSIONS = 4000
PLAIN_LIMIT_BYTES = 6200
"""Vectors up to this size stay in the row, where an exact search reads them fastest; a row has to
fit into a page of 8 kB."""
ROW_SPARE_BYTES = 1024
"""What a row has beside its vector before PostgreSQL moves text and metadata out of it."""
OLDEST_VERSION = (0, 8)
"""The first with `hnsw.iterative_scan`."""
HNSW = "m = 16, ef_construction = 200"
EF_SEARCH = 400
EF_SEARCH_FACTOR = 4
"""HNSW looks at so many times the chunks that are asked for, at EF_SEARCH at least: with 200 it
found 98 of the best 100 among 10,000 vectors."""
LARGEST_EF_SEARCH = 1000
APPROXIMATE_LIMIT = LARGEST_EF_SEARCH // EF_SEARCH_FACTOR
"""More chunks at once are looked for exactly."""
INDEX_MEMORY = "256MB"
SET_UP_LOCK = 0x736C7569_76656374
"""The key of the advisory lock under which the schema is made."""
ANSWER_GRACE_S = 1.0
"""The server ends a statement itself; with no answer so much later, the connection is closed."""

_MISSING = ("42P01", "3F000")  # undefined_table, invalid_schema_name
_NOT_INSTALLED = ("0A000", "58P01", "22023")
_NO_RIGHT = "42501"

_CATALOGUE = Table(
    "collections",
    MetaData(schema=SCHEMA),
    Column("name", Text, primary_key=True),
    Column("table_name", Text),
    Column("dimension", Integer),
)
_CATALOGUE_DDL = f"""
    CREATE TABLE IF NOT EXISTS {SCHEMA}.collections (
        name text COLLATE "C" PRIMARY KEY,
        table_name text NOT NULL UNIQUE,
        dimension integer
    )
"""
_EXTENSION = """
    SELECT e.extversion FROM pg_catalog.pg_extension e WHERE e.extname = 'vector'
"""
# Types and operators of the extension are looked for where it was installed. `hnsw.*` may be set
# before the extension's library is loaded.
_SET_LOCAL = text("""
    SELECT set_config('statement_timeout', :timeout, true),
           set_config('lock_timeout', :timeout, true),
           set_config('search_path', coalesce((
               SELECT quote_ident(n.nspname)
               FROM pg_catalog.pg_extension e JOIN pg_catalog.pg_namespace n
               ON n.oid = e.extnamespace WHERE e.extname = 'vector'
           ), 'public'), true)
""")
_SET_SEARCH = text("""
    SELECT set_config('hnsw.ef_search', :ef_search, true),
           set_config('hnsw.iterative_scan', :iterative_scan, true),
           set_config('hnsw.scan_mem_multiplier', '8', true),
           set_config('enable_indexscan', :index, true),
           set_config('enable_seqscan', :whole, true),
           set_config('jit', 'off', true)
""")


class PgVector:
    """A `VectorStore` in PostgreSQL. `url` is `postgres` or `postgresql://...`."""

    def __init__(self, settings: Settings, url: str) -> None:
        is_ledger = url.strip() == LEDGER
        self._settings = settings
        self._url = settings.require_database_url() if is_ledger else url
        self._setting = "SLUICE_DATABASE_URL" if is_ledger else "SLUICE_VECTORS_URL"
        self._not_indexed_below: dict[str, int] = {}

    @cached_property
    def _engine(self) -> Engine:
        engine = make_portable_engine(self._url, self._settings)

        @event.listens_for(engine, "do_connect")
        def _connect(_dialect: Any, _record: Any, args: Any, options: Any) -> Any:
            return _Connection.connect(*args, **options)

        @event.listens_for(engine, "connect")
        def _adapt(connection: Any, _record: Any) -> None:
            connection.adapters.register_dumper(_Packed, _PackedDumper)

        return engine

    def close(self) -> None:
        engine = self.__dict__.get("_engine")
        if engine is not None:
            engine.dispose()

    def make(self, name: str, distance: str) -> None:
        del distance
        try:
            self._add_to_catalogue(name)
        except MissingCollection:
            self._set_up()
            self._add_to_catalogue(name)

    def _add_to_catalogue(self, name: str) -> None:
        """Add the collection unless it is there; without a dimension, if its table was lost."""
        own_row = _CATALOGUE.c.name == name
        row = insert(_CATALOGUE).values(name=name, table_name=_table_name(name))
        with self._transaction(name) as connection:
            connection.execute(row.on_conflict_do_nothing())
            dimension = select(_CATALOGUE.c.dimension).where(own_row).with_for_update()
            if connection.scalar(dimension) and not _exists(connection, _table_name(name)):
                connection.execute(update(_CATALOGUE).where(own_row).values(dimension=None))

    def upsert(self, name: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        if not entries:
            return
        dimension = vectors.shape[1]
        chunks = _chunks(name, dimension)
        row = insert(chunks)
        statement = row.on_conflict_do_update(
            index_elements=["id"],
            set_={key: row.excluded[key] for key in ("embedding", "text", "metadata")},
        )
        with self._transaction(name) as connection:
            has_table = _exists(connection, _table_name(name))
        if not has_table:
            self._make_table(name, dimension)
        for first in range(0, len(entries), BATCH):
            batch = zip(entries[first : first + BATCH], vectors[first : first + BATCH], strict=True)
            # In one order, so that two writers of the same chunks wait for each other in turn.
            rows = sorted((_row(*pair) for pair in batch), key=lambda row: str(row["id"]))
            with self._transaction(name) as connection:
                connection.execute(statement, rows)
        if dimension <= HALFVEC_DIMENSIONS:
            self._index_if_large(name, dimension)

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        chunks, dimension = _chunks(name, vectors.shape[1]), vectors.shape[1]
        rows: list[list[Match]] = [[] for _ in vectors]
        # So many of what HNSW finds have to match for the best of them to be the best of all.
        count = limit if where is None else limit * EF_SEARCH_FACTOR
        try:
            with self._transaction(name) as connection:

                def read(n: int, count: int) -> bool:
                    statement = _nearest(chunks, dimension, count, where, ids)
                    found = connection.execute(statement, {"vector": vectors[n]})
                    rows[n] = [Match(id=id_, score=-distance) for id_, distance in found]
                    return len(rows[n]) == count

                left = list(range(len(vectors)))
                if ids is None and limit <= APPROXIMATE_LIMIT:
                    connection.execute(_SET_SEARCH, _approximate(limit, where))
                    if where is None:
                        left = [n for n in left if not read(n, count)]
                        if left and not _is_indexed(connection, name):
                            left = []
                    else:
                        # A filter that is too narrow for one query is so for the others.
                        while left and read(left[0], count):
                            del left[0]
                if left:
                    connection.execute(_SET_SEARCH, _EXACT)
                    for n in left:
                        read(n, limit)
        except MissingCollection:
            if not self._is_made(name):
                raise
        return [row[:limit] for row in rows]

    def is_exact(self, where: MetadataFilter) -> bool:
        del where
        return True

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        chunks = _chunks(name)
        # Both types of pgvector can be cast to an array, which PostgreSQL sends in its own form.
        sent = func.array_send(cast(chunks.c.embedding, ARRAY(REAL)))
        vectors: dict[str, Vectors] = {}
        try:
            for first in range(0, len(ids), BATCH):
                with self._transaction(name) as connection:
                    rows = connection.execute(
                        select(chunks.c.id, sent).where(
                            _is_one_of(chunks, ids[first : first + BATCH])
                        )
                    )
                    vectors |= {id_: _unpacked(data) for id_, data in rows}
        except MissingCollection:
            if not self._is_made(name):
                raise
        return vectors

    def compare(self, name: str, entries: Sequence[VectorEntry]) -> dict[str, bool]:
        chunks = _chunks(name)
        same: dict[str, bool] = {}
        try:
            for first in range(0, len(entries), BATCH):
                batch = {entry.id: entry for entry in entries[first : first + BATCH]}
                query = select(chunks.c.id, chunks.c.text, chunks.c.metadata)
                with self._transaction(name) as connection:
                    rows = connection.execute(query.where(_is_one_of(chunks, list(batch)))).all()
                for id_, text_, metadata in rows:
                    entry = batch[id_]
                    same[id_] = text_ == entry.text and is_same(metadata, _metadata(entry))
        except MissingCollection:
            if not self._is_made(name):
                raise
        return same

    def delete(self, name: str, ids: Sequence[str]) -> int:
        chunks = _chunks(name)
        before = 0
        try:
            for first in range(0, len(ids), BATCH):
                these = _is_one_of(chunks, ids[first : first + BATCH])
                with self._transaction(name) as connection:
                    before += connection.execute(delete(chunks).where(these)).rowcount
                with self._transaction(name) as connection:
                    left = connection.scalar(select(func.count()).select_from(chunks).where(these))
                if left:
                    raise Unavailable(f"PostgreSQL still has {left} vectors of {name!r}.")
        except MissingCollection:
            return before
        return before

    def drop(self, name: str) -> int:
        chunks = _chunks(name)
        own_row = _CATALOGUE.c.name == name
        count: int | None = 0
        try:
            with self._transaction(name) as connection:
                row = select(_CATALOGUE.c.name).where(own_row).with_for_update()
                if connection.scalar(row) is None:
                    return 0
                if _exists(connection, _table_name(name)):
                    count = connection.scalar(select(func.count()).select_from(chunks))
                    connection.execute(text(f"DROP TABLE {SCHEMA}.{_table_name(name)}"))
                connection.execute(delete(_CATALOGUE).where(own_row))
        except MissingCollection:
            return 0
        return count or 0

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        chunks = _chunks(name)
        page = select(chunks.c.id).order_by(chunks.c.id).limit(limit).offset(offset)
        try:
            with self._transaction(name) as connection:
                return list(connection.scalars(page))
        except MissingCollection:
            return []

    # What is made at first use

    def _set_up(self) -> None:
        """Make the extension, the schema and the catalogue, as far as they are missing. Raises
        Permanent with what an administrator has to do if the user may not."""
        with self._transaction(SCHEMA) as connection:
            user, database = connection.execute(
                text("SELECT current_user, current_database()")
            ).one()
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": SET_UP_LOCK})
            version = connection.scalar(text(_EXTENSION))
            if version is None:
                self._make_extension(connection, user, database)
                version = connection.scalar(text(_EXTENSION))
            if tuple(int(part) for part in str(version).split(".")[:2]) < OLDEST_VERSION:
                raise Permanent(
                    f"Database {database!r} has the extension `vector` {version}; the vector store "
                    "`postgres` needs 0.8 or newer. Install it on the server, then have its owner "
                    "run ALTER EXTENSION vector UPDATE."
                )
            try:
                if not connection.scalar(
                    text("SELECT true FROM pg_catalog.pg_namespace WHERE nspname = :name"),
                    {"name": SCHEMA},
                ):
                    connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
                connection.execute(text(_CATALOGUE_DDL))
            except DBAPIError as error:
                if _sqlstate(error) != _NO_RIGHT:
                    raise
                raise Permanent(
                    f"User {user!r} ({self._setting}) may not make the schema `{SCHEMA}` in "
                    f"database {database!r}. Have an administrator run CREATE SCHEMA {SCHEMA} "
                    f'AUTHORIZATION "{user}".'
                ) from error

    def _make_extension(self, connection: Connection, user: str, database: str) -> None:
        try:
            connection.execute(text("CREATE EXTENSION vector"))
        except DBAPIError as error:
            remedy = (
                f"Have an administrator run CREATE EXTENSION vector in database {database!r} once "
                "(a superuser; with managed services, their administrator role), or name another "
                "store in SLUICE_VECTORS_URL."
            )
            sqlstate = _sqlstate(error)
            if sqlstate == _NO_RIGHT:
                raise Permanent(
                    f"Database {database!r} lacks the extension `vector` (pgvector), and user "
                    f"{user!r} ({self._setting}) may not make it. {remedy}"
                ) from error
            if sqlstate in _NOT_INSTALLED:
                raise Permanent(
                    f"PostgreSQL at {self._shown_url} ({self._setting}) has no pgvector. Install "
                    "it on the server (such as the package postgresql-17-pgvector, or the image "
                    f"pgvector/pgvector). {remedy}"
                ) from error
            raise

    def _make_table(self, name: str, dimension: int) -> None:
        own_row = _CATALOGUE.c.name == name
        table_name = f"{SCHEMA}.{_table_name(name)}"
        embedding = _Embedding(dimension)
        with self._transaction(name) as connection:
            row = select(_CATALOGUE.c.dimension).where(own_row).with_for_update()
            listed = connection.execute(row).first()
            if listed is None or (listed[0] and not _exists(connection, _table_name(name))):
                raise self._missing(name)
            options = ""
            if is_plain := embedding.size_bytes <= PLAIN_LIMIT_BYTES:
                options = f"WITH (toast_tuple_target = {embedding.size_bytes + ROW_SPARE_BYTES})"
            connection.execute(
                text(f"""
                    CREATE TABLE IF NOT EXISTS {table_name} (
                        id text COLLATE "C" PRIMARY KEY,
                        embedding {embedding.get_col_spec()} NOT NULL,
                        text text NOT NULL,
                        metadata jsonb NOT NULL
                    ) {options}
                """)
            )
            if is_plain:
                connection.execute(
                    text(f"ALTER TABLE {table_name} ALTER embedding SET STORAGE PLAIN")
                )
            connection.execute(update(_CATALOGUE).where(own_row).values(dimension=dimension))

    def _index_if_large(self, name: str, dimension: int) -> None:
        """Make the indexes of a table that has grown, unless another process does. Writers of the
        collection wait meanwhile, readers do not. If it fails, the table is searched exactly, and
        the next try comes when it has twice the size."""
        table_name = _table_name(name)
        with self._transaction(name) as connection:
            size = connection.scalar(
                text("SELECT pg_table_size(to_regclass(:table))"),
                {"table": f"{SCHEMA}.{table_name}"},
            )
            limit = self._settings.pgvector_index_above_mib * 2**20
            limit = max(limit, self._not_indexed_below.get(name, 0))
            if size is None or size <= limit or _is_indexed(connection, name):
                return
        began = time.monotonic()
        try:
            with self._transaction(
                name, timeout_s=self._settings.pgvector_index_timeout_s
            ) as connection:
                if not connection.scalar(
                    text("SELECT pg_try_advisory_xact_lock(hashtextextended(:table, 0))"),
                    {"table": f"{SCHEMA}.{table_name}"},
                ) or _is_indexed(connection, name):
                    return
                # The shared memory that parallel workers need is short in containers.
                for setting, value in (
                    ("maintenance_work_mem", INDEX_MEMORY),
                    ("max_parallel_maintenance_workers", "0"),
                ):
                    connection.execute(text(f"SET LOCAL {setting} = '{value}'"))
                kind = _Embedding(dimension).kind
                for statement in (
                    f"CREATE INDEX {_index_name(name)} ON {SCHEMA}.{table_name} "
                    f"USING hnsw (embedding {kind}_ip_ops) WITH ({HNSW})",
                    f"CREATE INDEX {table_name}_metadata ON {SCHEMA}.{table_name} "
                    "USING gin (metadata jsonb_path_ops)",
                    f"ANALYZE {SCHEMA}.{table_name}",
                ):
                    connection.execute(text(statement))
        except MissingCollection:
            return  # it was just dropped
        except StepError as error:
            self._not_indexed_below[name] = 2 * size
            log.warning(
                "collection %s has no index yet and is searched exactly, which is slow: %s (it may "
                "take SLUICE_PGVECTOR_INDEX_TIMEOUT_S)", name, error,
            )  # fmt: skip
        else:
            seconds = time.monotonic() - began
            log.info("collection %s: vectors indexed in %.1f s", name, seconds)

    def _is_made(self, name: str) -> bool:
        """Whether the collection is there, perhaps without a table, for it has no chunks yet. One
        whose dimension is known has had a table: without it, it is lost."""
        try:
            with self._transaction(name) as connection:
                row = select(_CATALOGUE.c.dimension).where(_CATALOGUE.c.name == name)
                listed = connection.execute(row).first()
                return listed is not None and (
                    listed[0] is None or _exists(connection, _table_name(name))
                )
        except MissingCollection:
            return False

    # Transactions and errors

    @contextmanager
    def _transaction(self, name: str, *, timeout_s: float | None = None) -> Iterator[Connection]:
        """A transaction whose statements end in time. Raises our exceptions for the database's;
        `MissingCollection` if a table is missing."""
        timeout_s = timeout_s or self._settings.request_timeout_s
        try:
            with self._engine.connect() as connection:
                driver_connection = connection.connection.driver_connection
                assert isinstance(driver_connection, _Connection)
                driver_connection.answer_limit_s = timeout_s + ANSWER_GRACE_S
                with connection.begin():
                    connection.execute(_SET_LOCAL, {"timeout": f"{max(1, int(timeout_s * 1000))}"})
                    yield connection
        except (DBAPIError, PoolTimeout) as error:
            raise self._translated(name, error) from error

    def _translated(self, name: str, error: DBAPIError | PoolTimeout) -> StepError:
        if _sqlstate(error) in _MISSING:
            return self._missing(name)
        trouble = trouble_of(error)
        reason = first_line(error)
        if trouble is not None and trouble.meaning in (Meaning.AWAY, Meaning.BUSY):
            hint = ""
            if trouble.sqlstate == "57014":
                hint = "; a statement may take SLUICE_REQUEST_TIMEOUT_S"
            return Unavailable(
                f"The vector store {self._shown_url} ({self._setting}) failed: {reason}{hint}"
            )
        return Permanent(f"The vector store {self._shown_url} ({self._setting}) refused: {reason}")

    def _missing(self, name: str) -> MissingCollection:
        return MissingCollection(
            f"The vector store {self._shown_url} ({self._setting}) has no collection {name!r}: its "
            f"data was lost or is in another database. {REBUILD}"
        )

    @property
    def _shown_url(self) -> str:
        url = make_url(psycopg_url(self._url))
        shown = URL.create("postgresql", host=url.host, port=url.port, database=url.database)
        return shown.render_as_string()


# Tables and statements


def _table_name(name: str) -> str:
    """Of a collection: names may be in any script and long, PostgreSQL's have 63 bytes."""
    return f"c_{hashlib.sha256(name.encode()).hexdigest()[:40]}"


def _index_name(name: str) -> str:
    return f"{_table_name(name)}_hnsw"


class _Embedding(UserDefinedType[Any]):
    """A vector of n dimensions; of any number in a cast."""

    cache_ok = True

    def __init__(self, dimension: int, *, is_cast: bool = False) -> None:
        self.dimension = dimension
        self.is_cast = is_cast

    @property
    def kind(self) -> str:
        is_half = VECTOR_DIMENSIONS < self.dimension <= HALFVEC_DIMENSIONS
        return "halfvec" if is_half else "vector"

    @property
    def size_bytes(self) -> int:
        return 8 + (2 if self.kind == "halfvec" else 4) * self.dimension

    def get_col_spec(self, **_: Any) -> str:
        return self.kind if self.is_cast else f"{self.kind}({self.dimension})"

    def bind_processor(self, dialect: Any) -> Any:
        del dialect
        number = ">f2" if self.kind == "halfvec" else ">f4"

        def pack(vector: Vectors) -> "_Packed":
            return _Packed(struct.pack(">HH", len(vector), 0) + vector.astype(number).tobytes())

        return pack


class _Packed(bytes):
    """A vector as PostgreSQL receives it in binary form: dimension, two unused bytes, numbers."""


class _PackedDumper(psycopg.adapt.Dumper):
    """Without a type: the server takes that from the statement, for its number differs in each
    database."""

    format = Format.BINARY

    def dump(self, obj: _Packed) -> bytes:
        return obj


def _chunks(name: str, dimension: int = 1) -> TableClause:
    """The table of a collection; only who writes or compares vectors has to name the dimension."""
    return table(
        _table_name(name),
        column("id", Text),
        column("embedding", _Embedding(dimension)),
        column("text", Text),
        column("metadata", JSONB),
        schema=SCHEMA,
    )


def _row(entry: VectorEntry, vector: Vectors) -> dict[str, object]:
    return {
        "id": entry.id,
        "embedding": vector,
        "text": entry.text,
        "metadata": _metadata(entry),
    }


def _metadata(entry: VectorEntry) -> dict[str, Any]:
    users = {nfc(key): nfc_value(value) for key, value in entry.metadata.items()}
    return {**entry.own, **users}


def _nearest(
    chunks: TableClause,
    dimension: int,
    limit: int,
    where: MetadataFilter | None,
    ids: Sequence[str] | None,
) -> Select[str, float]:
    """The ids of the nearest chunks with the negative inner product, in the order of it. `vector`
    is its parameter."""
    type_ = _Embedding(dimension, is_cast=True)
    operand = cast(bindparam("vector", type_=type_), type_)
    inner_product: ColumnElement[float] = chunks.c.embedding.op("<#>", return_type=Double())(
        operand
    )
    distance = inner_product.label("distance")
    statement = select(chunks.c.id, distance).order_by(distance).limit(limit)
    if where is not None:
        statement = statement.where(filtering.condition_on(where, chunks.c.metadata))
    if ids is not None:
        statement = statement.where(_is_one_of(chunks, ids))
    return statement


def _is_one_of(chunks: TableClause, ids: Sequence[str]) -> Any:
    return chunks.c.id == func.any(literal(list(ids), ARRAY(Text)))


_EXACT = {
    "ef_search": str(EF_SEARCH), "iterative_scan": "off", "index": "off", "whole": "on",
}  # fmt: skip
"""Without index scans, of which those of HNSW are some, a search is exact: the other indexes are
used as bitmaps."""


def _approximate(limit: int, where: MetadataFilter | None) -> dict[str, str]:
    """The planner cannot know how much a filter on JSON leaves: where there is an index, no table
    is read whole."""
    has_filter = where is not None
    ef_search = LARGEST_EF_SEARCH if has_filter else max(EF_SEARCH, EF_SEARCH_FACTOR * limit)
    return {
        "ef_search": str(ef_search),
        "iterative_scan": "off" if has_filter else "strict_order",
        "index": "on",
        "whole": "off",
    }


_EXISTS = text("""
    SELECT EXISTS (
        SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = :schema AND c.relname = :name
    )
""")


def _exists(connection: Connection, relation: str) -> bool:
    """Whether there is a table or an index at this moment; `to_regclass` may say what was true when
    the transaction began."""
    return bool(connection.scalar(_EXISTS, {"schema": SCHEMA, "name": relation}))


def _is_indexed(connection: Connection, name: str) -> bool:
    return _exists(connection, _index_name(name))


def _unpacked(data: bytes) -> Vectors:
    """An array of one dimension as PostgreSQL sends it: a head of 20 bytes, then each number with
    its length."""
    items = np.frombuffer(data, dtype=[("length", ">i4"), ("number", ">f4")], offset=20)
    return items["number"].astype(np.float32)


def _sqlstate(error: DBAPIError | PoolTimeout) -> str | None:
    return getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None


class _Connection(psycopg.Connection[Any]):
    """A connection that is closed if the server does not answer: PostgreSQL's own timeouts end
    statements, but do nothing about a server, or a network, that is silent."""

    answer_limit_s = 60.0

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **options: Any) -> T:
        return super().wait(self._limited(gen), *args, **options)

    def _limited(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """The same steps; psycopg takes one each tenth of a second, also while nothing comes."""
        ends = time.monotonic() + self.answer_limit_s
        try:
            state = next(gen)
            while True:
                ready = yield state
                if time.monotonic() > ends:
                    gen.close()
                    self.close()
                    raise psycopg.OperationalError(
                        f"no answer within {self.answer_limit_s:g} s (SLUICE_REQUEST_TIMEOUT_S)"
                    )
                state = gen.send(ready)
        except StopIteration as end:
            value: T = end.value
            return value
