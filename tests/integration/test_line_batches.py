"""Batches: the lines of a file as jobs, through the API, run in this process."""

import json
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis import Redis
from sqlalchemy import delete, func, select, update

from shared import files
from shared.config import Settings
from shared.database.transaction import Ledger
from shared.redis.events import stream_key
from shared.tables import Batch, BatchLine, File, Job, Step
from shared.vocabulary import Queue
from tests.integration.answers import problem
from tests.integration.ingestion import CATS, TRAINS, new_collection, order
from tests.integration.job_runner import (
    claimed,
    drain,
    handlers,
    invariants_hold,
    lose_workers,
    make_due,
    make_process,
)
from tests.integration.sweeps import sweep
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.attempts.runner import run, run_next

Line = dict[str, Any]
Make = Callable[..., dict[str, Any]]


@pytest.fixture
def worker(settings: Settings, ledger: Ledger) -> Iterator[Callable[..., Process]]:  # noqa: ARG001
    """Makes processes with settings of their own."""
    made: list[Process] = []

    def make(**changes: Any) -> Process:
        made.append(make_process(settings, batch_interval_s=0.01, **changes))
        return made[-1]

    yield make
    for process in made:
        process.close()


def embed(n: int, **body: Any) -> Line:
    return {
        "custom_id": f"embed-{n}", "method": "POST", "url": "/v1/embed",
        "body": {"texts": [f"text number {n}"]} | body,
    }  # fmt: skip


def upload(api: httpx.Client, lines: Sequence[Line | str] | bytes) -> str:
    if not isinstance(lines, bytes):
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        lines = text.encode()
    answer = api.post("/v1/files", files={"file": ("lines.jsonl", lines)})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def create(api: httpx.Client, lines: Sequence[Line | str] | bytes, **fields: Any) -> dict[str, Any]:
    answer = api.post("/v1/batches", json={"file_id": upload(api, lines)} | fields)
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = answer.json()
    return made


def look(api: httpx.Client, batch: dict[str, Any]) -> dict[str, Any]:
    answer = api.get(f"/v1/batches/{batch['id']}")
    assert answer.status_code == 200, answer.text
    seen: dict[str, Any] = answer.json()
    return seen


def rows(api: httpx.Client, batch: dict[str, Any], which: str = "results") -> list[Line]:
    answer = api.get(f"/v1/batches/{batch['id']}/{which}")
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.content.splitlines()]


def ids(lines: Sequence[Line]) -> list[str]:
    return [line["custom_id"] for line in lines]


def control(process: Process, times: int = 1) -> None:
    """Let the batch's own step run so often."""
    for _ in range(times):
        make_due(process)
        run_next(process, handlers(), Queue.CONTROL.value)


def test_lines_of_several_endpoints_end_in_the_order_of_the_file(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker()
    collection = new_collection(process)
    order(process, collection, {"cats.txt": CATS, "trains.txt": TRAINS})
    drain(process)
    lines: list[Line | str] = [
        embed(0),
        {"custom_id": "s", "url": "/v1/search",
         "body": {"collection": collection, "query": "When does the train leave?", "k": 1}},
        "",
        {"custom_id": "none", "url": "/v1/search",
         "body": {"collection": "not-there", "query": "x"}},
        {"custom_id": "r", "url": "/v1/rag",
         "body": {"collection": collection, "question": "How long does a cat sleep?"}},
        *[embed(n) for n in range(1, 9)],
    ]  # fmt: skip
    made = create(api, lines, metadata={"team": "a"})
    assert made["status"] == "validating"
    assert made["lines"]["total"] == 0
    drain(process)

    ended = look(api, made)
    assert (ended["state"], ended["status"]) == ("succeeded", "completed")
    assert ended["lines"] == {
        "total": 12, "waiting": 0, "running": 0, "succeeded": 11, "failed": 1, "cancelled": 0,
        "expired": 0,
    }  # fmt: skip
    assert "1 of 12 lines failed" in ended["warnings"][0]
    assert ended["metadata"] == {"team": "a"}
    answers = rows(api, made)
    assert ids(answers) == ["embed-0", "s", "r", *(f"embed-{n}" for n in range(1, 9))]
    assert all(line["response"]["status_code"] == 200 for line in answers)
    assert len(answers[0]["response"]["body"]["embeddings"][0]) == 384
    assert answers[1]["response"]["body"]["hits"][0]["source"] == "trains.txt"
    assert answers[2]["response"]["body"]["citations"][0]["source"] == "cats.txt"
    (failed,) = rows(api, made, "errors")
    assert failed["custom_id"] == "none"
    assert failed["response"]["status_code"] == 404
    assert "not-there" in failed["response"]["body"]["error"]["message"]
    # The files are files as any other.
    content = api.get(f"/v1/files/{ended['output_file_id']}/content")
    assert content.content == api.get(f"/v1/batches/{made['id']}/results").content

    # Events of a line would take memory of Redis, and be followed by nobody.
    with Redis.from_url(process.settings.require_redis_url(), decode_responses=True) as redis:
        keys = list(redis.scan_iter("sluice:events:*"))
        assert stream_key(UUID(made["id"])) in keys
        jobs = _jobs(api, made)
        assert not {stream_key(UUID(job["id"])) for job in jobs} & set(keys)
    (event,) = _events(api, jobs[0]["id"])
    assert (event["event"], event["data"]["state"]) == ("end", "succeeded")

    # Lines are in no list of jobs but their own.
    listed = api.get("/v1/jobs").json()["items"]
    assert {job["kind"] for job in listed} == {"batch", "ingest"}
    mine = api.get("/v1/jobs", params={"batch": made["id"], "limit": 200}).json()["items"]
    assert {job["batch_id"] for job in mine} == {made["id"]}
    assert len(mine) == 11
    assert {job["lane"] for job in mine} == {"bulk"}
    assert [item["id"] for item in api.get("/v1/batches").json()["items"]] == [made["id"]]
    invariants_hold(process, all_ended=True)


BAD: list[tuple[Line | str, str, str]] = [
    ("{", "invalid_json_line", "is no JSON"),
    ("[1]", "invalid_json_line", "is no JSON object"),
    ({"custom_id": "a", "body": {}}, "missing_required_parameter", "url is missing"),
    (embed(0) | {"method": "GET"}, "invalid_request", "method"),
    (embed(1) | {"url": "/v1/nothing"}, "invalid_url", "/v1/nothing"),
    (embed(2, texts=[]), "invalid_request", "body.texts"),
    (embed(3, model=7), "invalid_request", "body.model"),
    (embed(4, extra=1), "unknown_parameter", "body.extra"),
    (embed(5) | {"priority": 1}, "unknown_parameter", "priority"),
    (embed(6) | {"custom_id": ""}, "invalid_request", "custom_id"),
    ({"custom_id": "c", "url": "/v1/hf/summarization", "body": {"inputs": 7}},
     "invalid_request", "inputs"),
    ({"custom_id": "d", "url": "/v1/chat", "body": {
        "messages": [{"role": "user", "content": "x"}], "model": "ollama/x",
        "conversation_id": "0198c0de-0000-7000-8000-000000000000"}},
     "invalid_request", "conversation"),
    ('{"custom_id": "e", "url": "/v1/embed", "body": {"texts": [NaN]}}',
     "invalid_json_line", "NaN"),
    ('{"custom_id": "f", "url": "/v1/embed", "body": {"texts": ["\\ud800"]}}', "invalid_json_line",
     "surrogate"),
]  # fmt: skip


def test_a_bad_file_names_each_bad_line_and_runs_none(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker()
    lines: list[Line | str] = [
        embed(100),
        *(line for line, _, _ in BAD),
        embed(101),
        embed(100),
        "   ",
    ]
    made = create(api, lines)
    drain(process)
    ended = look(api, made)
    assert (ended["state"], ended["status"]) == ("failed", "failed")
    errors = ended["errors"]
    assert [error["line"] for error in errors] == [*range(2, 2 + len(BAD)), len(BAD) + 3]
    for error, (_, code, words) in zip(errors, BAD, strict=False):
        assert error["code"] == code, error
        assert words in error["message"], error
    assert errors[-1]["code"] == "duplicate_custom_id"
    assert "line 1," in errors[-1]["message"]
    assert ended["lines"]["total"] == 2 or ended["lines"]["succeeded"] == 0
    assert api.get("/v1/jobs", params={"batch": made["id"]}).json()["items"] == []
    assert rows(api, made) == []
    assert "Line 2" in ended["error"]["message"]


def test_files_are_read_as_editors_and_programs_write_them(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker()
    names = ["보고서.pdf", unicodedata.normalize("NFD", "보고서.pdf"), "a b\u2028c", "\x85", "1"]
    lines = [json.dumps(embed(0) | {"custom_id": name}, ensure_ascii=False) for name in names]
    text = "\ufeff" + "\r\n \r\n\r\n".join(lines)  # and no end of the last line
    made = create(api, text.encode())
    drain(process)
    assert look(api, made)["status"] == "completed", look(api, made)["errors"]
    assert ids(rows(api, made)) == names


BAD_BYTES = [
    (b'{"custom_id": "\xff", "url": "/v1/embed", "body": {"texts": ["a"]}}', "is no UTF-8"),
    (b'{"custom_id": "a\x00", "url": "/v1/embed", "body": {"texts": ["a"]}}', "is no JSON"),
    (b'{"custom_id": "b\\u0000", "url": "/v1/embed", "body": {"texts": ["a"]}}', "NUL"),
    (b'{"custom_id": "c", "url": "/v1/embed", "body": {"texts": ["a\\u0000"]}}', "NUL"),
    (b'{"custom_id": 1, "url": "/v1/embed", "body": {"texts": ["a"]}}', "string"),
    (b'[{"custom_id": "d", "url": "/v1/embed", "body": {"texts": ["a"]}}]', "no JSON object"),
    (b"[" * 100_000, "nested"),
    (b'{"custom_id": "e", "url": "/v1/embed"}', "body is missing"),
]


def test_bytes_that_are_no_lines_are_named(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker(max_body_values=1_000_000)
    made = create(api, b"\n".join(line for line, _ in BAD_BYTES))
    drain(process)
    ended = look(api, made)
    assert ended["status"] == "failed"
    assert [error["line"] for error in ended["errors"]] == [*range(1, len(BAD_BYTES) + 1)]
    for error, (_, words) in zip(ended["errors"], BAD_BYTES, strict=True):
        assert words in error["message"], error


@pytest.mark.parametrize(
    ("lines", "changes", "code"),
    [
        (["  ", ""], {}, "empty_file"),
        ([embed(n) for n in range(4)], {"batch_limit_lines": 3}, "too_many_lines"),
        ([embed(0), embed(1, texts=["x" * 3000])], {"max_body_bytes": 2000}, "too_large"),
    ],
)
def test_files_have_bounds(
    api: httpx.Client,
    worker: Callable[..., Process],
    monkeypatch: pytest.MonkeyPatch,
    lines: list[Any],
    changes: dict[str, int],
    code: str,
) -> None:
    monkeypatch.setattr("workers.batches.READ_BYTES", 1024)
    made = create(api, lines)
    drain(worker(**changes))
    ended = look(api, made)
    assert ended["status"] == "failed"
    assert [error["code"] for error in ended["errors"]] == [code]


def test_only_some_lines_are_open_at_once(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker(batch_open_lines=5)
    made = create(api, [embed(n) for n in range(23)])
    most = 0
    for _ in range(60):
        control(process)
        with process.ledger.read() as session:
            is_open = Step.state.in_(("queued", "running"))
            waiting = session.scalar(
                select(func.count()).where(Step.name == "embed", is_open).select_from(Step)
            )
        most = max(most, waiting or 0)
        run_next(process, handlers(), Queue.EMBED.value)
    drain(process)
    assert most == 5
    assert ids(rows(api, made)) == [f"embed-{n}" for n in range(23)]


def test_batches_leave_half_of_a_queue_to_others(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker(queue_limit_steps=8)
    made = create(api, [embed(n) for n in range(10)])
    control(process, 5)
    seen = look(api, made)
    assert (seen["lines"]["running"], seen["lines"]["waiting"]) == (4, 6)
    assert seen["status"] == "in_progress"
    assert seen["position"] == 0
    drain(process)
    assert len(rows(api, made)) == 10


def test_lines_of_a_model_that_nobody_serves_hold_up_no_others(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker(batch_open_lines=8)
    body = {"model": "hf/nobody", "messages": [{"role": "user", "content": "x"}]}
    chats = [
        {"custom_id": f"chat-{n}", "url": "/v1/chat/completions", "body": body} for n in range(20)
    ]
    made = create(api, [*chats, *[embed(n) for n in range(11)]])
    for _ in range(12):
        control(process)
        run_next(process, handlers(), Queue.EMBED.value)
    seen = look(api, made)
    assert seen["status"] == "in_progress"
    assert seen["lines"]["succeeded"] == 11
    assert "No living worker serves the model 'hf/nobody'" in seen["waiting_for"]
    control(process, 2)
    # They have all of the places, once nobody else wants one.
    assert look(api, made)["lines"]["running"] == 8
    assert sorted(ids(rows(api, made))) == sorted(f"embed-{n}" for n in range(11))


def test_a_file_of_many_parts_is_made_one(
    api: httpx.Client, worker: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.batches.MERGED_PARTS", 3)
    process = worker(batch_open_lines=1)
    made = create(api, [embed(n) for n in range(9)])
    control(process, 2)
    most = 0
    for n in range(8):
        run_next(process, handlers(), Queue.EMBED.value)
        control(process)
        assert ids(rows(api, made)) == [f"embed-{k}" for k in range(n + 1)]
        with process.ledger.read() as session:
            (file,) = session.scalars(select(File).where(File.parts.is_not(None)))
            most = max(most, len(file.parts or []))
    assert most == 3


def test_the_file_of_an_ended_batch_is_all_that_is_left_of_its_parts(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker(batch_open_lines=2, batch_replaced_s=0)
    made = create(api, [embed(n) for n in range(4)])
    control(process, 3)
    run_next(process, handlers(), Queue.EMBED.value)
    control(process)
    file_id = UUID(look(api, made)["output_file_id"])
    # As of an attempt that died before it could say that it had written this.
    files.write_part(process.storage, file_id, b"half of a li")
    drain(process)
    sweep(process)
    assert len(files.part_paths(process.storage, file_id)) == 1
    assert ids(rows(api, made)) == [f"embed-{n}" for n in range(4)]


def begun(api: httpx.Client, worker: Callable[..., Process]) -> tuple[Process, dict[str, Any]]:
    """A batch of six lines of which the first have been answered, and their answers written."""
    process = worker(batch_open_lines=2)
    made = create(api, [embed(n) for n in range(6)])
    control(process, 3)
    run_next(process, handlers(), Queue.EMBED.value)
    control(process)
    return process, made


def test_a_file_that_its_user_deletes_is_written_again(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process, made = begun(api, worker)
    first = look(api, made)["output_file_id"]
    assert api.delete(f"/v1/files/{first}").status_code == 204
    gone = problem(api.get(f"/v1/batches/{made['id']}/results"), 404)
    assert f"/v1/jobs?batch={made['id']}" in gone["detail"]
    drain(process)
    assert look(api, made)["output_file_id"] not in (None, first)
    assert ids(rows(api, made)) == [f"embed-{n}" for n in range(6)]


def test_answers_can_be_read_from_the_first_on(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process, made = begun(api, worker)
    seen = look(api, made)
    assert seen["status"] == "in_progress"
    first = rows(api, made)
    assert 1 <= len(first) <= 2
    name = api.get(f"/v1/files/{seen['output_file_id']}").json()["name"]
    assert name == f"batch_{made['id'].replace('-', '')}_output.jsonl"
    drain(process)
    last = rows(api, made)
    assert ids(last) == [f"embed-{n}" for n in range(6)]
    assert {line["id"] for line in first} <= {line["id"] for line in last}
    assert look(api, made)["output_file_id"] == seen["output_file_id"]


def test_a_cancelled_batch_keeps_what_is_done_and_can_go_on(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker(batch_open_lines=4)
    made = create(api, [embed(n) for n in range(12)])
    control(process, 3)
    run_next(process, handlers(), Queue.EMBED.value)
    control(process)
    answer = api.post(f"/v1/batches/{made['id']}/cancel").json()
    assert answer["state"] == "cancelled"
    assert answer["status"] == "cancelling"
    invariants_hold(process)
    drain(process)
    ended = look(api, made)
    assert ended["status"] == "cancelled"
    done = ended["lines"]["succeeded"]
    assert 0 < done < 12
    assert ended["lines"]["cancelled"] == 12 - done
    assert len(rows(api, made)) == done
    stopped = rows(api, made, "errors")
    assert len(stopped) == 12 - done
    assert {line["error"]["code"] for line in stopped} == {"batch_cancelled"}
    problem(api.post(f"/v1/batches/{made['id']}/retry"), 409)

    answer = api.post(f"/v1/batches/{made['id']}/retry", json={"lines": "unfinished"})
    assert answer.status_code == 200, answer.text
    drain(process)
    again = look(api, made)
    assert again["status"] == "completed"
    assert ids(rows(api, made)) == [f"embed-{n}" for n in range(12)]
    assert rows(api, made, "errors") == []
    assert again["output_file_id"] == ended["output_file_id"]
    invariants_hold(process, all_ended=True)


def test_running_lines_stop_with_their_batch(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker()
    made = create(api, [embed(n) for n in range(3)])
    control(process, 3)
    claim = claimed(process)
    api.post(f"/v1/jobs/{made['id']}/cancel")
    control(process)
    assert look(api, made)["status"] == "cancelling"
    problem(api.post(f"/v1/batches/{made['id']}/retry"), 409)
    run(process, {"embed": _until_stopped()}, claim)
    drain(process)
    assert look(api, made)["status"] == "cancelled"
    invariants_hold(process, all_ended=True)


def _until_stopped() -> Any:
    from workers.attempts.context import Handler

    def wait(context: Context) -> Any:
        assert context.stop.wait(30)
        context.check()

    return Handler(run=wait)


def test_what_is_not_done_in_time_expires(
    api: httpx.Client, worker: Callable[..., Process], ledger: Ledger
) -> None:
    process = worker(batch_open_lines=3)
    made = create(api, [embed(n) for n in range(8)], completion_window="1h")
    control(process, 3)
    run_next(process, handlers(), Queue.EMBED.value)
    with ledger.begin() as session:
        session.execute(update(Batch).values(finish_by=datetime.now(UTC) - timedelta(seconds=1)))
    drain(process)
    ended = look(api, made)
    assert (ended["state"], ended["status"]) == ("failed", "expired")
    assert ended["error"]["type"] == "BatchExpired"
    done = ended["lines"]["succeeded"]
    assert 0 < done < 8
    assert ended["lines"]["expired"] == 8 - done
    assert len(rows(api, made)) == done
    assert {line["error"]["code"] for line in rows(api, made, "errors")} == {"batch_expired"}

    answer = api.post(f"/v1/jobs/{made['id']}/retry")
    assert answer.status_code == 200, answer.text
    drain(process)
    assert look(api, made)["status"] == "completed"
    assert ids(rows(api, made)) == [f"embed-{n}" for n in range(8)]


def test_failed_lines_alone_are_retried(api: httpx.Client, worker: Callable[..., Process]) -> None:
    process = worker()
    lines = [
        *[embed(n) for n in range(3)],
        {"custom_id": "never", "url": "/v1/search",
         "body": {"collection": "is-not-there", "query": "cats"}},
        {"custom_id": "later", "url": "/v1/search",
         "body": {"collection": "comes-later", "query": "cats"}},
    ]  # fmt: skip
    made = create(api, lines)
    drain(process)
    ended = look(api, made)
    assert (ended["lines"]["succeeded"], ended["lines"]["failed"]) == (3, 2)
    before = rows(api, made)
    jobs_before = {job["id"] for job in _jobs(api, made) if job["state"] == "succeeded"}
    problem(api.post(f"/v1/jobs/{next(iter(jobs_before))}/retry"), 409)
    problem(api.delete(f"/v1/jobs/{next(iter(jobs_before))}"), 409)
    assert len(api.get("/v1/jobs", params={"dead": "true"}).json()["items"]) == 0

    assert api.put("/v1/collections/comes-later", json={}).status_code in (200, 201)
    answer = api.post(f"/v1/batches/{made['id']}/retry")
    assert answer.status_code == 200, answer.text
    drain(process)
    again = look(api, made)
    assert again["status"] == "completed"
    assert (again["lines"]["succeeded"], again["lines"]["failed"]) == (4, 1)
    assert ids(rows(api, made)) == ["embed-0", "embed-1", "embed-2", "later"]
    assert rows(api, made)[:3] == before
    assert ids(rows(api, made, "errors")) == ["never"]
    assert {job["id"] for job in _jobs(api, made) if job["state"] == "succeeded"} >= jobs_before


def _events(api: httpx.Client, job_id: str) -> list[dict[str, Any]]:
    text = api.get(f"/v1/jobs/{job_id}/events").text
    fields = [
        dict(one.split(": ", 1) for one in frame.split("\n"))
        for frame in text.split("\n\n")
        if frame
    ]
    return [{"event": one["event"], "data": json.loads(one["data"])} for one in fields]


def _jobs(api: httpx.Client, batch: dict[str, Any]) -> list[dict[str, Any]]:
    params = {"batch": batch["id"], "limit": 200}
    items: list[dict[str, Any]] = api.get("/v1/jobs", params=params).json()["items"]
    return items


def test_a_step_that_dies_anywhere_loses_and_doubles_nothing(
    api: httpx.Client, worker: Callable[..., Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run of the batch's own step is first done by a worker that dies before it records."""
    process = worker(batch_open_lines=4)
    monkeypatch.setattr("workers.batches.READ_BYTES", 300)
    made = create(api, [embed(n) for n in range(10)])
    for _ in range(200):
        make_due(process)
        with process.ledger.read() as session:
            job = session.get(Job, made["id"])
            assert job is not None
            left = session.scalar(select(Step.id).where(
                Step.job_id == job.id, Step.state == "queued"))  # fmt: skip
        if left is None:
            break
        claim = claimed(process, Queue.CONTROL)
        handler = handlers()[claim.name]
        assert handler.run is not None
        handler.run(Context(process, claim))
        lose_workers(process)
        control(process)
        run_next(process, handlers(), Queue.EMBED.value)
    ended = look(api, made)
    assert ended["status"] == "completed"
    assert ids(rows(api, made)) == [f"embed-{n}" for n in range(10)]
    with process.ledger.read() as session:
        lines = session.scalars(select(BatchLine)).all()
        assert {line.state for line in lines} == {"succeeded"}
        assert session.scalar(select(func.count(Job.id)).where(Job.batch_id.is_not(None))) == 10
    invariants_hold(process, all_ended=True)


def test_retention_forgets_lines_with_their_batch(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker(batch_open_lines=2)
    old = create(api, [embed(n) for n in range(3)])
    drain(process)
    running = create(api, [embed(4), embed(5)])
    control(process, 4)
    with process.ledger.begin() as session:
        session.execute(update(Job).values(created_at=Job.created_at - timedelta(days=40)))
        session.execute(
            update(Job)
            .where(Job.batch_id == running["id"])
            .values(state="succeeded", finished_at=func.now() - timedelta(days=40), open_steps=0)
        )
        session.execute(delete(Step).where(Step.name == "embed", Step.job_id.in_(
            select(Job.id).where(Job.batch_id == running["id"]))))  # fmt: skip
    sweep(process)
    assert len(_jobs(api, running)) == 2
    drain(process)
    with process.ledger.begin() as session:
        of_old = (Job.id == old["id"]) | (Job.batch_id == old["id"])
        session.execute(
            update(Job).where(of_old).values(finished_at=func.now() - timedelta(days=40))
        )
    sweep(process)
    problem(api.get(f"/v1/batches/{old['id']}"), 404)
    with process.ledger.read() as session:
        assert session.scalar(select(func.count(Job.id))) == 3
        assert session.scalar(select(func.count(BatchLine.number))) == 2


def test_erasing_a_batch_erases_its_lines(
    api: httpx.Client, worker: Callable[..., Process]
) -> None:
    process = worker()
    made = create(api, [embed(n) for n in range(3)])
    drain(process)
    assert api.delete(f"/v1/jobs/{made['id']}").status_code == 204
    problem(api.get(f"/v1/batches/{made['id']}"), 404)
    with process.ledger.read() as session:
        assert session.scalar(select(func.count(Job.id))) == 0
        assert session.scalar(select(func.count(BatchLine.number))) == 0


def test_requests_name_what_is_wrong(api: httpx.Client) -> None:
    file_id = upload(api, [embed(0)])
    for fields, words in (
        ({"endpoint": "/v1/images"}, "/v1/rag"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "9999d"}, "366 days"),
        ({"finish_by": "2020-01-01T00:00:00Z"}, "ahead"),
        ({"finish_by": "2099-01-01T00:00:00"}, "time zone"),
        ({"finish_by": "2099-01-01T00:00:00Z", "completion_window": "1h"}, "either"),
        ({"more": 1}, "more"),
    ):
        body = problem(api.post("/v1/batches", json={"file_id": file_id} | fields), 422)
        assert words in body["detail"], body
    gone = "0198c0de-0000-7000-8000-000000000000"
    problem(api.post("/v1/batches", json={"file_id": gone}), 404)
    problem(api.get(f"/v1/batches/{gone}"), 404)
    headers = {"Idempotency-Key": "k"}
    first = api.post("/v1/batches", json={"file_id": file_id}, headers=headers).json()
    second = api.post("/v1/batches", json={"file_id": file_id}, headers=headers)
    assert second.json()["id"] == first["id"]
    assert second.headers["Idempotent-Replayed"] == "true"
