"""`/v1/ids`: the ids that begin with what somebody typed, and the client that asks."""

from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr

from shared import conversations
from shared.config import Settings
from shared.database.transaction import Ledger
from shared.tables import Collection, Document, Version
from sluice import Client, NotFound
from tests.api_server import served
from tests.integration.answers import problem

BEGINNING = "01a21957-3c86"


def ids(api: httpx.Client, type_: str, prefix: str) -> list[str]:
    answer = api.get("/v1/ids", params={"type": type_, "prefix": prefix})
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


def test_jobs_and_files_by_prefix_at_any_length(api: httpx.Client) -> None:
    job = api.post("/v1/jobs", json={"kind": "embed", "input": {"texts": ["a"]}}).json()["id"]
    file = api.post("/v1/files", files={"file": ("a.md", b"# a")}).json()["id"]
    for type_, id_ in (("job", job), ("file", file)):
        for prefix in (id_[:4], id_[:9], id_[:13], id_[:24].upper(), id_.replace("-", ""), id_):
            assert ids(api, type_, prefix) == [id_]
        assert ids(api, type_, "ffff") == []
    assert ids(api, "conversation", job[:13]) == []


def test_several_come_oldest_first_and_the_client_refuses_to_choose(
    api: httpx.Client, api_url: str
) -> None:
    made = [
        api.post("/v1/jobs", json={"kind": "embed", "input": {"texts": [str(n)]}}).json()["id"]
        for n in range(12)
    ]
    assert ids(api, "job", made[0][:4]) == made[:10]
    with Client(api_url) as client:
        assert client.whole_id("job", made[3]) == made[3]
        assert client.whole_id("job", made[3][:-1]) == made[3]
        with pytest.raises(NotFound, match="More than one job begins with"):
            client.whole_id("job", made[3][:4])


def test_documents_that_nobody_sees_are_left_out(api: httpx.Client, ledger: Ledger) -> None:
    live, pending = (
        UUID(f"{BEGINNING}-7000-8000-000000000001"),
        UUID(f"{BEGINNING}-7000-8000-{2:012}"),
    )
    assert api.put("/v1/collections/handbook").status_code == 201
    with ledger.begin() as session:
        collection = session.query(Collection).one()
        for id_, source in ((live, "a.md"), (pending, "b.md")):
            session.add(Document(id=id_, collection_id=collection.id, source=source))
        session.flush()
        version = Version(
            document_id=live, state="live", sha256="0" * 64, content_hash="1" * 64,
            size_bytes=1, meta={}, chunk_count=0,
        )  # fmt: skip
        session.add(version)
        session.flush()
        document = session.get(Document, live)
        assert document is not None
        document.live_version_id = version.id
    assert ids(api, "document", BEGINNING) == [str(live)]


def test_conversations_of_other_keys_are_left_out(settings: Settings, ledger: Ledger) -> None:
    with ledger.begin() as session:
        made = {
            key: str(conversations.make(session, key, metadata={}, summarize=False))
            for key in ("ann", "bob")
        }
    keys = {"ann": SecretStr("s3cret"), "bob": SecretStr("other")}
    with (
        served(settings.model_copy(update={"api_keys": keys})) as url,
        httpx.Client(base_url=url, trust_env=False) as api,
    ):
        assert api.get("/v1/ids", params={"type": "job", "prefix": "0000"}).status_code == 401
        api.headers["Authorization"] = "Bearer s3cret"
        assert ids(api, "conversation", made["ann"][:4]) == [made["ann"]]


@pytest.mark.parametrize(
    "prefix",
    ["012", "xyz0", "----", "01--23", "0" * 33, "%00123", "가나다라", "0123\n", "٠١٢٣", ""],
)
def test_what_is_no_beginning_of_an_id_is_refused(api: httpx.Client, prefix: str) -> None:
    answer = api.get("/v1/ids", params={"type": "job", "prefix": prefix})
    problem(answer, 422)
    assert "prefix: give the first 4 to 32 hexadecimal digits" in answer.text


def test_an_unknown_type_is_refused(api: httpx.Client) -> None:
    problem(api.get("/v1/ids", params={"type": "step", "prefix": "0123"}), 422)
