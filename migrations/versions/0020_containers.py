"""Documents that were found in others, such as archives."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("documents", sa.Column("container", sa.Text(), nullable=True))
    op.create_index(
        "ix_documents_container",
        "documents",
        ["collection_id", "container"],
        postgresql_where=sa.text("container IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_documents_container", table_name="documents")
    op.drop_column("documents", "container")
