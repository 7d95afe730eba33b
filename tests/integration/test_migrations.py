"""The migrations make exactly the tables that the models describe, and undo them."""

from unicodedata import normalize

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text

from shared.config import Settings
from shared.database.engine import is_current, make_engine, migration_config, upgrade
from shared.tables import Base, new_id


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


def test_names_that_were_taken_apart_are_composed(settings: Settings) -> None:
    url = settings.require_database_url()
    engine = make_engine(settings)
    command.downgrade(migration_config(url), "0005")
    one, other = new_id(), new_id()
    apart = normalize("NFD", "출입 규정.md")
    names = [
        (one, apart), (one, "e\u0323\u0302"), (one, "e\u0302\u0323"), (one, "plain.md"),
        (other, apart), (other, "출입 규정.md"),
    ]  # fmt: skip
    with engine.begin() as connection:
        for id_ in (one, other):
            connection.execute(
                text("""
                    INSERT INTO collections (id, name, embedding_model, distance)
                    VALUES (:id, :name, 'm', 'cosine')
                """),
                {"id": id_, "name": f"c-{id_}"},
            )
        for collection, name in names:
            connection.execute(
                text("INSERT INTO documents (id, collection_id, source) VALUES (:id, :c, :name)"),
                {"id": new_id(), "c": collection, "name": name},
            )

    upgrade(url)

    with engine.begin() as connection:
        rows = connection.execute(text("SELECT collection_id, source FROM documents ORDER BY id"))
        assert rows.all() == [
            (one, "출입 규정.md"), (one, "\u1ec7"), (one, "e\u0302\u0323"), (one, "plain.md"),
            (other, apart), (other, "출입 규정.md"),
        ]  # fmt: skip
        connection.execute(text("DELETE FROM collections"))
    engine.dispose()


def test_deletions_keep_their_rows_and_old_processes_go_on(settings: Settings) -> None:
    url = settings.require_database_url()
    engine = make_engine(settings)
    command.downgrade(migration_config(url), "0027")
    version = {"id": new_id()}
    before = (
        "INSERT INTO doomed_paths (path, is_folder) VALUES ('results/1', true)",
        "INSERT INTO lexical_deaths VALUES (:id, 0, :id, 7)",
    )
    with engine.begin() as connection:
        for statement in before:
            connection.execute(text(statement), version)

    upgrade(url)

    old_process = (
        "INSERT INTO doomed_paths (path, is_folder) VALUES ('results/1', true), ('2', false)"
        " ON CONFLICT DO NOTHING",
        "UPDATE doomed_paths SET tries = tries + 1 WHERE path = '2'",
        "INSERT INTO lexical_deaths SELECT :id, f, :id, 9 FROM (VALUES (0), (1)) v (f)"
        " ON CONFLICT DO NOTHING",
        "DELETE FROM lexical_deaths WHERE version_id = :id AND field = 1",
    )
    paths = text("SELECT path, is_folder, tries FROM paths_to_delete ORDER BY path DESC")
    with engine.begin() as connection:
        for statement in old_process:
            connection.execute(text(statement), version)
        assert connection.execute(paths).all() == [("results/1", True, 0), ("2", False, 1)]
        deletions = connection.execute(text("SELECT field, chunks FROM lexical_deletions"))
        assert deletions.all() == [(0, 7)]

    command.downgrade(migration_config(url), "0027")
    upgrade(url)

    with engine.begin() as connection:
        assert len(connection.execute(paths).all()) == 2
        for table in ("paths_to_delete", "lexical_deletions"):
            connection.execute(text(f"DELETE FROM {table}"))
    engine.dispose()


def test_every_collection_has_the_index_that_it_was_itself(settings: Settings) -> None:
    url = settings.require_database_url()
    engine = make_engine(settings)
    command.downgrade(migration_config(url), "0025")
    with engine.begin() as connection:
        for name, dimension, tuning in (("plain", None, None), ("출입", 384, '{"mean": 0.5}')):
            connection.execute(
                text("""
                    INSERT INTO collections
                        (id, name, embedding_model, dimension, distance, tuning)
                    VALUES (:id, :name, 'm', :dimension, 'ip', CAST(:tuning AS jsonb))
                """),
                {"id": new_id(), "name": name, "dimension": dimension, "tuning": tuning},
            )

    upgrade(url)

    columns = "i.embedding_model, i.dimension, i.distance, i.stored_name, i.state, i.tuning"
    query = f"SELECT {columns} FROM vector_indexes i JOIN collections c ON c.id = i.collection_id"
    numbers = text("SELECT indexes_made FROM collections ORDER BY name")
    rows = [
        ("m", None, "ip", "plain", "active", None),
        ("m", 384, "ip", "출입", "active", {"mean": 0.5}),
    ]
    with engine.begin() as connection:
        assert connection.execute(text(f"{query} ORDER BY c.name")).all() == rows
        connection.execute(
            text("""
                INSERT INTO vector_indexes
                    (id, collection_id, embedding_model, distance, stored_name, state)
                SELECT gen_random_uuid(), id, 'new', 'ip', name || '.2', 'building'
                FROM collections
            """)
        )

    command.downgrade(migration_config(url), "0030")
    upgrade(url)
    with engine.begin() as connection:
        assert connection.scalars(numbers).all() == [2, 2]
        switched = text("UPDATE vector_indexes SET stored_name = :now WHERE stored_name = :before")
        connection.execute(switched, {"before": "출입", "now": "출입.9"})
        half = {"id": new_id()}
        connection.execute(
            text("INSERT INTO collections (id, name, importing_job_id) VALUES (:id, 'half', :id)"),
            half,
        )
        connection.execute(
            text("""
                INSERT INTO vector_indexes
                    (id, collection_id, embedding_model, distance, stored_name, state)
                VALUES (:id, :id, 'm', 'ip', 'half', 'active')
            """),
            half,
        )

    with pytest.raises(RuntimeError, match=r"출입 have another one.*--rollback"):
        command.downgrade(migration_config(url), "0025")

    with engine.begin() as connection:
        connection.execute(switched, {"before": "출입.9", "now": "출입"})
    command.downgrade(migration_config(url), "0025")

    with engine.begin() as connection:
        # Half a collection stays hidden.
        hidden = text("DELETE FROM collections WHERE name = 'half' AND erasing_at IS NOT NULL")
        assert connection.execute(hidden).rowcount == 1
        old = connection.execute(
            text("SELECT embedding_model, dimension, distance, tuning FROM collections")
        )
        assert sorted(old.all(), key=str) == [
            ("m", 384, "ip", {"mean": 0.5}), ("m", None, "ip", None),
        ]  # fmt: skip
        connection.execute(text("DELETE FROM collections"))
    upgrade(url)
    engine.dispose()
