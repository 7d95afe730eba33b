"""Imports: collections that nobody sees until all of them has been written."""

import sqlalchemy as sa
from alembic import op

revision = "0030"
down_revision = "0029"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("collections", sa.Column("importing_job_id", sa.Uuid(), nullable=True))
    op.create_index(
        "ix_collections_importing_job_id",
        "collections",
        ["importing_job_id"],
        postgresql_where=sa.text("importing_job_id IS NOT NULL"),
    )


def downgrade() -> None:
    """Collections that are not complete stay hidden: they can be erased."""
    op.execute("UPDATE collections SET erasing_at = now() WHERE importing_job_id IS NOT NULL")
    op.drop_index("ix_collections_importing_job_id", "collections")
    op.drop_column("collections", "importing_job_id")
