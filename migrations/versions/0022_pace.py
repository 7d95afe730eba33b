"""How fast a job goes on once it has begun, and what is done of large units."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

MOMENT = postgresql.TIMESTAMP(timezone=True)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("paced_at", MOMENT, nullable=True))
    op.add_column("jobs", sa.Column("paced_done", sa.Integer(), nullable=True))
    for name in ("work_done", "work_total"):
        op.add_column("jobs", sa.Column(name, sa.BigInteger(), server_default="0", nullable=False))
    op.add_column("jobs", sa.Column("paced_work", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for name in ("paced_work", "work_total", "work_done", "paced_done", "paced_at"):
        op.drop_column("jobs", name)
