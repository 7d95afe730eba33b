"""Schedules over HTTP, and the jobs that the sweeper makes of them."""

import json
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import text

from cli.errors import Exit
from cli.main import run
from shared.kinds.registry import KINDS
from tests.integration.ingestion import new_collection
from tests.integration.job_runner import drain, handlers, job_of
from workers.attempts.process import Process
from workers.rounds import Round
from workers.sweep import Retention, fire_schedules

JOB = {"kind": "embed", "input": {"texts": ["a"]}, "lane": "bulk", "metadata": {"team": "desk"}}


@pytest.fixture(autouse=True)
def _none_before(process: Process) -> None:
    with process.ledger.begin() as session:
        session.execute(text("DELETE FROM schedules"))


def put(api: httpx.Client, name: str = "nightly", **changes: Any) -> dict[str, Any]:
    body = {"cron": "@daily", "timezone": "Asia/Seoul", "job": JOB} | changes
    response = api.put(f"/v1/schedules/{name}", json=body)
    assert response.status_code in (200, 201), response.text
    view: dict[str, Any] = response.json()
    return view


def make_due(process: Process, name: str = "nightly", days: int = 10) -> None:
    with process.ledger.begin() as session:
        session.execute(
            text(
                "UPDATE schedules SET next_at = now() - make_interval(days => :d) WHERE name = :n"
            ),
            {"d": days, "n": name},
        )


def jobs_of(process: Process, name: str = "nightly") -> list[UUID]:
    with process.ledger.read() as session:
        rows = session.execute(
            text("SELECT id FROM jobs WHERE metadata ->> 'schedule' = :n ORDER BY id"), {"n": name}
        )
        return list(rows.scalars())


def fire(process: Process) -> None:
    fire_schedules(Round(process, handlers(), "schedules", Event()))


def test_what_was_missed_is_one_job(api: httpx.Client, process: Process) -> None:
    view = put(api)
    assert view["next_at"].endswith("15:00:00Z")
    assert (view["paused"], view["last_job_id"], view["kind"]) == (False, None, "embed")
    fire(process)
    assert jobs_of(process) == []
    make_due(process)
    fire(process)
    fire(process)
    [job_id] = jobs_of(process)
    job = job_of(process, job_id)
    assert (job.kind, job.lane, job.meta["team"]) == ("embed", 2, "desk")
    after = api.get("/v1/schedules/nightly").json()
    assert after["last_job_id"] == str(job_id)
    assert after["next_at"] == view["next_at"]

    # Due again and again while that job is open: one run, when it has ended.
    make_due(process)
    fire(process)
    make_due(process, days=3)
    fire(process)
    assert jobs_of(process) == [job_id]
    drain(process)
    fire(process)
    fire(process)
    assert len(jobs_of(process)) == 2


def test_several_sweepers_submit_one_job(api: httpx.Client, process: Process) -> None:
    for n in range(5):
        put(api, f"s{n}")
        make_due(process, f"s{n}")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fire(process), range(8)))
    assert [len(jobs_of(process, f"s{n}")) for n in range(5)] == [1] * 5


def test_pausing_resuming_running_deleting(api: httpx.Client, process: Process) -> None:
    view = put(api)
    path = "/v1/schedules/nightly"
    assert api.post(f"{path}/pause").json()["paused"]
    make_due(process)
    fire(process)
    assert jobs_of(process) == []
    assert put(api, cron="@hourly")["paused"]
    make_due(process)
    resumed = api.post(f"{path}/resume").json()
    assert not resumed["paused"]
    assert resumed["next_at"] > view["created_at"]
    fire(process)
    assert jobs_of(process) == []
    job_id = api.post(f"{path}/run").json()["job_id"]
    assert jobs_of(process) == [UUID(job_id)]
    assert api.post(f"{path}/run").status_code == 409
    assert api.get(path).json()["next_at"] == resumed["next_at"]
    assert [one["name"] for one in api.get("/v1/schedules").json()["items"]] == ["nightly"]
    assert api.delete(path).status_code == 204
    assert api.delete(path).status_code == 404
    assert api.get(path).status_code == 404
    assert jobs_of(process) == [UUID(job_id)]
    drain(process)


@pytest.mark.parametrize(
    "changes",
    [
        {"cron": "* * *"}, {"cron": "0 0 30 2 *"}, {"timezone": "Mars/Olympus"},
        {"job": {"kind": "none", "input": {}}}, {"job": {"kind": "embed", "input": {}}},
        {"job": {**JOB, "run_after": "2030-01-01T00:00:00Z"}},
        {"job": {**JOB, "webhook": {"url": "http://127.0.0.1/"}}},
        {"job": {"kind": "chat", "input": {
            "messages": [{"role": "user", "content": "a"}],
            "conversation_id": "0190a000-0000-7000-8000-000000000000"}}},
        {"job": {"kind": "batch", "input": {
            "file_id": "0190a000-0000-7000-8000-000000000000", "endpoint": "/v1/embed",
            "finish_by": "2030-01-01T00:00:00Z"}}},
        {"job": {"kind": "chat", "input": {
            "messages": [{"role": "user", "content": "a"}],
            "previous_job_id": "0190a000-0000-7000-8000-000000000000"}}},
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused(api: httpx.Client, changes: dict[str, Any]) -> None:
    body = {"cron": "@daily", "job": JOB} | changes
    response = api.put("/v1/schedules/nightly", json=body)
    assert response.status_code in (400, 422), response.text
    assert api.get("/v1/schedules/nightly").status_code == 404


def test_a_schedule_shows_its_job(api: httpx.Client) -> None:
    view = put(api, job={**JOB, "webhook": {"url": "https://example.org/", "secret": "s" * 32}})
    job = view["job"]
    assert (job["kind"], job["input"]["texts"], job["lane"]) == ("embed", ["a"], "bulk")
    assert (job["metadata"], job["webhook_url"]) == ({"team": "desk"}, "https://example.org/")
    assert "secret" not in str(view)
    assert api.get("/v1/schedules/nightly").json() == view
    assert api.get("/v1/schedules").json()["items"] == [{**view, "job": None}]


def test_every_kind_can_be_scheduled(api: httpx.Client, process: Process) -> None:
    collection = new_collection(process)
    line = {"custom_id": "a", "url": "/v1/embed", "body": {"texts": ["a"]}}
    files = {"file": ("lines.jsonl", json.dumps(line).encode())}
    file_id = api.post("/v1/files", files=files).json()["id"]
    for kind in KINDS.values():
        own: dict[str, Any] = {"collection": collection, "file_id": file_id, "file_ids": [file_id]}
        if kind.name == "import":  # of a collection that is not there yet
            own["collection"] = f"{collection}-new"
        input_ = {key: own.get(key, value) for key, value in kind.example.items()}
        name = f"of-{kind.name}"
        body = {"cron": "@daily", "job": {"kind": kind.name, "input": input_}}
        response = api.put(f"/v1/schedules/{name}", json=body)
        assert response.status_code == 201, response.text
        make_due(process, name)
    fire(process)
    for kind in KINDS.values():
        name = f"of-{kind.name}"
        assert len(jobs_of(process, name)) == 1, api.get(f"/v1/schedules/{name}").json()["error"]
    # A batch has its time from its own beginning on, not from that of its schedule.
    with process.ledger.read() as session:
        finish_by = "SELECT input ->> 'finish_by' FROM schedules WHERE name = 'of-batch'"
        assert session.scalar(text(finish_by)) is None
    assert job_of(process, jobs_of(process, "of-batch")[0]).input["finish_by"] is not None


def test_uploads_are_kept_as_long_as_a_schedule_names_them(
    api: httpx.Client, process: Process
) -> None:
    file_id = api.post("/v1/files", files={"file": ("a.md", b"text")}).json()["id"]
    source = {"type": "file", "file_id": file_id}
    job = {"kind": "ingest", "input": {
        "collection": new_collection(process), "sources": [source]}}  # fmt: skip
    put(api, job=job)
    with process.ledger.begin() as session:
        session.execute(text("UPDATE files SET created_at = now() - interval '10 years'"))
    forget = Retention().forget_files
    forget(Round(process, handlers(), "retention of uploads", Event()))
    assert api.get(f"/v1/files/{file_id}").status_code == 200
    assert api.delete("/v1/schedules/nightly").status_code == 204
    forget(Round(process, handlers(), "retention of uploads", Event()))
    forget(Round(process, handlers(), "retention of uploads", Event()))
    assert api.get(f"/v1/files/{file_id}").status_code == 404


def test_a_job_that_cannot_be_submitted_is_an_error_of_the_schedule(
    api: httpx.Client, process: Process
) -> None:
    collection = new_collection(process)
    job = {"kind": "ingest", "input": {
        "collection": collection, "sources": [{"type": "text", "text": "a"}]}}  # fmt: skip
    put(api, job=job)
    missing = {"kind": "search", "input": {"collection": "nowhere-at-all", "query": "a"}}
    response = api.put("/v1/schedules/other", json={"cron": "@daily", "job": missing})
    assert response.status_code == 404
    with process.ledger.begin() as session:
        session.execute(text("DELETE FROM collections WHERE name = :n"), {"n": collection})
    make_due(process)
    fire(process)
    view = api.get("/v1/schedules/nightly").json()
    assert collection in view["error"]
    assert view["next_at"] > view["updated_at"]
    assert jobs_of(process) == []
    put(api)
    assert api.get("/v1/schedules/nightly").json()["error"] is None


def test_the_command_line_and_the_client_have_them(
    api: httpx.Client, process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    url = ["--url", str(api.base_url)]
    arguments = ["nightly", "0 6 * * *", "embed", '{"texts": ["a"]}', "--timezone", "Asia/Seoul"]
    assert run(["schedules", "put", *arguments, "--lane", "bulk", *url]) == 0
    assert "0 6 * * * (Asia/Seoul)" in capsys.readouterr().out
    assert run(["schedules", "pause", "nightly", *url]) == 0
    assert run(["schedules", *url]) == 0
    assert "paused" in capsys.readouterr().out
    assert run(["schedules", "resume", "nightly", *url]) == 0
    assert run(["schedules", "run", "nightly", *url]) == 0
    assert capsys.readouterr().out.strip().endswith(str(jobs_of(process)[0]))
    assert run(["schedules", "run", "nightly", *url]) != 0
    assert "still open" in capsys.readouterr().err
    assert run(["schedules", "show", "nightly", "--json", *url]) == 0
    assert json.loads(capsys.readouterr().out)["last_job_id"] == str(jobs_of(process)[0])
    assert run(["schedules", "put", "a", "* *", "embed", '{"texts": ["a"]}', *url]) == Exit.REFUSED
    assert "five fields" in capsys.readouterr().err
    assert run(["schedules", "delete", "nightly", *url]) == 2
    assert run(["schedules", "delete", "nightly", "--yes", *url]) == 0
    assert api.get("/v1/schedules").json()["items"] == []
    drain(process)
