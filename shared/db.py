"""Engine, sessions and migrations. Callers open transactions; helpers never commit."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session, sessionmaker

from shared.config import Settings

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def make_engine(settings: Settings) -> Engine:
    """A pooled engine; dead connections are noticed before use, slow statements are ended."""
    return create_engine(
        psycopg_url(settings.require_database_url()),
        pool_size=settings.database_pool_connections,
        max_overflow=settings.database_pool_connections,
        pool_timeout=settings.request_timeout_s,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={
            "connect_timeout": max(1, int(settings.connect_timeout_s)),
            "options": "-c timezone=UTC -c statement_timeout="
            f"{int(settings.database_statement_timeout_s * 1000)}",
        },
    )


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
