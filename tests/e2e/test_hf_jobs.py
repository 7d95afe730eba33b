"""Hugging Face tasks as jobs: many at once, workers lost, cancelled, bad input; by API and CLI."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from sluice import Client, State
from tests.e2e import tasks
from tests.e2e.processes import until
from tests.e2e.stack import LiveStack
from tests.tiny import distilbert
from tests.tiny.zoo import place

JOBS = 500
KNOWN = {str(example.task): example for example in tasks.EXAMPLES}


@pytest.fixture(scope="module", autouse=True)
def _models(live_stack: LiveStack) -> None:
    place(live_stack.home / "models")


def test_mixed_jobs_at_once_all_come_out_right_though_workers_die(
    stack: LiveStack, client: Client
) -> None:
    names = [list(KNOWN)[n % len(KNOWN)] for n in range(JOBS)]
    jobs = [
        {
            "kind": "hf",
            "input": {
                "task": name,
                "inputs": KNOWN[name].inputs,
                "parameters": KNOWN[name].parameters or {},
            },
        }
        for name in names
    ]
    with stack.http() as http:
        ids = http.post("/v1/jobs/batch", json={"jobs": jobs}).raise_for_status().json()["ids"]
    until(lambda: stack.value(DONE, ids) >= 20, "some are done")
    stack.kill_pool()
    until(lambda: stack.value(DONE, ids) >= JOBS, "all are done", 180)
    for job_id, name in zip(ids, names, strict=True):
        job = client.job(job_id)
        assert job.state is State.SUCCEEDED, job.error
        assert KNOWN[name].is_right(job.result), (name, job.result)
    # They ran together: fewer claims than jobs would be seen in the workers' times alone.
    together = stack.value(
        "SELECT max(n) FROM (SELECT count(*) AS n FROM steps WHERE job_id = ANY(%s::uuid[]) "
        "GROUP BY started_at) s",
        ids,
    )
    assert together > 5


DONE = "SELECT count(*) FROM jobs WHERE id = ANY(%s::uuid[]) AND finished_at IS NOT NULL"


def test_a_cancelled_job_stops_in_the_middle(client: Client, stack: LiveStack) -> None:
    job = client.submit(
        "hf",
        {
            "task": "text-generation",
            "inputs": ["Once upon a time"] * 3000,
            "parameters": {"max_new_tokens": 500, "do_sample": True, "seed": 1},
        },
    )
    until(lambda: client.job(job.id).state is State.RUNNING, "it runs")
    client.cancel(job.id)
    ended = client.wait(job.id)
    assert ended.state is State.CANCELLED
    assert ended.progress is not None
    assert ended.progress.done < 3000
    assert stack.running_steps(job.id) == 0


def corrupt_audio() -> bytes:
    return tasks.sound()[:200] + b"\0" * 50


def silence(samples: int) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, np.zeros(samples, np.float32), 16_000, format="WAV")
    return out.getvalue()


class Trap:
    """What a checkpoint with code in its pickle does when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_bad_input_is_explained_and_the_worker_lives_on(
    stack: LiveStack, client: Client, tmp_path: Path
) -> None:
    before = {process.pid for process in stack.pool()}
    trap = stack.home / "models" / "evil" / "model"
    trap.mkdir(parents=True)
    for path in distilbert.folder().iterdir():
        if path.suffix == ".json":
            (trap / path.name).write_bytes(path.read_bytes())
    torch.save({"weight": Trap(tmp_path / "sprung")}, trap / "pytorch_model.bin")
    speech = {"model": "facebook/wav2vec2-base-960h"}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"model": "evil/model", "inputs": "a"}, "code"),
        ({"model": "facebook/bart-large-cnn", "task": "fill-mask", "inputs": "a"}, "summarization"),
        ({"model": "google-bert/bert-base-uncased", "inputs": "no mask here"}, "[MASK]"),
        ({**speech, "inputs": "bm90IGF1ZGlv"}, "FLAC, WAV, MP3 or OGG"),
        ({**speech, "inputs": {"file_id": upload(client, corrupt_audio())}}, "audio"),
        ({**speech, "inputs": {"file_id": upload(client, silence(0))}}, "length is zero"),
        ({"model": "nobody/nothing", "inputs": "a"}, "nobody/nothing"),
    ]
    for input_, words in wrong:
        ended = client.wait(client.submit_untyped("hf", input_).id)
        assert (ended.state, ended.error is not None) == (State.FAILED, True), ended.result
        assert words in (ended.error.message if ended.error else ""), ended.error
    assert not (tmp_path / "sprung").exists()

    input_ = {"task": "summarization", "inputs": "word " * 20_000}
    long = client.wait(client.submit_untyped("hf", input_).id)
    assert long.state is State.SUCCEEDED, long.error
    assert "cut from" in long.warnings[0]
    input_ = {"task": "text-classification", "inputs": tasks.FELT}
    fine = client.wait(client.submit_untyped("hf", input_).id)
    assert fine.state is State.SUCCEEDED
    assert {process.pid for process in stack.pool()} == before


def upload(client: Client, data: bytes) -> str:
    return client.upload(data, name="sound").id


def test_the_command_line_runs_tasks(stack: LiveStack, tmp_path: Path) -> None:
    sound = tmp_path / "words.flac"
    sound.write_bytes(tasks.sound())
    heard = stack.sluice_json("hf", "automatic-speech-recognition", str(sound))
    assert heard == {"text": tasks.SPOKEN}
    done = stack.sluice("hf", "summarization", tasks.SUMMARIZED)
    assert done.code == 0, done.err
    summary = KNOWN["summarization"]
    assert summary.is_right([{"summary_text": " ".join(done.out.split())}])
    missing = stack.sluice("hf", "text-classification", "a", "--model", "nobody/nothing")
    assert missing.code != 0
    assert "nobody/nothing" in missing.err
