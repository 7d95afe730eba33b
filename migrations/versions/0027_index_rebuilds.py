"""Rebuilds of vector indexes: what is in an index that is not active, and how long it is kept."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0027"
down_revision = "0026"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("vector_indexes", sa.Column("job_id", sa.Uuid(), nullable=True))
    for name in ("paused_until", "kept_until"):
        op.add_column(
            "vector_indexes", sa.Column(name, postgresql.TIMESTAMP(timezone=True), nullable=True)
        )
    op.create_index(
        "uq_vector_indexes_building",
        "vector_indexes",
        ["collection_id"],
        unique=True,
        postgresql_where=sa.text("state = 'building'"),
    )
    op.create_table(
        "vector_index_versions",
        sa.Column("index_id", sa.Uuid(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("embedded", postgresql.INT4MULTIRANGE(), nullable=False),
        sa.ForeignKeyConstraint(
            ["index_id"],
            ["vector_indexes.id"],
            name=op.f("fk_vector_index_versions_index_id_vector_indexes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("index_id", "version_id", name=op.f("pk_vector_index_versions")),
    )


def downgrade() -> None:
    op.drop_table("vector_index_versions")
    op.drop_index("uq_vector_indexes_building", "vector_indexes")
    for name in ("job_id", "paused_until", "kept_until"):
        op.drop_column("vector_indexes", name)
