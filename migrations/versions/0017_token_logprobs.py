"""The log-probabilities of generated tokens, beside the text."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("transcripts", sa.Column("logprobs", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("transcripts", "logprobs")
