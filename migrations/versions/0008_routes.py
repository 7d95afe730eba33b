"""routes: what was called a door has the field's own name"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("steps", "door", new_column_name="route")
    op.alter_column("workers", "doors", new_column_name="routes")


def downgrade() -> None:
    op.alter_column("workers", "routes", new_column_name="doors")
    op.alter_column("steps", "route", new_column_name="door")
