"""names composed: documents whose names macOS took apart (NFD) have them in NFC, as new ones have

Of names that become one, the oldest document's is changed; and none where a document has it.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # PostgreSQL knows normal forms in UTF-8 only; in other encodings no letter is taken apart.
    op.execute("""
        DO $$ BEGIN IF current_setting('server_encoding') = 'UTF8' THEN
            UPDATE documents d SET source = chosen.name
            FROM (
                SELECT DISTINCT ON (collection_id, normalize(source, NFC))
                       id, collection_id, normalize(source, NFC) AS name
                FROM documents WHERE source IS NOT NFC NORMALIZED
                ORDER BY collection_id, normalize(source, NFC), id
            ) chosen
            WHERE d.id = chosen.id AND NOT EXISTS (
                SELECT FROM documents o
                WHERE o.collection_id = chosen.collection_id AND o.source = chosen.name
            );
        END IF; END $$
    """)


def downgrade() -> None:
    """Both spellings are the same name."""
