"""What is deleted is gone: from Postgres, from Chroma, and from every answer."""

import pytest

from sluice import ApiError, Client
from tests.e2e.stack import LiveStack


def test_deleted_documents_and_collections_are_gone(stack: LiveStack, client: Client) -> None:
    secret = "The copper key lies under the third stone."
    client.ingest("erased", texts={"secret.md": secret, "kept.md": "The mill grinds barley."})
    stack.check_agreement("erased", chunks=2)
    [secret_id] = [
        document.id for document in client.documents("erased") if document.source == "secret.md"
    ]

    done = stack.sluice_json("documents", "delete", "secret.md", "-c", "erased", "--yes")
    assert done["result"] == {"documents": 1, "chunks": 1, "vectors": 1}
    stack.check_agreement("erased", chunks=1)
    assert stack.value("SELECT count(*) FROM chunks WHERE text = %s", secret) == 0
    assert stack.value("SELECT count(*) FROM documents WHERE id = %s", secret_id) == 0
    hits = stack.sluice_json("search", "Where is the copper key?", "-c", "erased")["hits"]
    assert [hit["source"] for hit in hits] == ["kept.md"]
    with pytest.raises(ApiError) as error:
        client.document(secret_id)
    assert error.value.status == 404

    done = stack.sluice_json("collections", "delete", "erased", "--yes")
    assert done["result"] == {"documents": 1, "chunks": 1, "vectors": 1}
    assert stack.vector_ids("erased") == []
    assert stack.ledger_ids("erased") == []
    assert stack.value("SELECT count(*) FROM collections WHERE name = 'erased'") == 0
    assert stack.sluice("search", "barley", "-c", "erased").code == 4
    # The name is free, and nothing of the old collection shows in the new one.
    client.ingest("erased", texts={"new.md": "A new note about barley."})
    assert [hit.source for hit in client.search("erased", "barley")] == ["new.md"]
    stack.check_agreement("erased", chunks=1)
