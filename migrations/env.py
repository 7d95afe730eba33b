"""Alembic's entry point; `shared.database.engine.migration_config` sets the URL."""

from alembic import context
from sqlalchemy import NullPool, create_engine, text

from shared.tables import Base

LOCK = 0x5C1CE  # any fixed number: hosts that start together migrate one after another


def run() -> None:
    engine = create_engine(context.config.attributes["url"], poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context.configure(
            connection=connection, target_metadata=Base.metadata, compare_server_default=True
        )
        context.run_migrations()


run()
