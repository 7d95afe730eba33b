"""batches and large results: batch keys of steps, warnings and stored results of jobs"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

BATCHED = sa.text("state = 'queued' AND batch_key IS NOT NULL")


def upgrade() -> None:
    op.add_column("steps", sa.Column("batch_key", sa.Text(), nullable=True))
    op.create_index(
        "ix_steps_batch",
        "steps",
        ["queue", "batch_key", "lane", "job_id", "id"],
        postgresql_where=BATCHED,
    )
    op.add_column("jobs", sa.Column("result_path", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("result_bytes", sa.BigInteger(), nullable=True))
    op.add_column(
        "jobs",
        sa.Column(
            "warnings",
            postgresql.ARRAY(sa.Text()),
            server_default=sa.text("'{}'"),
            nullable=False,
        ),
    )


def downgrade() -> None:
    op.drop_column("jobs", "warnings")
    op.drop_column("jobs", "result_bytes")
    op.drop_column("jobs", "result_path")
    op.drop_index("ix_steps_batch", "steps")
    op.drop_column("steps", "batch_key")
