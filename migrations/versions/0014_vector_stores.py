"""Collections as vector stores of OpenAI's API: names, metadata, expiry, and files put into them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

NOW = sa.text("now()")
EMPTY = sa.text("'{}'")


def upgrade() -> None:
    op.add_column("collections", sa.Column("display_name", sa.Text(), nullable=True))
    op.add_column(
        "collections", sa.Column("metadata", JSONB(), server_default=EMPTY, nullable=False)
    )
    op.add_column("collections", sa.Column("expires_after_days", sa.Integer(), nullable=True))
    op.add_column(
        "collections",
        sa.Column("used_at", TIMESTAMP(timezone=True), server_default=NOW, nullable=False),
    )
    op.create_index(
        "ix_collections_expires_after_days",
        "collections",
        ["id"],
        postgresql_where=sa.text("expires_after_days IS NOT NULL AND erasing_at IS NULL"),
    )
    op.add_column("versions", sa.Column("attributes", JSONB(), nullable=True))
    op.create_table(
        "attachments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("collection_id", sa.Uuid(), nullable=False),
        sa.Column("file_id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("document_id", sa.Uuid(), nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("attributes", JSONB(), server_default=EMPTY, nullable=False),
        sa.Column("splitter", JSONB(), server_default=EMPTY, nullable=False),
        sa.Column("created_at", TIMESTAMP(timezone=True), server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_attachments"),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.id"],
            name="fk_attachments_collection_id",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["document_id"],
            ["documents.id"],
            name="fk_attachments_document_id",
            ondelete="SET NULL",
        ),
        sa.UniqueConstraint(
            "collection_id", "file_id", name="uq_attachments_collection_id_file_id"
        ),
        sa.UniqueConstraint("collection_id", "source", name="uq_attachments_collection_id_source"),
    )
    op.create_index("ix_attachments_collection_id_id", "attachments", ["collection_id", "id"])
    op.create_index("ix_attachments_file_id", "attachments", ["file_id"])
    op.create_index("ix_attachments_job_id", "attachments", ["job_id"])
    op.create_index(
        "ix_attachments_document_id",
        "attachments",
        ["document_id"],
        postgresql_where=sa.text("document_id IS NOT NULL"),
    )
    op.create_index(
        "ix_attachments_incomplete",
        "attachments",
        ["collection_id"],
        postgresql_where=sa.text("state <> 'completed'"),
    )


def downgrade() -> None:
    op.drop_table("attachments")
    op.drop_column("versions", "attributes")
    op.drop_index("ix_collections_expires_after_days", table_name="collections")
    for name in ("used_at", "expires_after_days", "metadata", "display_name"):
        op.drop_column("collections", name)
