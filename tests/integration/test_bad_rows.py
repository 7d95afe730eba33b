"""Readers survive a row that holds what nobody should have written, and it can be removed."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy import text

from shared.config import Settings
from shared.jobs import jobs
from shared.kinds import registry as kinds
from shared.tables import new_id
from shared.vocabulary import Queue
from tests.integration.answers import problem
from tests.integration.job_runner import cancel, submit
from workers.attempts.process import Process
from workers.attempts.runner import run_next

DEEP = "[" * 1000 + "]" * 1000
NESTED = "[" * 300 + "]" * 300

BAD = {
    "a date before Christ": "run_after = '0044-03-15 BC'",
    "the year 10000": "run_after = '12000-01-01'",
    "infinity": "run_after = 'infinity'",
    "a start before Christ": "started_at = '4713-01-01 BC', state = 'running'",
    "an infinite deadline": "deadline_at = '-infinity'",
    "metadata 1,000 deep": f"metadata = '{{\"a\": {DEEP}}}'",
    "metadata 300 deep": f"metadata = '{{\"a\": {NESTED}}}'",
    "metadata that is a list": "metadata = '[1]'",
    "input 1,000 deep": f"input = '{DEEP}'",
    "input of another shape": "input = '\"a text\"'",
    "input without its fields": "input = '{}'",
    "a number of 5,000 digits": f"metadata = '{{\"a\": {'9' * 5000}}}'",
    "an unknown state": "state = 'confused'",
    "an unknown kind": "kind = 'knitting'",
    "an unknown lane": "lane = 77",
    "an unknown queue": "queue = 'nowhere'",
    "an error that is a text": "error = '\"broken\"'",
    "a time limit without end": "timeout_s = 'NaN'",
    "steps that are not there": "open_steps = 12",
    "fewer steps than none": "open_steps = -2147483648",
    "attempts below their range": "max_attempts = -2147483648",
    "attempts at the end of their range": "attempt = 2147483647, max_attempts = 2147483647",
    "progress that is none": "progress_done = -5, progress_total = 0, state = 'running'",
}
REMARKED = [name for name in BAD if name not in (
    "input without its fields", "a number of 5,000 digits", "a time limit without end",
    "steps that are not there", "fewer steps than none", "attempts below their range",
    "attempts at the end of their range", "progress that is none",
)]  # fmt: skip


@pytest.fixture
def bad(process: Process, request: pytest.FixtureRequest) -> UUID:
    """A job whose row is changed, between two good ones."""
    texts = {"texts": ["a"], "model": None}
    submit(process, kinds.EMBED, texts)
    bad = submit(process, kinds.EMBED, texts)
    submit(process, kinds.EMBED, texts)
    with process.ledger.begin() as session:
        session.execute(text(f"UPDATE jobs SET {request.param} WHERE id = :id"), {"id": bad})
    return bad


every_bad = pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD), indirect=True)


@every_bad
def test_a_bad_row_is_listed_cancelled_and_erased(api: httpx.Client, bad: UUID) -> None:
    listed = api.get("/v1/jobs")
    assert listed.status_code == 200
    items = {item["id"]: item for item in listed.json()["items"]}
    assert len(items) == 3
    assert items[str(bad)]["id"] == str(bad)
    alone = api.get(f"/v1/jobs/{bad}")
    assert (alone.status_code, alone.json()["id"]) == (200, str(bad))
    assert api.get("/v1/queues").status_code == 200

    problem(api.delete(f"/v1/jobs/{bad}"), 409)
    cancelled = api.post(f"/v1/jobs/{bad}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (200, "cancelled")
    assert api.delete(f"/v1/jobs/{bad}").status_code == 204

    problem(api.get(f"/v1/jobs/{bad}"), 404)
    assert len(api.get("/v1/jobs").json()["items"]) == 2


@pytest.mark.parametrize("bad", [BAD[name] for name in REMARKED], ids=REMARKED, indirect=True)
def test_it_is_said_that_a_row_cannot_be_read(api: httpx.Client, bad: UUID) -> None:
    for item in (api.get("/v1/jobs").json()["items"][1], api.get(f"/v1/jobs/{bad}").json()):
        assert item["error"]["type"] == "Unreadable", item
        assert f"DELETE /v1/jobs/{bad}" in item["error"]["message"]


@every_bad
def test_the_events_of_a_bad_row_end_with_it(api: httpx.Client, bad: UUID) -> None:
    api.post(f"/v1/jobs/{bad}/cancel")

    with api.stream("GET", f"/v1/jobs/{bad}/events") as stream:
        events = list(_events(stream))

    assert events[-1][0] == "end"
    assert events[-1][1]["id"] == str(bad)


@every_bad
def test_a_bad_row_is_run_again_or_refused(api: httpx.Client, bad: UUID) -> None:
    api.post(f"/v1/jobs/{bad}/cancel")

    assert api.post(f"/v1/jobs/{bad}/retry").status_code in (200, 409)
    assert api.get("/v1/jobs").status_code == 200


@every_bad
def test_workers_go_on_to_the_next_job(process: Process, api: httpx.Client, bad: UUID) -> None:
    handlers: dict[str, Any] = {}

    while run_next(process, handlers, Queue.EMBED.value):
        pass

    states = {item["id"]: item["state"] for item in api.get("/v1/jobs").json()["items"]}
    assert [state for id_, state in states.items() if id_ != str(bad)] == ["failed", "failed"]


def _events(stream: httpx.Response) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in stream.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        if line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


@pytest.mark.parametrize("column", ["queues", "routes"])
@pytest.mark.parametrize("value", ["ARRAY[NULL, 'embed']", "'{{a,b},{c,embed}}'", "'{}'"])
def test_a_bad_row_of_a_worker_hides_nothing(
    api: httpx.Client, process: Process, column: str, value: str
) -> None:
    submit(process)
    with process.ledger.begin() as session:
        session.execute(
            text(
                "INSERT INTO workers (name, hostname, pid, queues, routes, concurrency) "
                "VALUES ('w', 'h', 1, '{embed}', '{a}', 1)"
            )
        )
        session.execute(text(f"UPDATE workers SET {column} = {value}"))

    for path in ("/v1/jobs", "/v1/workers", "/v1/queues", "/v1/models", "/metrics", "/readyz"):
        assert api.get(path).status_code in (200, 503), path


def test_a_running_job_cannot_be_erased(api: httpx.Client, process: Process) -> None:
    job_id = submit(process, kinds.EMBED, {"texts": ["a"], "model": None})

    assert "cancel" in problem(api.delete(f"/v1/jobs/{job_id}"), 409)["detail"]
    cancel(process, job_id)
    assert api.delete(f"/v1/jobs/{job_id}").status_code == 204
    problem(api.delete(f"/v1/jobs/{job_id}"), 404)
    problem(api.delete("/v1/jobs/nonsense"), 404)


@pytest.mark.parametrize("metadata", [f'{{"a": {DEEP}}}', f'{{"a": {NESTED}}}', "[1]", '"x"'])
def test_conversations_and_documents_survive_bad_metadata(
    api: httpx.Client, process: Process, metadata: str
) -> None:
    talk = api.post("/v1/conversations", json={}).json()["id"]
    api.put("/v1/collections/handbook", json={"dimension": 3})
    with process.ledger.begin() as session:

        def run(sql: str, **values: Any) -> None:
            session.execute(text(sql), values)

        run("UPDATE conversations SET metadata = CAST(:m AS jsonb)", m=metadata)
        run(
            "INSERT INTO conversation_messages (conversation_id, ordinal, message) "
            "VALUES (:id, 0, CAST(:m AS jsonb))",
            id=talk,
            m=metadata,
        )
        document, version = new_id(), new_id()
        run(
            "INSERT INTO documents (id, collection_id, source, live_version_id) "
            "SELECT :id, id, 'a.txt', :version FROM collections",
            id=document,
            version=version,
        )
        run(
            "INSERT INTO versions (id, document_id, state, sha256, content_hash, size_bytes, "
            "metadata, chunk_count) VALUES (:version, :id, 'live', '', '', 1, "
            "CAST(:m AS jsonb), 1)",
            id=document,
            version=version,
            m=metadata,
        )
        run(
            "INSERT INTO chunks (version_id, ordinal, start, text, metadata) "
            "VALUES (:version, 0, 0, 'a', CAST(:m AS jsonb))",
            version=version,
            m=metadata,
        )
    for path in (
        "/v1/conversations",
        f"/v1/conversations/{talk}",
        f"/v1/conversations/{talk}/messages",
        "/v1/collections/handbook/documents",
        f"/v1/documents/{document}",
        f"/v1/documents/{document}/chunks",
    ):
        assert api.get(path).status_code == 200, path


def test_what_is_written_is_storable_or_refused(process: Process) -> None:
    job_id = submit(process, kinds.EMBED, {"texts": ["a\x00b", "\ud800"], "model": None})

    with process.ledger.read() as session:
        job = jobs.get(session, job_id)
        assert job.input["texts"] == ["a\ufffdb", "\ufffd"]
        assert session.execute(text("SELECT :a"), {"a": "x\x00\udfff"}).scalar() == "x\ufffd\ufffd"


def test_errors_of_the_database_do_not_show_what_users_sent(settings: Settings) -> None:
    from shared.database.engine import make_engine

    engine = make_engine(settings)
    with pytest.raises(Exception, match="jobs") as caught, engine.connect() as connection:
        connection.execute(text("INSERT INTO jobs (id, webhook) VALUES (:id, CAST(:w AS jsonb))"),
                           {"id": str(uuid4()), "w": '{"secret": "s3cret"}'})  # fmt: skip
    engine.dispose()
    shown = str(caught.value).partition("DETAIL")[0] + str(caught.value).partition("[SQL")[2]
    assert "s3cret" not in shown
