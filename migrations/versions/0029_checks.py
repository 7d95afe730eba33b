"""Checks of collections against the vector store, and when each of its servers was last seen."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0029"
down_revision = "0028"
branch_labels = None
depends_on = None

_TIME = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.create_table(
        "collection_checks",
        sa.Column("collection_id", sa.Uuid(), nullable=False),
        sa.Column("due_at", _TIME, nullable=True),
        sa.Column("finished_at", _TIME, nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("state", sa.Text(), nullable=True),
        sa.Column(
            "counts", postgresql.JSONB(none_as_null=True), server_default=sa.text("'{}'"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.id"],
            name=op.f("fk_collection_checks_collection_id_collections"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("collection_id", name=op.f("pk_collection_checks")),
    )  # fmt: skip
    op.create_index(
        "ix_collection_checks_due_at",
        "collection_checks",
        ["due_at"],
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    op.create_table(
        "store_servers",
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("seen_at", _TIME, nullable=False),
        sa.Column("away_at", _TIME, nullable=True),
        sa.PrimaryKeyConstraint("url", name=op.f("pk_store_servers")),
    )


def downgrade() -> None:
    op.drop_table("store_servers")
    op.drop_table("collection_checks")
