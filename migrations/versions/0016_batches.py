"""Batches and their lines, which are jobs that lists of jobs leave out."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

LISTED = ("state", "kind", "collection")
MOMENT = postgresql.TIMESTAMP(timezone=True)
JSON = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())
COUNTS = ("total", "open", "succeeded", "failed", "cancelled", "expired")


def upgrade() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("read_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("read_lines", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("errors", JSON, server_default=sa.text("'[]'"), nullable=False),
        *(
            sa.Column(name, sa.Integer(), server_default=sa.text("0"), nullable=False)
            for name in COUNTS
        ),
        sa.Column("prompt_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "completion_tokens", sa.BigInteger(), server_default=sa.text("0"), nullable=False
        ),
        sa.Column("output_file_id", sa.Uuid(), nullable=True),
        sa.Column("error_file_id", sa.Uuid(), nullable=True),
        sa.Column("finish_by", MOMENT, nullable=False),
        sa.Column("validated_at", MOMENT, nullable=True),
        sa.Column("settled_at", MOMENT, nullable=True),
        sa.Column("expired_at", MOMENT, nullable=True),
        sa.Column("closed_at", MOMENT, nullable=True),
        sa.ForeignKeyConstraint(
            ["id"], ["jobs.id"], name=op.f("fk_batches_id_jobs"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("options", JSON, nullable=True),
        sa.Column("job_id", sa.Uuid(), nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.ForeignKeyConstraint(
            ["batch_id"],
            ["batches.id"],
            name=op.f("fk_batch_lines_batch_id_batches"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("batch_id", "number", name=op.f("pk_batch_lines")),
        sa.UniqueConstraint(
            "batch_id", "custom_id", name=op.f("uq_batch_lines_batch_id_custom_id")
        ),
    )
    op.create_index(
        "ix_batch_lines_unsettled",
        "batch_lines",
        ["batch_id", "state", "number"],
        postgresql_where=sa.text("state IN ('waiting', 'open')"),
    )
    op.create_index(
        "ix_batch_lines_without_result",
        "batch_lines",
        ["batch_id", "number"],
        postgresql_where=sa.text("state IN ('failed', 'cancelled', 'expired')"),
    )
    op.add_column("jobs", sa.Column("batch_id", sa.Uuid(), nullable=True))
    op.create_foreign_key(
        op.f("fk_jobs_batch_id_jobs"), "jobs", "jobs", ["batch_id"], ["id"], ondelete="CASCADE"
    )
    for name in LISTED:
        op.drop_index(f"ix_jobs_{name}_id", table_name="jobs")
        op.create_index(
            f"ix_jobs_{name}_id", "jobs", [name, "id"], postgresql_where=sa.text("batch_id IS NULL")
        )
    op.create_index("ix_jobs_listed", "jobs", ["id"], postgresql_where=sa.text("batch_id IS NULL"))
    op.create_index(
        "ix_jobs_batch_id_id",
        "jobs",
        ["batch_id", "id"],
        postgresql_where=sa.text("batch_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.execute("DELETE FROM jobs WHERE batch_id IS NOT NULL")
    op.drop_index("ix_jobs_batch_id_id", table_name="jobs")
    op.drop_index("ix_jobs_listed", table_name="jobs")
    for name in LISTED:
        op.drop_index(f"ix_jobs_{name}_id", table_name="jobs")
        op.create_index(f"ix_jobs_{name}_id", "jobs", [name, "id"])
    op.drop_constraint(op.f("fk_jobs_batch_id_jobs"), "jobs", type_="foreignkey")
    op.drop_column("jobs", "batch_id")
    op.drop_table("batch_lines")
    op.drop_table("batches")
