"""Results of every kind that are too large for a row lie in the storage; lists carry neither them
nor large inputs."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from shared.documents import ingest_items
from shared.documents.ingest_items import Outcome
from shared.errors import Permanent
from shared.jobs import jobs
from shared.jobs.steps import NewStep
from shared.kinds import registry as kinds
from shared.vocabulary import Queue
from tests.integration.answers import problem
from tests.integration.job_runner import submit
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.attempts.runner import run_next

TEXTS = {"texts": ["a"], "model": None}


def run(process: Process, done: Done, **handler: Any) -> None:
    """Run the queued step as a handler that ends so."""
    made = Handler(run=lambda _context: done, **handler)
    assert run_next(process, {"embed": made}, Queue.EMBED.value)


def files_of(process: Process, job_id: object) -> list[Path]:
    folder = process.settings.home_path / "files" / jobs.result_folder(job_id)  # type: ignore[arg-type]
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_large_result_lies_in_the_storage(api: httpx.Client, process: Process) -> None:
    job_id = submit(process, kinds.EMBED, TEXTS)
    result = {"embeddings": [[0.123456789] * 400 for _ in range(400)], "name": "안녕"}

    run(process, Done(result=result))

    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["result"]) == ("succeeded", None)
    assert job["result_url"] == f"/v1/jobs/{job_id}/result"
    answer = api.get(job["result_url"])
    assert answer.json() == result
    assert int(answer.headers["content-length"]) > process.settings.result_inline_bytes
    with process.ledger.read() as session:
        sizes = session.execute(
            text("SELECT coalesce(pg_column_size(result), 0) FROM steps UNION ALL "
                 "SELECT coalesce(pg_column_size(result), 0) FROM jobs")
        ).scalars()  # fmt: skip
        assert set(sizes) == {0}

    assert len(files_of(process, job_id)) == 1
    assert api.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert files_of(process, job_id) == []


def test_a_small_result_stays_in_its_row(api: httpx.Client, process: Process) -> None:
    job_id = submit(process, kinds.EMBED, TEXTS)

    run(process, Done(result={"a": "안녕\x00"}))

    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["result"], job["result_url"]) == ({"a": "안녕\ufffd"}, None)
    assert files_of(process, job_id) == []


def test_what_a_step_hands_on_is_no_result(api: httpx.Client, process: Process) -> None:
    job_id = submit(process, kinds.EMBED, TEXTS)
    result = {"found": ["x" * 2000] * 1000}

    run(process, Done(result=result, children=[NewStep(name="next", queue=Queue.EMBED)]))

    assert api.get(f"/v1/jobs/{job_id}").json()["state"] == "running"
    assert files_of(process, job_id) == []


def test_a_result_that_is_no_json_fails_at_once(api: httpx.Client, process: Process) -> None:
    job_id = submit(process, kinds.EMBED, TEXTS)

    run(process, Done(result={"embeddings": [[float("nan")]]}))

    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["attempt"]) == ("failed", 1)
    assert job["error"]["type"] == Permanent.__name__
    assert "number" in job["error"]["message"]


def test_what_is_recorded_beside_a_large_result_is_kept(
    api: httpx.Client, process: Process
) -> None:
    job_id = submit(process, kinds.EMBED, TEXTS)

    def record(session: Any) -> None:
        jobs.warn(session, job_id, ["cut off"])

    run(process, Done(result=["x" * 2000] * 1000, record=record))

    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["warnings"], job["result"]) == (["cut off"], None)
    assert len(api.get(job["result_url"]).json()) == 1000


@pytest.mark.parametrize("count", [3, 2000])
def test_the_errors_of_a_large_ingest_lie_in_the_storage(
    api: httpx.Client, process: Process, count: int
) -> None:
    job_id = submit(process, kinds.EMBED, TEXTS)

    def record(session: Any) -> None:
        jobs.set_total(session, job_id, count, "documents")
        ingest_items.add_all(session, job_id, [f"{n}.txt" for n in range(count)])
        ingest_items.settle(session, job_id, range(count), Outcome.FAILED, "what was wrong " * 50)

    run(process, Done(record=record), finish=ingest_items.result)

    job = api.get(f"/v1/jobs/{job_id}").json()
    assert job["state"] == "succeeded"
    assert (job["result_url"] is None) == (count == 3)
    result = api.get(f"/v1/jobs/{job_id}/result").json()
    assert result["documents"]["failed"] == len(result["errors"]) == count


def test_lists_carry_little_of_large_jobs(api: httpx.Client, process: Process) -> None:
    large = "word " * 100_000  # compresses well: its stored size is small
    by_input = submit(process, kinds.EMBED, TEXTS | {"texts": [large]})
    run(process, Done(result={"small": 1}))
    by_result = submit(process, kinds.EMBED, TEXTS)
    run(process, Done(result={"text": large[: process.settings.result_inline_bytes // 2]}))
    small = submit(process, kinds.EMBED, TEXTS)

    answer = api.get("/v1/jobs")

    assert len(answer.content) < 8000
    items_ = {item["id"]: item for item in answer.json()["items"]}
    assert (items_[str(small)]["input"], items_[str(small)]["truncated"]) == (TEXTS, [])
    assert items_[str(by_input)]["input"] is None
    assert items_[str(by_input)]["truncated"] == ["input"]
    assert items_[str(by_input)]["result"] == {"small": 1}
    assert items_[str(by_result)]["result"] is None
    assert items_[str(by_result)]["truncated"] == ["result"]
    assert api.get(f"/v1/jobs/{by_input}").json()["input"]["texts"] == [large]
    assert api.get(f"/v1/jobs/{by_result}").json()["result"]["text"].startswith("word ")


def test_lists_do_not_read_large_values(process: Process) -> None:
    submit(process, kinds.EMBED, TEXTS | {"texts": ["word " * 100_000]})

    with process.ledger.read() as session:
        page = jobs.page(session, jobs.Filter(), limit=10, before=None)
        for name in ("input", "result", "meta"):
            with pytest.raises(Exception, match=r"raiseload|not available"):
                getattr(page[0], name)
        contents = jobs.contents(session, [page[0].id], limit_bytes=4096)
    assert contents[page[0].id].input is None


def test_events_and_waiting_carry_no_very_large_input(api: httpx.Client, process: Process) -> None:
    job_id = submit(process, kinds.EMBED, TEXTS | {"texts": ["x" * 900_000] * 2})
    run(process, Done(result=1))

    with api.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
        data = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]

    assert len(data[-1]) < 4000
    end = json.loads(data[-1])
    assert (end["state"], end["input"], end["truncated"]) == ("succeeded", None, ["input"])
    assert len(api.post(f"/v1/jobs/{job_id}/cancel").content) < 4000


def test_an_attempt_that_lost_its_step_takes_its_result_back(process: Process) -> None:
    job_id = submit(process, kinds.EMBED, TEXTS)

    def lose(context: Context) -> Done:
        with process.ledger.begin() as session:
            session.execute(
                text("UPDATE steps SET attempt = attempt + 1 WHERE id = :id"),
                {"id": context.claim.step_id},
            )
        return Done(result=["x" * 2000] * 1000)

    assert run_next(process, {"embed": Handler(run=lose)}, Queue.EMBED.value)

    assert files_of(process, job_id) == []


def test_a_result_whose_file_is_gone_is_an_error(api: httpx.Client, process: Process) -> None:
    job_id = submit(process, kinds.EMBED, TEXTS)
    run(process, Done(result=["x" * 2000] * 1000))
    files_of(process, job_id)[0].unlink()

    problem(api.get(f"/v1/jobs/{job_id}/result"), 404)
