"""Vector indexes: the model of a collection is that of its active index, and may change."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0026"
down_revision = "0025"
branch_labels = None
depends_on = None

_JSON = postgresql.JSONB(none_as_null=True, astext_type=sa.Text())


def upgrade() -> None:
    op.create_table(
        "vector_indexes",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("collection_id", sa.Uuid(), nullable=False),
        sa.Column("embedding_model", sa.Text(), nullable=False),
        sa.Column("dimension", sa.Integer(), nullable=True),
        sa.Column("distance", sa.Text(), nullable=False),
        sa.Column("stored_name", sa.Text(), nullable=False),
        sa.Column("server", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("tuning", _JSON, nullable=True),
        sa.Column(
            "created_at",
            postgresql.TIMESTAMP(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["collection_id"],
            ["collections.id"],
            name=op.f("fk_vector_indexes_collection_id_collections"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_vector_indexes")),
        sa.UniqueConstraint("stored_name", name=op.f("uq_vector_indexes_stored_name")),
    )
    op.create_index(op.f("ix_vector_indexes_collection_id"), "vector_indexes", ["collection_id"])
    op.create_index(
        "uq_vector_indexes_active",
        "vector_indexes",
        ["collection_id"],
        unique=True,
        postgresql_where=sa.text("state = 'active'"),
    )
    op.execute("""
        INSERT INTO vector_indexes
            (id, collection_id, embedding_model, dimension, distance, stored_name, state, tuning,
             created_at)
        SELECT id, id, embedding_model, dimension, distance, name, 'active', tuning, created_at
        FROM collections
    """)
    for name in ("embedding_model", "dimension", "distance", "tuning"):
        op.drop_column("collections", name)


def downgrade() -> None:
    """Indexes that are not active are forgotten; their vectors stay in the store.

    Before, the vectors of a collection were in the store under its own name, where those of its
    former model may be now: a collection that is elsewhere would be searched with both.
    """
    moved = op.get_bind().scalars(
        sa.text("""
            SELECT c.name FROM collections c
            JOIN vector_indexes i ON i.collection_id = c.id AND i.state = 'active'
            WHERE i.stored_name <> c.name AND c.erasing_at IS NULL ORDER BY c.name LIMIT 5
        """)
    ).all()  # fmt: skip
    if moved:
        raise RuntimeError(
            "The version before looks for the vectors of a collection under its own name, and the "
            f"rebuilt ones of {', '.join(moved)} have another one. Go back to the first ones "
            "(`sluice collections rebuild NAME --rollback`), or export, erase and import them."
        )
    op.add_column("collections", sa.Column("embedding_model", sa.Text(), nullable=True))
    op.add_column("collections", sa.Column("dimension", sa.Integer(), nullable=True))
    op.add_column("collections", sa.Column("distance", sa.Text(), nullable=True))
    op.add_column("collections", sa.Column("tuning", _JSON, nullable=True))
    op.execute("""
        UPDATE collections c SET embedding_model = i.embedding_model, dimension = i.dimension,
            distance = i.distance, tuning = i.tuning
        FROM vector_indexes i WHERE i.collection_id = c.id AND i.state = 'active'
    """)
    op.alter_column("collections", "embedding_model", nullable=False)
    op.alter_column("collections", "distance", nullable=False)
    op.drop_table("vector_indexes")
