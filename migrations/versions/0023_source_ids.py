"""Ids of documents that clients choose."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("documents", sa.Column("source_id", sa.Text(), nullable=True))
    op.create_index(
        "uq_documents_source_id",
        "documents",
        ["collection_id", "source_id"],
        unique=True,
        postgresql_where=sa.text("source_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("uq_documents_source_id", table_name="documents")
    op.drop_column("documents", "source_id")
