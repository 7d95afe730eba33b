"""A 4-bit model in a worker of its own, through the whole system: many jobs at once, killed once.

The model is a tiny Llama trained for these tests (`tests/tiny_models.py`), so what it answers can
be checked to the letter. It runs in NF4, on the CPU.
"""

import json
import random
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sluice import Client, State
from tests.e2e.generators import GenerationWorker
from tests.e2e.processes import until
from tests.e2e.scripted_model import ScriptedModel
from tests.e2e.stack import LiveStack
from tests.tiny_lessons import GROUNDED, TOOL_ANSWER, TOOL_QUESTION, TOOL_RESULT
from tests.tiny_models import Answerer

JOBS = 200
PASSES_OF_SOME = 100
"""Of the model, by which some of the jobs are done and most are not."""
DEVICE_BROKEN = 70
"""The exit code of a worker that cannot go on (`docs/generation.md`)."""
SETTINGS = {
    "SLUICE_GENERATION_PRECISION": "nf4",
    "SLUICE_GENERATION_THREADS": "1",
    "SLUICE_GENERATION_BATCH_REQUESTS": "16",
    "SLUICE_GENERATE_CONCURRENCY": "32",
    "SLUICE_GENERATION_KV_MIB": "64",
    "SLUICE_STEP_LEASE_S": "3",
    "SLUICE_RETRY_BASE_S": "0.2",
    "SLUICE_GENERATION_TRUST_REMOTE_CODE": "true",
}


@pytest.fixture(scope="module")
def model(answerer: Answerer) -> Iterator[ScriptedModel]:
    with tempfile.TemporaryDirectory(prefix="sluice-model-") as folder:
        yield ScriptedModel(answerer.path, Path(folder))


@pytest.fixture(scope="module")
def worker(live_stack: LiveStack, model: ScriptedModel) -> Iterator[GenerationWorker]:
    with tempfile.TemporaryDirectory(prefix="sluice-worker-") as folder:
        worker = GenerationWorker(
            live_stack, model.reference, "tiny-1", Path(folder) / "log", **SETTINGS
        )
        worker.until_ready()
        yield worker
        code = worker.stop()
        assert code == 0, f"{code}\n{worker.log_tail()}"


@pytest.fixture(autouse=True)
def _released(model: ScriptedModel) -> Iterator[None]:
    yield
    model.release()


def ask(model: ScriptedModel, question: str) -> dict[str, Any]:
    """The input of a chat."""
    return {
        "model": model.reference,
        "messages": [{"role": "user", "content": question}],
        "parameters": {"max_tokens": 300},
    }


@dataclass
class Read:
    """What one reader of a job's stream has received, over all its connections."""

    text: str = ""
    offsets: dict[int, int] = field(default_factory=dict)
    last_id: str | None = None
    ended: bool = False

    def take(self, id_: str, event: str, data: dict[str, Any]) -> None:
        self.last_id = id_
        if event == "token":
            # The next character, neither one before nor one behind.
            assert data["offset"] == self.offsets.get(data["step"], 0), (data, self)
            self.offsets[data["step"]] = data["offset"] + len(data["text"])
            self.text += data["text"]
        self.ended = event == "end"


def follow(stack: LiveStack, job_id: str, read: Read, *, leave_after: int | None = None) -> None:
    """Read the job's stream to its end, or leave after so many tokens."""
    headers = {"Last-Event-ID": read.last_id} if read.last_id else {}
    tokens, fields = 0, {}
    with (
        stack.http() as http,
        http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as stream,
    ):
        for line in stream.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields.get("event"):
                read.take(fields["id"], fields["event"], json.loads(fields["data"]))
                tokens += fields["event"] == "token"
                fields = {}
                if read.ended or (leave_after is not None and tokens >= leave_after):
                    return


@pytest.mark.usefixtures("worker")
def test_every_question_is_answered_right_by_the_model_in_four_bits(
    client: Client, model: ScriptedModel, answerer: Answerer
) -> None:
    jobs = {
        question: client.submit_untyped("chat", ask(model, question))
        for question in answerer.questions
    }
    for question, job in jobs.items():
        ended = client.wait(job.id).require_success()
        assert (ended.result or {})["message"]["content"] == answerer.questions[question]
        assert (ended.result or {})["finish_reason"] == "stop"


@pytest.mark.usefixtures("worker")
def test_passages_are_cited_and_an_agent_computes(client: Client, model: ScriptedModel) -> None:
    notes = {f"note {n}.txt": f"The museum, room {n}: quiet, and open to all." for n in range(3)}
    client.ingest("museum", texts=notes)
    question, answer = next(iter(GROUNDED.items()))
    input_ = {"collection": "museum", "question": question, "model": model.reference, "k": 3}
    result = client.wait(client.submit_untyped("rag", input_).id).require_success().result or {}
    assert result["answer"] == answer
    assert [citation["marker"] for citation in result["citations"]] == ["[1]"]
    assert result["citations"][0]["source"] in notes

    tools = [{"type": "calculator"}]
    agent = client.submit_untyped("chat", ask(model, TOOL_QUESTION) | {"tools": tools})
    done = client.wait(agent.id).require_success().result or {}
    assert done["message"]["content"] == TOOL_ANSWER
    assert done["turns"] == 2
    assert done["steps"][1]["content"] == TOOL_RESULT


def test_two_hundred_jobs_end_right_though_their_worker_is_killed(
    stack: LiveStack,
    client: Client,
    worker: GenerationWorker,
    model: ScriptedModel,
    answerer: Answerer,
) -> None:
    """Mixed lengths and streams that are left and resumed; some cancelled, some out of time."""
    random_ = random.Random(7)
    questions = list(answerer.questions)
    longest = max(questions, key=lambda question: len(answerer.questions[question]))
    chosen = [random_.choice(questions) for _ in range(JOBS)]
    hasty = set(random_.sample(range(JOBS), 12))  # their time is up before they are begun
    chosen = [longest if n in hasty else question for n, question in enumerate(chosen)]
    bodies = [
        {"kind": "chat", "input": ask(model, question)}
        | ({"timeout_s": 0.001} if n in hasty else {})
        for n, question in enumerate(chosen)
    ]
    model.hold(PASSES_OF_SOME)
    with stack.http() as http:
        ids = http.post("/v1/jobs/batch", json={"jobs": bodies}).raise_for_status().json()["ids"]
    unwanted = set(random_.sample(sorted(set(range(JOBS)) - hasty), 20))
    watched = random_.sample(sorted(set(range(JOBS)) - hasty - unwanted), 12)
    reads = {n: Read() for n in watched}

    def watch(n: int) -> None:
        follow(stack, ids[n], reads[n], leave_after=3)
        while not reads[n].ended:
            follow(stack, ids[n], reads[n])

    with ThreadPoolExecutor(len(watched)) as pool:
        watching = [pool.submit(watch, n) for n in watched]
        model.until_held()
        for n in unwanted:
            with stack.http() as http:
                http.post(f"/v1/jobs/{ids[n]}/cancel").raise_for_status()
        begun = (
            "SELECT count(*) FROM transcripts t JOIN steps s ON s.id = t.step_id "
            "WHERE s.state = 'running' AND s.job_id = ANY(%s::uuid[])"
        )
        until(lambda: stack.value(begun, ids), "texts are under way")
        worker.kill()
        heirs = stack.sql(
            "SELECT s.job_id::text, t.shown FROM transcripts t JOIN steps s ON s.id = t.step_id "
            "WHERE s.state = 'running' AND s.job_id = ANY(%s::uuid[])",
            ids,
        )
        model.release()
        worker.start()
        for future in watching:
            future.result(timeout=240)

    expected = {id_: answerer.questions[chosen[n]] for n, id_ in enumerate(ids)}
    for n, id_ in enumerate(ids):
        job = client.wait(id_)
        if n in hasty:
            assert job.state is State.FAILED
            assert job.error is not None
            assert job.error.type == "Timeout"
        elif n in unwanted and job.state is State.CANCELLED:
            pass  # or it had ended before
        else:
            assert job.state is State.SUCCEEDED, job.error
            assert (job.result or {})["message"]["content"] == expected[id_]
    for n, read in reads.items():
        assert read.text == expected[ids[n]]
    assert heirs
    for id_, shown in heirs:
        assert expected[id_].startswith(shown)


def test_a_stream_goes_on_where_a_killed_worker_stopped(
    stack: LiveStack,
    client: Client,
    worker: GenerationWorker,
    model: ScriptedModel,
    answerer: Answerer,
) -> None:
    longest = max(answerer.questions, key=lambda question: len(answerer.questions[question]))
    model.hold(12)
    job_id = client.submit_untyped("chat", ask(model, longest)).id
    model.until_held()
    texts = (
        "SELECT t.shown FROM transcripts t JOIN steps s ON s.id = t.step_id "
        "WHERE s.state = 'running' AND s.job_id = %s AND t.shown <> ''"
    )
    until(lambda: stack.sql(texts, job_id), "text is shown")
    worker.freeze()  # nothing is written any more
    shown = stack.value(texts, job_id)
    read = Read()
    follow(stack, job_id, read, leave_after=1)
    assert read.text
    assert shown.startswith(read.text)
    worker.kill()
    model.release()
    worker.start()
    while not read.ended:
        follow(stack, job_id, read)

    assert read.text == answerer.questions[longest]
    ended = client.wait(job_id).require_success()
    assert ended.attempt == 2
    assert (ended.result or {})["message"]["content"] == answerer.questions[longest]
    worker.until_ready()


def test_a_worker_whose_device_breaks_hands_its_jobs_back_and_ends(
    stack: LiveStack, client: Client, answerer: Answerer, tmp_path: Path
) -> None:
    model = ScriptedModel(answerer.path, tmp_path)
    model.break_down()
    breaking = GenerationWorker(stack, model.reference, "breaking", tmp_path / "log", **SETTINGS)
    breaking.until_ready()
    questions = sorted(answerer.questions, key=lambda text: len(answerer.questions[text]))[-3:]
    jobs = {question: client.submit_untyped("chat", ask(model, question)) for question in questions}
    assert breaking.wait() == DEVICE_BROKEN, breaking.log_tail()
    assert all(client.job(job.id).state is not State.FAILED for job in jobs.values())
    assert stack.sql("SELECT name FROM workers WHERE name = 'breaking'") == []

    model.mend()
    breaking.start()
    for question, job in jobs.items():
        ended = client.wait(job.id).require_success()
        assert (ended.result or {})["message"]["content"] == answerer.questions[question]
    assert breaking.stop() == 0
