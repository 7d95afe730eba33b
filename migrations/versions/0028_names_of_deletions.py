"""Names of deletions: paths to delete, and versions deleted from the lexical index.

Views of the old names serve processes of the version before, which may still run during an update:
PostgreSQL passes what they read and write on to the tables. A later version removes the views.
"""

from alembic import op

revision = "0028"
down_revision = "0027"
branch_labels = None
depends_on = None

TABLES = {"doomed_paths": "paths_to_delete", "lexical_deaths": "lexical_deletions"}
INDEXES = {
    "pk_doomed_paths": "pk_paths_to_delete",
    "ix_doomed_paths_retry_at": "ix_paths_to_delete_retry_at",
    "pk_lexical_deaths": "pk_lexical_deletions",
}
"""The constraint of a primary key is renamed with its index."""


def upgrade() -> None:
    for old, new in TABLES.items():
        op.rename_table(old, new)
    for old, new in INDEXES.items():
        op.execute(f"ALTER INDEX {old} RENAME TO {new}")
    for old, new in TABLES.items():
        op.execute(f"CREATE VIEW {old} AS SELECT * FROM {new}")


def downgrade() -> None:
    for old in TABLES:
        op.execute(f"DROP VIEW {old}")
    for old, new in INDEXES.items():
        op.execute(f"ALTER INDEX {new} RENAME TO {old}")
    for old, new in TABLES.items():
        op.rename_table(new, old)
