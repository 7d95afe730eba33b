"""The bare result of a job: from its row, or from the storage where it is large."""

from typing import Any
from uuid import UUID

import httpx
import pytest

from shared.jobs import jobs
from shared.kinds import registry as kinds
from shared.vocabulary import Queue
from tests.integration.answers import problem
from tests.integration.job_runner import cancel, claimed, submit
from workers.attempts.context import Context, Handler, encode_result
from workers.attempts.process import Process
from workers.attempts.runner import run
from workers.hf.steps import of_answer


def ask(process: Process) -> UUID:
    input_: dict[str, Any] = {
        "task": None, "model": "a/b", "inputs": "x", "parameters": {}, "backend": "local",
    }  # fmt: skip
    return submit(process, kinds.HF, input_)


def end(process: Process, answer: object, *warnings: str) -> None:
    handler = Handler(run=lambda _: of_answer(answer, warnings=warnings))
    run(process, {"hf.run": handler}, claimed(process, Queue.HF))


@pytest.mark.parametrize("answer", [[], 0.5, {"text": "안녕"}, [[{"label": "A", "score": 1.0}]]])
def test_a_small_one_is_in_the_job_and_bare(
    api: httpx.Client, process: Process, answer: object
) -> None:
    job_id = ask(process)
    end(process, answer, "inputs was cut", "inputs was cut", "another")
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["result"], job["result_url"]) == (answer, None)
    assert job["warnings"] == ["inputs was cut", "another"]
    bare = api.get(f"/v1/jobs/{job_id}/result")
    assert (bare.status_code, bare.json()) == (200, answer)
    assert bare.headers["content-type"] == "application/json"


def test_a_large_one_is_streamed_from_the_storage(api: httpx.Client, process: Process) -> None:
    job_id = ask(process)
    answer = [[n + 0.5] * 100 for n in range(4000)]
    end(process, answer)
    job = api.get(f"/v1/jobs/{job_id}").json()
    assert (job["state"], job["result"]) == ("succeeded", None)
    assert job["result_url"] == f"/v1/jobs/{job_id}/result"
    bare = api.get(job["result_url"])
    assert bare.json() == answer
    assert int(bare.headers["content-length"]) == len(bare.content)
    assert len(bare.content) > process.settings.result_inline_bytes


def test_there_is_none_before_the_end(api: httpx.Client, process: Process) -> None:
    job_id = ask(process)
    problem(api.get(f"/v1/jobs/{job_id}/result"), 409)
    problem(api.get(f"/v1/jobs/{UUID(int=0)}/result"), 404)


def test_an_attempt_that_lost_its_step_leaves_nothing(process: Process) -> None:
    job_id = ask(process)
    context = Context(process, claimed(process, Queue.HF))
    encode_result(context, of_answer(["x" * process.settings.result_inline_bytes]))
    path = f"{jobs.result_folder(job_id)}/{context.claim.step_id}-{context.claim.attempt}.json"
    assert process.storage.read(path)
    for tidy in context.on_lost:
        tidy()
    assert not (process.settings.home_path / "files" / path).exists()


def test_a_redrive_forgets_what_was_noted(api: httpx.Client, process: Process) -> None:
    job_id = ask(process)
    with process.ledger.begin() as session:
        jobs.note_result_file(session, job_id, path="results/x", size_bytes=1)
        jobs.warn(session, job_id, ["w"])
    cancel(process, job_id)
    assert api.get(f"/v1/jobs/{job_id}").json()["warnings"] == ["w"]
    again = api.post(f"/v1/jobs/{job_id}/retry").json()
    assert (again["state"], again["warnings"], again["result_url"]) == ("queued", [], None)
