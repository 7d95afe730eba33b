"""Documents with the same bytes are looked for."""

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_versions_sha256", "versions", ["sha256"])


def downgrade() -> None:
    op.drop_index("ix_versions_sha256", table_name="versions")
