"""The migrations make exactly the tables that the models describe, and undo them."""

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect

from shared.config import Settings
from shared.db import is_current, make_engine, migration_config, upgrade
from shared.models import Base


def test_models_and_migrations_agree(settings: Settings) -> None:
    engine = make_engine(settings)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
    assert is_current(engine)
    engine.dispose()


def test_downgrade_removes_every_table_and_upgrade_brings_them_back(settings: Settings) -> None:
    url = settings.require_database_url()
    command.downgrade(migration_config(url), "base")
    engine = make_engine(settings)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    assert not is_current(engine)
    upgrade(url)
    assert is_current(engine)
    engine.dispose()
