"""Engine, sessions and migrations. Callers open transactions; helpers never commit."""

import time
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry

from shared.config import Settings

PING_AFTER_S = 1.0
USED_AT = "sluice.used_at"
MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def make_engine(settings: Settings) -> Engine:
    """A pooled engine; dead connections are noticed before use, slow statements are ended."""
    engine = create_engine(
        psycopg_url(settings.require_database_url()),
        pool_size=settings.database_pool_connections,
        max_overflow=settings.database_pool_connections,
        pool_timeout=settings.request_timeout_s,
        pool_recycle=1800,
        connect_args={
            "connect_timeout": max(1, int(settings.connect_timeout_s)),
            "options": "-c timezone=UTC -c statement_timeout="
            f"{int(settings.database_statement_timeout_s * 1000)}",
        },
    )
    _ping_idle_connections(engine)
    return engine


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


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    return sessionmaker(engine, expire_on_commit=False)


def psycopg_url(url: str) -> str:
    """`postgres://` and `postgresql://` URLs, with the driver that Sluice uses."""
    parsed = make_url(url.replace("postgres://", "postgresql://", 1))
    return parsed.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def migration_config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["url"] = psycopg_url(url)
    return config


def upgrade(database_url: str) -> None:
    """Bring the database to the newest revision; concurrent calls wait for one another."""
    command.upgrade(migration_config(database_url), "head")


def is_current(engine: Engine) -> bool:
    """Whether the database is at the newest revision."""
    head = ScriptDirectory(str(MIGRATIONS)).get_current_head()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision() == head
