"""Files and vector stores of OpenAI's API, by its own SDK over a socket, beside a worker."""

import asyncio
import re
import threading
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from shared import files
from shared.config import Settings
from shared.files import Purpose
from tests.integration.description import check
from tests.integration.job_runner import drain, make_process
from tests.integration.sweeps import change
from workers.attempts.process import Process
from workers.sweep import Sweeper

ROOT = Path(__file__).resolve().parents[2]
CATS = "Cats sleep for most of the day. A cat sleeps fifteen hours on average."
TRAINS = "The train to Busan leaves at nine. Trains run every thirty minutes."
TEA = "Green tea is brewed at eighty degrees for two minutes."
MISSING = "file-" + "0" * 32


@pytest.fixture(scope="module")
def process(settings: Settings) -> Iterator[Process]:
    process = make_process(settings)
    yield process
    process.ledger.close()


@pytest.fixture(scope="module")
def at_work(settings: Settings) -> Iterator[threading.Event]:
    """While it is set, a worker runs whatever there is to run."""
    process = make_process(settings, "beside", step_lease_s=300)
    working, over = threading.Event(), threading.Event()
    working.set()

    def work() -> None:
        while not over.is_set():
            if not working.is_set() or not drain(process, hurry=False):
                over.wait(0.01)

    thread = threading.Thread(target=work)
    thread.start()
    yield working
    over.set()
    thread.join()
    process.ledger.close()


@pytest.fixture
def client(api_url: str, at_work: threading.Event) -> Iterator[OpenAI]:
    at_work.set()
    http = httpx2.Client(event_hooks={"response": [check]})
    with OpenAI(
        base_url=f"{api_url}/openai/v1",
        api_key="none",
        max_retries=0,
        http_client=http,
        _strict_response_validation=True,
    ) as client:
        yield client


@pytest.fixture
def native(api_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api_url, timeout=30, trust_env=False) as native:
        yield native


def upload(client: OpenAI, name: str, text: str | bytes, purpose: Any = "assistants") -> str:
    content = text.encode() if isinstance(text, str) else text
    return client.files.create(file=(name, content), purpose=purpose).id


def put(client: OpenAI, store: str, name: str, text: str, **options: Any) -> str:
    """Upload, attach, and wait until it can be found."""
    file = client.vector_stores.files.upload_and_poll(
        vector_store_id=store, file=(name, text.encode()), poll_interval_ms=10, **options
    )
    assert file.status == "completed", file.last_error
    return file.id


def found(client: OpenAI, store: str, query: str, **options: Any) -> list[str]:
    return [hit.filename for hit in client.vector_stores.search(store, query=query, **options)]


def refusal(error: pytest.ExceptionInfo[openai.APIStatusError], param: str | None) -> str:
    assert error.value.param == param
    return error.value.message


# Files


def test_a_file_is_uploaded_listed_read_and_deleted(client: OpenAI) -> None:
    file = client.files.create(file=("안내.md", "본문".encode()), purpose="user_data")
    other = client.files.create(
        file=("b.jsonl", b"{}\n"),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )

    assert (file.filename, file.bytes, file.purpose) == ("안내.md", 6, "user_data")
    assert client.files.wait_for_processing(file.id, poll_interval=0).status == "processed"
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).text == "본문"
    assert other.expires_at is not None
    assert abs(other.expires_at - other.created_at - 3600) <= 2
    assert next(iter(client.files.list(purpose="batch", limit=1))).id == other.id
    assert [entry.id for entry in client.files.list(order="asc", after=file.id)] == [other.id]
    assert [entry.id for entry in client.files.list(limit=1)][:2] == [other.id, file.id]
    page = client.files.list(limit=1)
    assert page.has_next_page()

    gone = client.files.delete(file.id)

    assert (gone.id, gone.deleted) == (file.id, True)
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_what_a_batch_writes_is_read_while_it_grows(client: OpenAI, process: Process) -> None:
    with process.ledger.begin() as session:
        file = files.begin(
            session, name="out.jsonl", purpose=Purpose.BATCH_OUTPUT, content_type=None
        )
    seen = []
    for line in (b"one\n", b"two\n"):
        part = files.write_part(process.storage, file.id, line)
        with process.ledger.begin() as session:
            files.append(session, file.id, part)
        seen.append(client.files.content(f"file-{file.id.hex}").text)

    assert seen == ["one\n", "one\ntwo\n"]
    assert client.files.retrieve(f"file-{file.id.hex}").purpose == "batch_output"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "evals"}, "purpose"),
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": "user_data", "expires_after": {"anchor": "now", "seconds": 3600}},
         "expires_after.anchor"),
        ({"purpose": "user_data", "expires_after": {"anchor": "created_at", "seconds": 5}},
         "expires_after.seconds"),
        ({"purpose": "user_data", "extra_body": {"colour": "red"}}, "colour"),
    ],
)  # fmt: skip
def test_an_upload_that_cannot_be_is_refused_with_its_field(
    client: OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.files.create(file=("a.txt", b"text"), **fields)

    assert param.split(".")[-1] in refusal(error, param)


def test_two_files_in_one_form_are_refused(native: httpx.Client) -> None:
    twice = [("file", ("a.txt", b"a")), ("file", ("b.txt", b"b"))]
    answer = native.post("/openai/v1/files", files=twice, data={"purpose": "assistants"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "file")


def test_a_file_that_a_job_needs_is_not_deleted(client: OpenAI, at_work: threading.Event) -> None:
    store = client.vector_stores.create()
    at_work.clear()
    file_id = upload(client, "needed.txt", CATS)
    client.vector_stores.files.create(store.id, file_id=file_id)

    with pytest.raises(openai.ConflictError) as error:
        client.files.delete(file_id)

    assert "cancel" in refusal(error, "file_id")
    at_work.set()
    client.vector_stores.files.poll(file_id, vector_store_id=store.id, poll_interval_ms=10)
    assert client.files.delete(file_id).deleted
    assert list(client.vector_stores.files.list(store.id)) == []
    assert found(client, store.id, "cats") == []


# Vector stores


def test_a_vector_store_is_made_changed_and_erased(client: OpenAI, native: httpx.Client) -> None:
    store = client.vector_stores.create(
        name="사내 규정 2026", metadata={"team": "office"}, expires_after={
            "anchor": "last_active_at", "days": 7,
        },
    )  # fmt: skip
    plain = client.vector_stores.create(name="handbook-1")

    assert (store.name, store.metadata, store.status) == (
        "사내 규정 2026",
        {"team": "office"},
        "completed",
    )
    assert store.expires_after is not None
    assert store.expires_at == (store.last_active_at or 0) + 7 * 86_400
    assert store.file_counts.total == store.usage_bytes == 0
    assert client.vector_stores.retrieve(store.id) == store
    assert found(client, store.id, "anything") == []
    assert native.get("/v1/collections/handbook-1").status_code == 200
    assert client.vector_stores.create(name="handbook-1").id != plain.id
    changed = client.vector_stores.update(store.id, name="Rules", expires_after=None, metadata={})
    assert (changed.name, changed.metadata, changed.expires_at) == ("Rules", {}, None)
    assert changed.expires_after is None

    assert client.vector_stores.delete(store.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(store.id)


def test_vector_stores_are_listed_in_pages_both_ways(client: OpenAI) -> None:
    ids = [client.vector_stores.create(name=f"n{n}").id for n in range(4)]

    newest = client.vector_stores.list(limit=2)

    assert [store.id for store in newest.data] == [ids[3], ids[2]]
    assert [store.id for store in client.vector_stores.list(limit=2)][:4] == ids[::-1]
    before = client.vector_stores.list(limit=2, order="asc", before=ids[3])
    assert [store.id for store in before.data] == [ids[1], ids[2]]
    assert client.vector_stores.list(order="asc", after=ids[3]).data == []


def test_a_file_is_found_by_its_attributes_and_these_change(client: OpenAI) -> None:
    store = client.vector_stores.create(name="animals")
    cats = put(
        client, store.id, "cats.txt", CATS,
        attributes={"topic": "animals", "year": 2024, "open": True},
    )  # fmt: skip
    put(client, store.id, "trains.md", TRAINS, attributes={"topic": "travel", "year": 2020})
    counts = client.vector_stores.retrieve(store.id)
    assert (counts.file_counts.completed, counts.file_counts.total) == (2, 2)
    assert counts.usage_bytes == len(CATS) + len(TRAINS)

    def names(filters: Any) -> list[str]:
        return sorted(found(client, store.id, "how long", filters=filters))

    assert names({"type": "eq", "key": "topic", "value": "animals"}) == ["cats.txt"]
    assert names({"type": "ne", "key": "topic", "value": "animals"}) == ["trains.md"]
    assert names({"type": "gte", "key": "year", "value": 2020}) == ["cats.txt", "trains.md"]
    assert names({"type": "lt", "key": "year", "value": 2024.0}) == ["trains.md"]
    assert names({"type": "in", "key": "year", "value": [1, 2024]}) == ["cats.txt"]
    assert names({"type": "nin", "key": "year", "value": [2024]}) == ["trains.md"]
    assert names({"type": "eq", "key": "open", "value": True}) == ["cats.txt"]
    either = [
        {"type": "eq", "key": "topic", "value": "travel"},
        {"type": "and", "filters": [
            {"type": "gt", "key": "year", "value": 2023},
            {"type": "eq", "key": "open", "value": True},
        ]},
    ]  # fmt: skip
    assert names({"type": "or", "filters": either}) == ["cats.txt", "trains.md"]
    assert names({"type": "and", "filters": either}) == []
    (hit,) = client.vector_stores.search(
        store.id, query=["sleeping cats", "how long do cats sleep"], max_num_results=1,
        ranking_options={"ranker": "none", "score_threshold": 0.2},
    ).data  # fmt: skip
    assert (hit.file_id, hit.content[0].text) == (cats, CATS)
    assert hit.attributes == {"topic": "animals", "year": 2024, "open": True}

    changed = client.vector_stores.files.update(
        cats, vector_store_id=store.id, attributes={"topic": "pets", "note": "한국어"}
    )

    assert (changed.attributes, changed.status) == (
        {"topic": "pets", "note": "한국어"},
        "completed",
    )
    assert names({"type": "eq", "key": "topic", "value": "pets"}) == ["cats.txt"]
    assert names({"type": "eq", "key": "topic", "value": "animals"}) == []
    assert names({"type": "eq", "key": "open", "value": True}) == []
    assert [
        part.text for part in client.vector_stores.files.content(cats, vector_store_id=store.id)
    ] == [CATS]
    assert client.vector_stores.files.delete(cats, vector_store_id=store.id).deleted
    assert found(client, store.id, "cats") == ["trains.md"]
    assert client.files.retrieve(cats).filename == "cats.txt"


def test_files_of_one_name_are_several_and_each_goes_alone(client: OpenAI) -> None:
    store = client.vector_stores.create()
    one = put(client, store.id, "notes.txt", CATS)
    two = put(client, store.id, "notes.txt", TRAINS)

    assert {file.id for file in client.vector_stores.files.list(store.id)} == {one, two}
    assert found(client, store.id, "Busan", max_num_results=1) == ["notes.txt"]
    client.vector_stores.files.delete(one, vector_store_id=store.id)
    texts = client.vector_stores.files.content(two, vector_store_id=store.id)
    assert [part.text for part in texts] == [TRAINS]


def test_a_batch_of_files_with_attributes_of_their_own(client: OpenAI) -> None:
    store = client.vector_stores.create()
    ids = [upload(client, f"{n}.txt", text) for n, text in enumerate((CATS, TRAINS))]
    bad = upload(client, "picture.png", b"\x89PNG\r\n\x1a\n of cats")
    static: Any = {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 20}

    batch = client.vector_stores.file_batches.create_and_poll(
        store.id, poll_interval_ms=10,
        files=[
            {"file_id": ids[0], "attributes": {"n": 0}},
            {"file_id": ids[1], "attributes": {"n": 1},
             "chunking_strategy": {"type": "static", "static": static}},
            {"file_id": bad},
        ],
    )  # fmt: skip

    counts = batch.file_counts
    assert (counts.completed, counts.failed, counts.total) == (2, 1, 3)
    assert batch.status == "completed"
    listed = {
        file.id: file
        for file in client.vector_stores.file_batches.list_files(
            batch.id, vector_store_id=store.id, limit=1
        )
    }
    assert set(listed) == {*ids, bad}
    assert [listed[id_].attributes for id_ in ids] == [{"n": 0.0}, {"n": 1.0}]
    strategy = listed[ids[1]].chunking_strategy
    assert strategy is not None
    assert strategy.to_dict() == {"type": "static", "static": static}
    failed = client.vector_stores.files.list(store.id, filter="failed").data
    assert [file.id for file in failed] == [bad]
    assert failed[0].last_error is not None
    assert failed[0].last_error.code == "unsupported_file"
    assert "picture.png" in failed[0].last_error.message
    hit = found(client, store.id, "x", filters={"type": "eq", "key": "n", "value": 1})
    assert hit == ["1.txt"]


def test_a_batch_that_is_cancelled_leaves_its_files_so(
    client: OpenAI, at_work: threading.Event
) -> None:
    store = client.vector_stores.create()
    at_work.clear()
    ids = [upload(client, f"{n}.txt", CATS) for n in range(2)]
    batch = client.vector_stores.file_batches.create(store.id, file_ids=ids)
    assert (batch.status, batch.file_counts.in_progress) == ("in_progress", 2)
    assert client.vector_stores.retrieve(store.id).status == "in_progress"
    assert (
        client.vector_stores.files.retrieve(ids[0], vector_store_id=store.id).status
        == "in_progress"
    )

    cancelled = client.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)

    assert (cancelled.status, cancelled.file_counts.cancelled) == ("cancelled", 2)
    listed = client.vector_stores.files.list(store.id, filter="cancelled").data
    assert {file.id for file in listed} == set(ids)
    at_work.set()
    again = client.vector_stores.files.create_and_poll(
        ids[0], vector_store_id=store.id, poll_interval_ms=10
    )
    assert again.status == "completed"


def test_the_async_client_does_the_same(api_url: str, client: OpenAI) -> None:
    async def run() -> None:
        url = f"{api_url}/openai/v1"
        async with AsyncOpenAI(
            base_url=url, api_key="none", max_retries=0, _strict_response_validation=True
        ) as own:
            file = await own.files.create(file=("tea.txt", TEA.encode()), purpose="assistants")
            store = await own.vector_stores.create(name="async", file_ids=[file.id])
            uploads: list[Any] = [
                ("cats.txt", BytesIO(CATS.encode())),
                ("trains.txt", TRAINS.encode()),
            ]
            batch = await own.vector_stores.file_batches.upload_and_poll(
                store.id, files=uploads, poll_interval_ms=10
            )
            assert batch.file_counts.completed == 2
            polled = await own.vector_stores.files.poll(
                file.id, vector_store_id=store.id, poll_interval_ms=10
            )
            assert polled.status == "completed"
            names = [entry.id async for entry in own.vector_stores.files.list(store.id, limit=1)]
            assert len(names) == 3
            hits = await own.vector_stores.search(store.id, query="When does the train leave?")
            assert hits.data[0].filename == "trains.txt"
            assert (await own.files.wait_for_processing(file.id)).status == "processed"
            assert (await own.vector_stores.delete(store.id)).deleted

    asyncio.run(run())
    assert client.files.list().data


def test_the_page_runs_as_it_stands(
    client: OpenAI,  # noqa: ARG001  (a worker beside)
    api_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    page = (ROOT / "docs/clients/openai-files.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("hours.md").write_text("# Hours\n\nWe open at nine and close at six.", encoding="utf-8")
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace("http://127.0.0.1:8000", api_url), names)
    names["client"].close()

    out = capsys.readouterr().out
    assert re.search(r"completed \{.*'topic': 'hours'", out)
    assert "We open at nine" in out
    assert "completed 2" in out


# One and the same


def test_a_collection_is_a_vector_store_and_the_other_way_round(
    client: OpenAI, native: httpx.Client
) -> None:
    native.put("/v1/collections/kitchen")
    source = {"type": "text", "name": "tea.md", "text": TEA, "metadata": {"kind": "drink"}}
    body = {"kind": "ingest", "input": {"collection": "kitchen", "sources": [source]}}
    native.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})

    store = next(entry for entry in client.vector_stores.list() if entry.name == "kitchen")

    (file,) = client.vector_stores.files.list(store.id).data
    assert (file.status, file.attributes) == ("completed", {"kind": "drink"})
    assert store.file_counts.completed == 1
    (hit,) = client.vector_stores.search("kitchen", query="tea").data
    assert (hit.file_id, hit.filename) == (file.id, "tea.md")
    changed = client.vector_stores.files.update(
        file.id, vector_store_id=store.id, attributes={"kind": "hot drink"}
    )
    assert changed.attributes == {"kind": "hot drink"}
    put(client, store.id, "cats.txt", CATS, attributes={"kind": "animal"})
    documents = native.get("/v1/collections/kitchen/documents").json()["items"]
    assert {entry["source"]: entry["metadata"]["kind"] for entry in documents} == {
        "tea.md": "hot drink", "cats.txt": "animal",
    }  # fmt: skip
    by_document = f"file-{documents[1]['id'].replace('-', '')}"
    assert client.vector_stores.files.retrieve(by_document, vector_store_id=store.id).id != file.id
    assert client.files.retrieve(by_document).filename == "cats.txt"
    assert client.files.content(by_document).text == CATS
    assert client.files.retrieve(file.id).filename == "tea.md"
    assert client.files.content(file.id).text == f"{TEA}\n"
    native.delete(f"/v1/documents/{documents[0]['id']}")
    assert len(client.vector_stores.files.list(store.id).data) == 1


def test_a_vector_store_that_nobody_uses_is_erased(
    client: OpenAI, native: httpx.Client, process: Process, at_work: threading.Event
) -> None:
    policy: Any = {"anchor": "last_active_at", "days": 1}
    unused, used = (client.vector_stores.create(expires_after=policy) for _ in range(2))
    put(client, used.id, "cats.txt", CATS)
    at_work.clear()
    both = f"('{unused.id[3:]}', '{used.id[3:]}')"
    change(
        process, f"UPDATE collections SET used_at = now() - interval '2 days' WHERE id IN {both}"
    )
    assert client.vector_stores.retrieve(unused.id).status == "expired"
    assert client.vector_stores.retrieve(used.id).status == "completed"
    with pytest.raises(openai.BadRequestError) as error:
        client.vector_stores.search(unused.id, query="cats")
    assert "expired" in refusal(error, "vector_store_id")

    Sweeper(process, {}).sweep()
    at_work.set()

    with pytest.raises(openai.NotFoundError):
        client.vector_stores.retrieve(unused.id)
    assert found(client, used.id, "cats") == ["cats.txt"]
    erased = native.get("/v1/jobs", params={"kind": "erase"}).json()["items"][0]
    assert erased["lane"] == "bulk"


WRONG: dict[str, tuple[str, str, dict[str, Any], int, str | None]] = {
    "name": ("", "", {"name": 5}, 400, "name"),
    "unknown": ("", "", {"colour": "red"}, 400, "colour"),
    "metadata": ("", "", {"metadata": {"n": 1}}, 400, "metadata"),
    "many": ("", "", {"metadata": {str(n): "" for n in range(17)}}, 400, "metadata"),
    "days": ("", "", {"expires_after": {"anchor": "last_active_at", "days": 0}}, 400,
             "expires_after.days"),
    "no such file": ("", "", {"file_ids": [MISSING]}, 404, "file_ids"),
    "no id": ("store", "/files", {"file_id": "x"}, 404, None),
    "overlap": ("store", "/files", {"file_id": MISSING, "chunking_strategy": {
        "type": "static",
        "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 60}}}, 400,
        "chunking_strategy"),
    "both": ("store", "/file_batches", {"file_ids": [MISSING], "files": [{"file_id": MISSING}]},
             400, None),
    "query": ("store", "/search", {"query": ""}, 400, "query"),
    "number": ("store", "/search", {"query": "a", "max_num_results": 51}, 400, "max_num_results"),
    "ranker": ("store", "/search", {"query": "a", "ranking_options": {"ranker": "best"}}, 400,
               "ranking_options.ranker"),
    "filter": ("store", "/search", {"query": "a", "filters": {"type": "like", "key": "a",
               "value": "b"}}, 400, "filters"),
    "rewrite": ("store", "/search", {"query": "a", "rewrite_query": True}, 400, "rewrite_query"),
    "no store": ("vs_" + "0" * 32, "/search", {"query": "a"}, 404, "vector_store_id"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_bad_input_has_the_error_form_with_the_parameter(client: OpenAI, name: str) -> None:
    store, path, body, status, param = WRONG[name]
    if store == "store":
        store = client.vector_stores.create().id
    url = f"/vector_stores/{store}{path}".rstrip("/")

    with pytest.raises(openai.APIStatusError) as error:
        client.post(url, body=body, cast_to=object)

    assert error.value.status_code == status
    body_ = error.value.body
    assert isinstance(body_, dict)
    assert {"message", "type", "param", "code"} <= set(body_)
    assert body_["message"]
    if param is not None:
        assert str(error.value.param).startswith(param)
