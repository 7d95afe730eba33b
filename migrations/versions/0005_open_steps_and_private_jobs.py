"""open steps and private jobs: a job's next step is found without reading the others; jobs whose
text is for their own key alone
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_steps_job_id_state_run_after", "steps", ["job_id", "state", "run_after"])
    op.drop_index("ix_steps_job_id", "steps")
    op.add_column(
        "jobs", sa.Column("private", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.execute("""
        UPDATE jobs SET private = true
        WHERE kind IN ('chat', 'rag') AND input ->> 'conversation_id' IS NOT NULL
    """)


def downgrade() -> None:
    op.drop_column("jobs", "private")
    op.create_index("ix_steps_job_id", "steps", ["job_id"])
    op.drop_index("ix_steps_job_id_state_run_after", "steps")
