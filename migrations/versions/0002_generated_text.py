"""generated text: transcripts, conversations, doors"""

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

QUEUED = sa.text("state = 'queued'")
TALKS = sa.text("conversation_id IS NOT NULL")


def _moment(name: str) -> sa.Column[datetime]:
    now = sa.text("now()")
    return sa.Column(name, postgresql.TIMESTAMP(timezone=True), server_default=now, nullable=False)


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("fair_key", sa.Text(), nullable=False),
        sa.Column("metadata", postgresql.JSONB(), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("summarize", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("summary", sa.Text(), nullable=True),
        sa.Column("summary_upto", sa.Integer(), server_default=sa.text("0"), nullable=False),
        _moment("created_at"),
        _moment("updated_at"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_conversations")),
    )
    op.create_index("ix_conversations_fair_key_id", "conversations", ["fair_key", "id"])
    op.create_table(
        "conversation_messages",
        sa.Column("conversation_id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("message", postgresql.JSONB(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        _moment("created_at"),
        sa.ForeignKeyConstraint(
            ["conversation_id"],
            ["conversations.id"],
            name=op.f("fk_conversation_messages_conversation_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "conversation_id", "ordinal", name=op.f("pk_conversation_messages")
        ),
    )
    op.create_table(
        "transcripts",
        sa.Column("step_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("shown", sa.Text(), nullable=False),
        sa.Column("token_ids", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.ForeignKeyConstraint(
            ["step_id"], ["steps.id"], name=op.f("fk_transcripts_step_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("step_id", name=op.f("pk_transcripts")),
    )
    op.add_column("jobs", sa.Column("conversation_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_jobs_conversation_id"),
        "jobs",
        "conversations",
        ["conversation_id"],
        ["id"],
        ondelete="SET NULL",
    )
    op.create_index(
        "ix_jobs_conversation_id", "jobs", ["conversation_id", "id"], postgresql_where=TALKS
    )
    op.add_column(
        "steps", sa.Column("door", sa.Text(), server_default=sa.text("''"), nullable=False)
    )
    op.add_column(
        "workers",
        sa.Column(
            "doors", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False
        ),
    )
    op.drop_index("ix_steps_claim", table_name="steps")
    op.create_index(
        "ix_steps_claim",
        "steps",
        ["queue", "lane", "fair_key", "door", "job_id", "id", "run_after"],
        postgresql_where=QUEUED,
    )


def downgrade() -> None:
    op.drop_index("ix_steps_claim", table_name="steps")
    op.create_index(
        "ix_steps_claim",
        "steps",
        ["queue", "lane", "fair_key", "job_id", "id", "run_after"],
        postgresql_where=QUEUED,
    )
    op.drop_column("workers", "doors")
    op.drop_column("steps", "door")
    op.drop_index("ix_jobs_conversation_id", table_name="jobs")
    op.drop_constraint(op.f("fk_jobs_conversation_id"), "jobs")
    op.drop_column("jobs", "conversation_id")
    op.drop_table("transcripts")
    op.drop_table("conversation_messages")
    op.drop_table("conversations")
