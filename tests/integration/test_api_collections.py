"""`/v1/collections` and `/v1/documents`: the ledger as readers see it, and deletions."""

import threading
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from redis import Redis
from sqlalchemy import select
from sqlalchemy.dialects.postgresql import Range

from shared.database.transaction import Ledger
from shared.documents import collections, indexes
from shared.documents.indexes import IndexState
from shared.jobs.claims import Claim
from shared.tables import Chunk, Document, Version
from tests.integration.answers import problem


@pytest.fixture
def handbook(api: httpx.Client) -> str:
    assert api.put("/v1/collections/handbook").status_code == 201
    return "handbook"


def put_document(ledger: Ledger, source: str, chunks: int = 2) -> None:
    """A live document of so many chunks; its old version, if it has one, is retired."""
    with ledger.begin() as session:
        collection = collections.get(session, "handbook")
        document = session.scalars(select(Document).where(Document.source == source)).first()
        if document is None:
            document = Document(collection_id=collection.id, source=source)
            session.add(document)
            session.flush()
        version = Version(
            document_id=document.id,
            state="live",
            sha256="0" * 64,
            content_hash=uuid4().hex,
            size_bytes=10,
            meta={"lang": "ko"},
            chunk_count=chunks,
            embedded=[Range(0, chunks)],
        )
        session.add(version)
        session.flush()
        document.live_version_id = version.id
        for n in range(chunks):
            session.add(
                Chunk(version_id=version.id, ordinal=n, start=5 * n, text=f"text {n}", meta={})
            )


class TestCollections:
    def test_put_is_201_then_200_and_409_when_it_differs(self, api: httpx.Client) -> None:
        first = api.put("/v1/collections/abc", json={"dimension": 3})
        assert first.status_code == 201
        assert first.json() | {"created_at": "", "store": ""} == {
            "name": "abc",
            "embedding_model": "sentence-transformers/all-MiniLM-L6-v2",
            "dimension": 3,
            "distance": "cosine",
            "store": "",
            "documents": 0,
            "chunks": 0,
            "check": None,
            "created_at": "",
        }
        for same in ({}, {"dimension": 3}, {"distance": "cosine"}):
            assert api.put("/v1/collections/abc", json=same).status_code == 200
        for other in ({"dimension": 4}, {"embedding_model": "x"}, {"distance": "l2"}):
            assert "'abc'" in problem(api.put("/v1/collections/abc", json=other), 409)["detail"]

    @pytest.mark.parametrize("name", ["a!", "a" * 129, "-abc", "%20a", "a%E2%80%8Bb", "a%00b"])
    def test_a_bad_name_cannot_be_made_and_is_nowhere(self, api: httpx.Client, name: str) -> None:
        path = f"/v1/collections/{name}"
        assert "letters" in problem(api.put(path), 422)["detail"]
        for answer in (api.get(path), api.get(f"{path}/documents"), api.delete(path)):
            problem(answer, 404)

    def test_a_bad_spec_is_422(self, api: httpx.Client) -> None:
        answer = problem(api.put("/v1/collections/abc", json={"dimensions": 3}), 422)

        assert answer["errors"][0]["field"] == "dimensions"

    def test_the_list_goes_by_name_in_pages(self, api: httpx.Client) -> None:
        for name in ("ccc", "aaa", "bbb"):
            api.put(f"/v1/collections/{name}")

        first = api.get("/v1/collections?limit=2").json()
        second = api.get(f"/v1/collections?limit=2&cursor={first['next_cursor']}").json()

        names = [item["name"] for page in (first, second) for item in page["items"]]
        assert names == ["aaa", "bbb", "ccc"]
        assert second["next_cursor"] is None

    def test_counts(self, api: httpx.Client, handbook: str, ledger: Ledger) -> None:
        put_document(ledger, "a.md", 2)
        put_document(ledger, "b.md", 3)

        view = api.get(f"/v1/collections/{handbook}").json()

        assert (view["documents"], view["chunks"]) == (2, 5)


class TestIndexes:
    def test_a_rebuild_and_a_rollback_are_jobs(
        self, api: httpx.Client, handbook: str, ledger: Ledger
    ) -> None:
        path, key = f"/v1/collections/{handbook}", {"Idempotency-Key": "one"}
        model = {"model": "intfloat/multilingual-e5-small", "min_overlap": 0.2}
        first = api.post(f"{path}/rebuild", json=model, headers=key)
        assert first.status_code == 202
        job = first.json()
        assert first.headers["Location"] == f"/v1/jobs/{job['id']}"
        assert (job["kind"], job["lane"], job["state"]) == ("rebuild", "bulk", "queued")
        assert job["input"] | model == job["input"]
        assert (job["input"]["collection"], job["input"]["rollback"]) == (handbook, False)
        again = api.post(f"{path}/rebuild", json=model, headers=key)
        assert (again.json()["id"], again.headers["Idempotent-Replayed"]) == (job["id"], "true")
        problem(api.post(f"{path}/rebuild", headers=key), 409)
        own = api.post(f"{path}/rebuild").json()["input"]["model"]
        assert own == "sentence-transformers/all-MiniLM-L6-v2"
        waited = api.post(f"{path}/rebuild", headers={"Prefer": "wait=0"})
        assert (waited.status_code, waited.headers["Preference-Applied"]) == (202, "wait=0")
        problem(api.post("/v1/collections/none/rebuild"), 404)
        problem(api.post(f"{path}/rebuild", json={"models": "a"}), 422)
        nobodys = problem(api.post(f"{path}/rebuild", json={"model": "openai/a"}), 422)
        assert "SLUICE_OPENAI" in nobodys["detail"]

        rollback = f"{path}/rollback"
        refused = problem(api.post(rollback), 409)
        assert "SLUICE_RETIRED_INDEX_KEEP_S" in refused["detail"]
        problem(api.post(rollback, json={"model": "a"}), 422)
        put_index(ledger, "handbook.2", IndexState.RETIRED)
        body = api.post(rollback, json={"min_recall": 0.5}).json()["input"]
        assert (body["rollback"], body["min_recall"], body["model"]) == (True, 0.5, None)

    def test_indexes_are_listed_and_those_that_are_not_in_use_are_dropped(
        self, api: httpx.Client, handbook: str, ledger: Ledger
    ) -> None:
        put_document(ledger, "a.md", 3)
        put_index(ledger, "handbook.2", IndexState.RETIRED)
        job_id = api.post("/v1/collections/handbook/rebuild").json()["id"]
        put_index(ledger, "handbook.3", IndexState.BUILDING, job_id=UUID(job_id))
        put_index(ledger, "handbook.4", IndexState.RETIRED, server="chroma://gone:8000")
        view = api.get(f"/v1/collections/{handbook}").json()
        listed = [
            (one["name"], one["state"], one["chunks"], one["can_roll_back"])
            for one in view["indexes"]
        ]
        assert listed == [
            ("handbook", "active", 3, False),
            ("handbook.4", "retired", 2, True),
            ("handbook.3", "building", 2, False),
            ("handbook.2", "retired", 2, True),
        ]
        assert view["indexes"][1]["store"] == "chroma://gone:8000"
        assert view["indexes"][1]["kept_until"] > view["indexes"][1]["created_at"]
        assert view["indexes"][0]["kept_until"] is None

        path = f"/v1/collections/{handbook}/indexes"
        assert "searches read" in problem(api.delete(f"{path}/handbook"), 409)["detail"]
        assert job_id in problem(api.delete(f"{path}/handbook.3"), 409)["detail"]
        assert "forget" in problem(api.delete(f"{path}/handbook.4"), 409)["detail"]
        problem(api.delete(f"{path}/handbook.2?forget=true"), 409)
        for name in ("none", "a%00b", "a" * 200):
            problem(api.delete(f"{path}/{name}"), 404)
        dropped = api.delete(f"{path}/handbook.2")
        assert (dropped.status_code, dropped.json()["can_roll_back"]) == (202, False)
        api.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        assert api.delete(f"{path}/handbook.3").json()["state"] == "retired"
        assert api.delete(f"{path}/handbook.4?forget=true").status_code == 202
        with ledger.read() as session:
            due = indexes.due(session, limit=9)
        assert [index.stored_name for index in due] == ["handbook.2", "handbook.3"]


def put_index(ledger: Ledger, name: str, state: IndexState, **fields: Any) -> None:
    """Another index of the handbook, with two chunks of its newest document."""
    with ledger.begin() as session:
        collection = collections.get(session, "handbook")
        index = indexes.add(
            session,
            collection.id,
            collection.name,
            embedding_model="other",
            dimension=3,
            distance="cosine",
            state=state,
        )
        assert index.stored_name == name
        for field, value in fields.items():
            setattr(index, field, value)
        if state is IndexState.RETIRED:
            index.kept_until = datetime.now(UTC) + timedelta(days=1)
        version_id = session.scalar(select(Version.id).order_by(Version.id.desc())) or uuid4()
        indexes.note(session, index.id, [(version_id, 0, 2)])


class TestDocuments:
    def test_documents_and_chunks_in_pages(
        self, api: httpx.Client, handbook: str, ledger: Ledger
    ) -> None:
        put_document(ledger, "docs/한국어.md", 3)
        put_document(ledger, "b.md")

        first = api.get(f"/v1/collections/{handbook}/documents?limit=1").json()
        cursor = first["next_cursor"]
        second = api.get(f"/v1/collections/{handbook}/documents?limit=1&cursor={cursor}").json()
        assert [p["items"][0]["source"] for p in (first, second)] == ["docs/한국어.md", "b.md"]
        assert second["next_cursor"] is None
        document = first["items"][0]
        assert set(document) == {
            "id", "collection", "source", "sha256", "content_hash", "size_bytes", "chunks",
            "metadata", "source_id", "container", "container_sha256", "is_whole", "created_at",
            "updated_at",
        }  # fmt: skip
        assert api.get(f"/v1/documents/{document['id']}").json() == document
        path = f"/v1/documents/{document['id']}/chunks"
        page = api.get(f"{path}?limit=2").json()
        assert set(page["items"][0]) == {
            "id", "document_id", "source", "ordinal", "start", "text", "metadata",
        }  # fmt: skip
        rest = api.get(f"{path}?limit=2&cursor={page['next_cursor']}").json()
        assert [c["ordinal"] for c in page["items"] + rest["items"]] == [0, 1, 2]
        assert rest["next_cursor"] is None

    def test_a_document_replaced_between_two_pages_is_409(
        self, api: httpx.Client, handbook: str, ledger: Ledger
    ) -> None:
        put_document(ledger, "a.md", 3)
        document = api.get(f"/v1/collections/{handbook}/documents").json()["items"][0]
        path = f"/v1/documents/{document['id']}/chunks"
        cursor = api.get(f"{path}?limit=1").json()["next_cursor"]
        put_document(ledger, "a.md", 3)

        problem(api.get(f"{path}?cursor={cursor}"), 409)

    @pytest.mark.parametrize("id_", ["nonsense", "0198f2c4-0000-7000-8000-00000000dead"])
    def test_an_unknown_document_is_404(self, api: httpx.Client, id_: str) -> None:
        for answer in (
            api.get(f"/v1/documents/{id_}"),
            api.get(f"/v1/documents/{id_}/chunks"),
            api.delete(f"/v1/documents/{id_}"),
        ):
            problem(answer, 404)

    @pytest.mark.parametrize("path", ["documents/{}/chunks", "collections/handbook/documents"])
    def test_cursors_of_other_lists_are_400(
        self, api: httpx.Client, handbook: str, ledger: Ledger, path: str
    ) -> None:
        put_document(ledger, "a.md")
        document = api.get(f"/v1/collections/{handbook}/documents").json()["items"][0]
        for _ in range(2):
            api.post("/v1/jobs", json={"kind": "embed", "input": {"texts": ["a"]}})
        cursor = api.get("/v1/jobs?limit=1").json()["next_cursor"]

        problem(api.get(f"/v1/{path.format(document['id'])}?cursor={cursor}"), 400)


class TestDeletion:
    @pytest.fixture
    def paths(self, api: httpx.Client, handbook: str, ledger: Ledger) -> list[str]:
        put_document(ledger, "a.md")
        document = api.get(f"/v1/collections/{handbook}/documents").json()["items"][0]
        return [f"/v1/documents/{document['id']}", f"/v1/collections/{handbook}"]

    def test_it_waits_for_the_job(
        self,
        api: httpx.Client,
        paths: list[str],
        finish: Callable[..., Claim],
        ledger: Ledger,
        redis_url: str,
    ) -> None:
        result = {"documents": 1, "chunks": 2, "vectors": 2}

        def work() -> None:
            while not ledger.bell.waiting("control"):
                threading.Event().wait(0.01)
            finish("control", result)

        for path in paths:
            with Redis.from_url(redis_url) as redis:
                redis.delete("control")
            worker = threading.Thread(target=work)
            worker.start()
            answer = api.delete(path)
            worker.join()

            assert answer.status_code == 200
            job = answer.json()
            assert (job["kind"], job["lane"], job["state"]) == ("erase", "interactive", "succeeded")
            assert job["result"] == result

    def test_what_is_not_erased_in_time_is_hidden_at_once(
        self, api: httpx.Client, paths: list[str]
    ) -> None:
        for path in paths:
            answer = api.delete(path, headers={"Prefer": "wait=0"})

            assert answer.status_code == 202
            assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
            assert answer.json()["state"] == "queued"
            problem(api.get(path), 404)

    def test_it_is_the_same_job_when_it_is_sent_again(
        self, api: httpx.Client, paths: list[str], finish: Callable[..., Claim]
    ) -> None:
        """Also when all is erased: the answer to the first request was lost."""
        for n, path in enumerate(paths):
            headers = {"Prefer": "wait=0", "Idempotency-Key": f"key-{n}"}
            job_id = api.delete(path, headers=headers).json()["id"]
            finish("control", {"documents": 1, "chunks": 2, "vectors": 2})
            again = api.delete(path, headers=headers)
            assert (again.status_code, again.headers["Idempotent-Replayed"]) == (200, "true")
            assert again.json()["id"] == job_id
            problem(api.get(path), 404)
        problem(api.delete(paths[1], headers={"Idempotency-Key": "key-0"}), 409)

    def test_what_is_being_erased_can_be_deleted_again(
        self, api: httpx.Client, paths: list[str]
    ) -> None:
        """A cancelled erasure would otherwise leave it hidden for ever."""
        for path in paths:
            job = api.delete(path, headers={"Prefer": "wait=0"}).json()
            api.post(f"/v1/jobs/{job['id']}/cancel")

            again = api.delete(path, headers={"Prefer": "wait=0"})

            assert again.status_code == 202
            assert UUID(again.json()["id"]) != UUID(job["id"])


def test_a_collection_may_be_called_in_any_script(api: httpx.Client) -> None:
    # Composed and not: macOS types the latter.
    assert api.put("/v1/collections/고객 지원").status_code == 201
    decomposed = unicodedata.normalize("NFD", "고객 지원")
    assert api.put(f"/v1/collections/{decomposed}").status_code == 200
    assert api.get(f"/v1/collections/{decomposed}").json()["name"] == "고객 지원"
    source = {"type": "text", "text": "We open at nine."}
    body = {"kind": "ingest", "input": {"collection": decomposed, "sources": [source]}}
    job = api.post("/v1/jobs", json=body)
    assert job.json()["input"]["collection"] == "고객 지원"
    listed = api.get("/v1/jobs", params={"collection": decomposed}).json()["items"]
    assert [one["id"] for one in listed] == [job.json()["id"]]
    for name in ("a/b", "a%2Fb", "a!", " a", "a\u200bb", "x" * 129):
        assert api.put(f"/v1/collections/{name}").status_code in (404, 405, 422)
