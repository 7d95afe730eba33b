"""Engine, sessions and migrations. Callers open transactions; helpers never commit."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import DataError
from psycopg.abc import Loader as LoaderType
from psycopg.adapt import Buffer, Dumper, Loader
from psycopg.pq import Format
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry

from shared.bounds import EARLIEST, LATEST, from_json, storable_text, to_json
from shared.config import ConnectionSettings

if TYPE_CHECKING:
    from alembic.config import Config

PING_AFTER_S = 1.0
USED_AT = "sluice.used_at"
MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def make_engine(settings: ConnectionSettings, *, plans_once: bool = False) -> Engine:
    """A pooled engine; dead connections are noticed before use, slow statements are ended.

    What is written is made storable or refused, and whatever a row holds can be read: see
    `shared/bounds.py`. Errors do not show the parameters of statements, which are what users sent.

    `plans_once`: each connection plans a statement at its first use, whatever the values are, and
    never again. Conditions of partial indexes must then be literals in the statement.
    """
    options = (
        "-c timezone=UTC -c statement_timeout="
        f"{int(settings.database_statement_timeout_s * 1000)} -c lock_timeout="
        f"{int((settings.database_lock_timeout_s or 0) * 1000)}"
    )
    connect_args: dict[str, Any] = {
        "connect_timeout": max(1, int(settings.connect_timeout_s)),
        "options": options,
    }
    if plans_once:
        connect_args["options"] += " -c plan_cache_mode=force_generic_plan"
        connect_args["prepare_threshold"] = 0
    return _pooled(
        settings.require_database_url(),
        settings,
        connect_args,
        max_overflow=settings.database_pool_connections,
    )


def make_portable_engine(url: str, settings: ConnectionSettings) -> Engine:
    """A pooled engine for any database, perhaps behind a pooler that gives each transaction another
    connection: it sets nothing for a session and prepares no statements. Callers set timeouts in
    each transaction (`SET LOCAL`). It has as many connections as there are threads that ask at
    once: who waits for one in a pool may be passed over for ever."""
    connect_args: dict[str, Any] = {
        "connect_timeout": max(1, int(settings.connect_timeout_s)),
        "prepare_threshold": None,
    }
    return _pooled(url, settings, connect_args, max_overflow=-1)


def _pooled(
    url: str, settings: ConnectionSettings, connect_args: dict[str, Any], *, max_overflow: int
) -> Engine:
    engine = create_engine(
        psycopg_url(url),
        pool_size=settings.database_pool_connections,
        max_overflow=max_overflow,
        pool_timeout=settings.request_timeout_s,
        pool_recycle=1800,
        hide_parameters=True,
        client_encoding="utf8",
        json_serializer=to_json,
        json_deserializer=from_json,
        connect_args=connect_args,
    )
    _ping_idle_connections(engine)
    _adapt_values(engine)
    return engine


def _adapt_values(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _adapt(connection: Any, _record: ConnectionPoolEntry) -> None:
        connection.adapters.register_dumper(str, _StorableText)
        connection.adapters.register_loader("timestamptz", _AnyMoment)


class _StorableText(Dumper):
    """Text with U+FFFD for what PostgreSQL cannot hold."""

    def dump(self, obj: str) -> Buffer:
        return storable_text(obj).encode()


class _AnyMoment(Loader):
    """Dates that Python cannot hold are read as the first or the last that it can."""

    def __init__(self, oid: int, context: Any = None) -> None:
        super().__init__(oid, context)
        self._inner = _usual_loader(oid)(oid, context)

    def load(self, data: Buffer) -> Any:
        try:
            return self._inner.load(data)
        except DataError:
            text = bytes(data)
            return EARLIEST if text.endswith(b"BC") or text.startswith(b"-") else LATEST


def _usual_loader(oid: int) -> type[LoaderType]:
    loader = psycopg.adapters.get_loader(oid, Format.TEXT)
    assert loader is not None
    return loader


def _ping_idle_connections(engine: Engine) -> None:
    """SQLAlchemy's `pool_pre_ping`, but not for connections that were in use a moment ago.

    That would be a third of the time of a short transaction.
    """

    @event.listens_for(engine, "checkin")
    def _note(_connection: Any, record: ConnectionPoolEntry) -> None:
        record.info[USED_AT] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def _ping(connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
        idle_s = time.monotonic() - record.info.get(USED_AT, time.monotonic())
        if idle_s < PING_AFTER_S:
            return
        try:
            alive = engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError from error
        if not alive:
            raise DisconnectionError


def psycopg_url(url: str) -> str:
    """`postgres://` and `postgresql://` URLs, with the driver that Sluice uses."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1))
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


# Alembic is imported where it is used, for it takes long, and workers never need it.


def migration_config(url: str) -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["url"] = psycopg_url(url)
    return config


def upgrade(database_url: str) -> None:
    """Bring the database to the newest revision; concurrent calls wait for one another."""
    from alembic import command

    command.upgrade(migration_config(database_url), "head")


def is_current(engine: Engine) -> bool:
    """Whether the database is at the newest revision."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head
