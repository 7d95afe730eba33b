"""sweeps: rows that the sweeper cannot handle, paths to delete, a queue of webhooks"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NOW = sa.text("now()")


def _time(name: str) -> sa.Column[object]:
    return sa.Column(name, postgresql.TIMESTAMP(timezone=True), server_default=NOW, nullable=False)


def upgrade() -> None:
    op.create_table(
        "sweep_faults",
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("item", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), server_default=sa.text("1"), nullable=False),
        _time("first_at"),
        _time("last_at"),
        _time("retry_at"),
        sa.PrimaryKeyConstraint("part", "item", name=op.f("pk_sweep_faults")),
    )
    op.create_index("ix_sweep_faults_job_id", "sweep_faults", ["job_id"])
    op.create_table(
        "doomed_paths",
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("is_folder", sa.Boolean(), nullable=False),
        sa.Column("tries", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _time("retry_at"),
        sa.PrimaryKeyConstraint("path", name=op.f("pk_doomed_paths")),
    )
    op.create_index("ix_doomed_paths_retry_at", "doomed_paths", ["retry_at"])
    _move_webhooks("control", "webhook")


def downgrade() -> None:
    _move_webhooks("webhook", "control")
    op.drop_table("doomed_paths")
    op.drop_table("sweep_faults")


def _move_webhooks(old: str, new: str) -> None:
    op.execute(
        f"UPDATE steps SET queue = '{new}' WHERE queue = '{old}' AND name = 'webhook' "
        "AND state IN ('queued', 'running')"
    )
