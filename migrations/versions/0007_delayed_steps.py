"""delayed steps: a claim does not walk over the steps whose time has not come"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

GROUP = ["queue", "lane", "fair_key", "door"]


def upgrade() -> None:
    op.create_index(
        "ix_steps_due",
        "steps",
        [*GROUP, "job_id", "id"],
        postgresql_where=sa.text("state = 'queued' AND run_after <= created_at"),
    )
    op.create_index(
        "ix_steps_put_off",
        "steps",
        [*GROUP, "run_after", "job_id", "id"],
        postgresql_where=sa.text("state = 'queued' AND run_after > created_at"),
    )


def downgrade() -> None:
    op.drop_index("ix_steps_put_off", "steps")
    op.drop_index("ix_steps_due", "steps")
