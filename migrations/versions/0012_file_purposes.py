"""Files: what they are for, when they expire, and files that grow."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("files", sa.Column("parts", ARRAY(sa.Text()), nullable=True))
    op.add_column(
        "files",
        sa.Column("purpose", sa.Text(), server_default=sa.text("'user_data'"), nullable=False),
    )
    op.add_column("files", sa.Column("expires_at", TIMESTAMP(timezone=True), nullable=True))
    op.create_index("ix_files_purpose_id", "files", ["purpose", "id"])
    op.create_index(
        "ix_files_expires_at",
        "files",
        ["expires_at"],
        postgresql_where=sa.text("expires_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("ix_files_expires_at", table_name="files")
    op.drop_index("ix_files_purpose_id", table_name="files")
    for name in ("expires_at", "purpose", "parts"):
        op.drop_column("files", name)
