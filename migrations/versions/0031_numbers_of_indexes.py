"""Numbers of vector indexes: none is given again, so that no name in the store is."""

import sqlalchemy as sa
from alembic import op

revision = "0031"
down_revision = "0030"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "collections",
        sa.Column("indexes_made", sa.Integer(), server_default=sa.text("0"), nullable=False),
    )
    # Names are that of the collection, or it with a dot and the number behind it.
    op.execute(r"""
        UPDATE collections c SET indexes_made = i.number
        FROM (
            SELECT x.collection_id, max(
                CASE WHEN x.stored_name = o.name THEN 1
                ELSE coalesce(substring(x.stored_name FROM '\.([0-9]{1,9})$')::int, 1) END
            ) AS number
            FROM vector_indexes x JOIN collections o ON o.id = x.collection_id
            GROUP BY x.collection_id
        ) i
        WHERE i.collection_id = c.id
    """)


def downgrade() -> None:
    op.drop_column("collections", "indexes_made")
