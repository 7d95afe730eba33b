"""What lines of batches wait for, so that those that wait for one thing leave room for others."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "batch_lines",
        sa.Column("queue_model", sa.Text(), server_default=sa.text("''"), nullable=False),
    )
    op.drop_index("ix_batch_lines_unsettled", table_name="batch_lines")
    op.create_index(
        "ix_batch_lines_waiting",
        "batch_lines",
        ["batch_id", "queue_model", "number"],
        postgresql_where=sa.text("state = 'waiting'"),
    )
    op.create_index(
        "ix_batch_lines_open",
        "batch_lines",
        ["batch_id", "number"],
        postgresql_where=sa.text("state = 'open'"),
    )


def downgrade() -> None:
    op.drop_index("ix_batch_lines_open", table_name="batch_lines")
    op.drop_index("ix_batch_lines_waiting", table_name="batch_lines")
    op.create_index(
        "ix_batch_lines_unsettled",
        "batch_lines",
        ["batch_id", "state", "number"],
        postgresql_where=sa.text("state IN ('waiting', 'open')"),
    )
    op.drop_column("batch_lines", "queue_model")
