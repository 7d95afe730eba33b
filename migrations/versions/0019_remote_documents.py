"""Sources that are many documents, such as web sites; and what servers said of documents."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

MOMENT = postgresql.TIMESTAMP(timezone=True)
JSON = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())


def upgrade() -> None:
    op.add_column("ingest_items", sa.Column("parent", sa.Integer(), nullable=True))
    op.add_column("ingest_items", sa.Column("source", JSON, nullable=True))
    op.create_index(
        "ix_ingest_items_parent",
        "ingest_items",
        ["job_id", "parent", "ordinal"],
        postgresql_where=sa.text("parent IS NOT NULL"),
    )
    op.create_table(
        "remote_documents",
        sa.Column("collection_id", sa.Uuid(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("modified", sa.Text(), nullable=True),
        sa.Column("recipe", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.Text(), nullable=False),
        sa.Column("links", postgresql.ARRAY(sa.Text()), nullable=True),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.id"],
            name=op.f("fk_remote_documents_collection_id_collections"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("collection_id", "source", name=op.f("pk_remote_documents")),
    )
    op.create_index(
        "ix_remote_documents_parent",
        "remote_documents",
        ["collection_id", "parent"],
        postgresql_where=sa.text("parent IS NOT NULL"),
    )
    op.create_table(
        "remote_hosts",
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("next_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("origin", name=op.f("pk_remote_hosts")),
    )


def downgrade() -> None:
    op.drop_table("remote_hosts")
    op.drop_table("remote_documents")
    op.drop_index("ix_ingest_items_parent", table_name="ingest_items")
    op.drop_column("ingest_items", "source")
    op.drop_column("ingest_items", "parent")
