"""lexical index: postings of terms, in segments that do not change"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

# Packed already, and read by their keys: compressing them would cost time and save little.
UNCOMPRESSED = [
    ("lexical_segments", "members"),
    ("lexical_segments", "lengths"),
    ("lexical_segments", "page_ends"),
    ("lexical_pages", "data"),
]


def upgrade() -> None:
    op.add_column(
        "versions",
        sa.Column("lexical_fields", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
    )
    op.create_index(
        "ix_versions_without_terms",
        "versions",
        ["id"],
        postgresql_where=sa.text("state = 'live' AND lexical_fields & 1 = 0"),
    )
    op.create_index(
        "ix_versions_without_morphemes",
        "versions",
        ["id"],
        postgresql_where=sa.text("state = 'live' AND lexical_fields & 2 = 0"),
    )
    op.create_table(
        "lexical_segments",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("collection_id", sa.Uuid(), nullable=False),
        sa.Column("field", sa.SmallInteger(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=True),
        sa.Column("tier", sa.SmallInteger(), nullable=False),
        sa.Column("chunks", sa.Integer(), nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.Column("members", sa.LargeBinary(), nullable=False),
        sa.Column("lengths", sa.LargeBinary(), nullable=False),
        sa.Column("page_ends", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"],
            ["versions.id"],
            name=op.f("fk_lexical_segments_version_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_lexical_segments")),
    )
    op.create_index(
        "ix_lexical_segments_tier",
        "lexical_segments",
        ["collection_id", "field", "version_id", "tier"],
        postgresql_include=["id"],
    )
    op.create_index(
        "ix_lexical_segments_version_id",
        "lexical_segments",
        ["version_id"],
        postgresql_where=sa.text("version_id IS NOT NULL"),
    )
    op.create_table(
        "lexical_pages",
        sa.Column("segment_id", sa.BigInteger(), nullable=False),
        sa.Column("last_term", sa.BigInteger(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["segment_id"],
            ["lexical_segments.id"],
            name=op.f("fk_lexical_pages_segment_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("segment_id", "last_term", name=op.f("pk_lexical_pages")),
    )
    op.create_table(
        "lexical_deaths",
        sa.Column("collection_id", sa.Uuid(), nullable=False),
        sa.Column("field", sa.SmallInteger(), nullable=False),
        sa.Column("version_id", sa.Uuid(), nullable=False),
        sa.Column("chunks", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint(
            "collection_id", "field", "version_id", name=op.f("pk_lexical_deaths")
        ),
    )
    for table, column in UNCOMPRESSED:
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")


def downgrade() -> None:
    op.drop_table("lexical_deaths")
    op.drop_table("lexical_pages")
    op.drop_table("lexical_segments")
    op.drop_index("ix_versions_without_morphemes", "versions")
    op.drop_index("ix_versions_without_terms", "versions")
    op.drop_column("versions", "lexical_fields")
