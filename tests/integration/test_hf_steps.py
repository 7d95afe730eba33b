"""Jobs of the kind `hf`, run by the worker's own step with real (tiny) models."""

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import huggingface_hub.constants
import pytest

from shared.config import Settings
from shared.kinds import registry as kinds
from shared.tables import Job
from shared.vocabulary import Queue, State
from tests.integration.job_runner import (
    cancel,
    drain,
    invariants_hold,
    job_of,
    make_process,
    steps_of,
    submit,
)
from tests.tiny import distilbert, gpt2, mlm, roberta_qa
from tests.tiny_models import one_thread
from workers.app import HF_QUEUES, handlers_of
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.hf.task import models_of

MODELS = {
    "tiny/sentiment": distilbert.folder,
    "tiny/blanks": mlm.folder,
    "tiny/writer": gpt2.folder,
    "tiny/reader": roberta_qa.folder,
}
TEXTS = list(distilbert.SENTIMENTS)
RIGHT = list(distilbert.SENTIMENTS.values())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, laid out as SLUICE_MODELS_FOLDER is."""
    root = tmp_path_factory.mktemp("models")
    (root / "tiny").mkdir()
    for name, folder in MODELS.items():
        shutil.copytree(folder(), root / name)
    return root


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def worker(process: Process, settings: Settings, models: Path) -> Iterator[Process]:
    mine = make_process(settings, "hf", models_folder=models)
    yield mine
    mine.close()
    invariants_hold(process, all_ended=True)


def ask(process: Process, inputs: Any, model: str = "tiny/sentiment", **fields: Any) -> UUID:
    named = {name: fields.pop(name) for name in ("task", "parameters") if name in fields}
    input_ = {
        "task": None, "model": model, "inputs": inputs, "parameters": {}, "backend": "local",
    }  # fmt: skip
    return submit(process, kinds.HF, input_ | named, **fields)


def work(process: Process) -> int:
    return drain(process, handlers_of(HF_QUEUES))


def ended(process: Process, job_id: UUID) -> Job:
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    return job


def error_of(process: Process, job_id: UUID) -> tuple[str, str]:
    job = job_of(process, job_id)
    assert (job.state, job.error is not None) == (State.FAILED, True), job.result
    error = job.error or {}
    return error["type"], error["message"]


def best(answer: Any) -> list[str]:
    return [labels[0]["label"] for labels in answer]


def test_one_text_and_many_of_one_job(worker: Process) -> None:
    one, many = ask(worker, TEXTS[0]), ask(worker, TEXTS)
    assert work(worker) == 1
    assert best(ended(worker, one).result) == RIGHT[:1]
    assert best(ended(worker, many).result) == RIGHT


def test_waiting_jobs_of_a_model_run_as_one_batch(worker: Process) -> None:
    ids = [ask(worker, text, fair_key=f"k{n}") for n, text in enumerate(TEXTS)]
    top = ask(worker, TEXTS[1], parameters={"top_k": 1})
    assert work(worker) == 1
    assert [best(ended(worker, job_id).result)[0] for job_id in ids] == RIGHT
    assert [[label["label"] for label in row] for row in ended(worker, top).result] == [
        ["NEGATIVE"]
    ]


def test_the_task_is_that_of_the_model(worker: Process) -> None:
    text = next(iter(mlm.FILLED))
    guessed = ask(worker, text, "tiny/blanks")
    named = ask(worker, text, "tiny/blanks", task="fill-mask")
    work(worker)
    assert ended(worker, guessed).result == ended(worker, named).result
    assert ended(worker, named).result[0]["token_str"] == mlm.FILLED[text][0]


def test_a_long_job_goes_on_step_by_step(worker: Process, settings: Settings, models: Path) -> None:
    """Each step does one batch here; what is done stays done, and what is left is run once."""
    hasty = make_process(
        settings, "hasty", models_folder=models, hf_step_s=1e-9, hf_batch_tokens=1,
        # Nothing is told of the progress in between.
        result_inline_bytes=100, step_heartbeat_s=300, step_lease_s=900,
    )  # fmt: skip
    try:
        job_id = ask(worker, TEXTS)
        assert work(hasty) == len(TEXTS)
        job = ended(worker, job_id)
        assert (job.result, job.progress_done) == (None, 0)
        assert best(json.loads(worker.storage.read(str(job.result_path)))) == RIGHT
        assert [step.state for step in steps_of(worker, job_id)] == ["succeeded"] * len(TEXTS)
    finally:
        hasty.close()


def test_an_input_of_many_windows_goes_on_between_them(
    worker: Process, settings: Settings, models: Path
) -> None:
    """What windows gave is kept from step to step; the answer is that of one go."""
    example = roberta_qa.LONG
    inputs = {"question": example.question, "context": example.context}
    hasty = make_process(settings, "hasty", models_folder=models, hf_step_s=1e-9, hf_batch_tokens=1)
    try:
        whole = ask(worker, inputs, "tiny/reader")
        work(worker)
        in_steps = ask(worker, inputs, "tiny/reader")
        assert work(hasty) > 2
        result, expected = ended(worker, in_steps).result, ended(worker, whole).result
        assert result == expected | {"score": pytest.approx(expected["score"], abs=1e-5)}
        assert expected["answer"] == example.answer
    finally:
        hasty.close()


def test_a_text_that_is_too_long_is_cut_and_said_to_be(worker: Process) -> None:
    long, short = ask(worker, ["fine", "film " * 20_000]), ask(worker, "fine")
    work(worker)
    (warning,) = ended(worker, long).warnings
    assert warning.startswith("inputs.1 was cut from 20,002 to 512 tokens"), warning
    assert ended(worker, short).warnings == []


@pytest.mark.parametrize(
    ("fields", "type_", "part"),
    [
        ({"inputs": ["good", ""]}, "InvalidInput", "inputs.1 is empty"),
        ({"inputs": "   "}, "InvalidInput", "inputs is empty"),
        ({"inputs": []}, "InvalidInput", "empty list"),
        ({"inputs": {"a": 1}}, "InvalidInput", "takes a text"),
        ({"inputs": "a", "parameters": {"topk": 1}}, "InvalidInput", "top_k"),
        ({"inputs": "a", "task": "summarization"}, "WrongTask", "text-classification"),
        ({"inputs": "a", "model": "no/where"}, "ModelNotFound", "no/where"),
        ({"inputs": "a", "model": "../../etc"}, "InvalidInput", "../../etc"),
        ({"inputs": "no mask", "model": "tiny/blanks"}, "InvalidInput", "[MASK]"),
    ],
)  # fmt: skip
def test_bad_input_fails_its_own_job_and_no_other(
    worker: Process, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], type_: str, part: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    bad, good = ask(worker, **fields), ask(worker, TEXTS[0])
    work(worker)
    error_type, message = error_of(worker, bad)
    assert (error_type, part in message) == (type_, True), message
    assert best(ended(worker, good).result) == RIGHT[:1]


def test_a_model_that_has_no_room_is_refused_before_it_is_loaded(
    worker: Process, tmp_path: Path
) -> None:
    huge = tmp_path / "huge"
    huge.mkdir()
    for path in distilbert.folder().iterdir():
        (huge / path.name).symlink_to(path)
    (huge / "model.safetensors").unlink()
    with (huge / "model.safetensors").open("wb") as weights:
        weights.truncate(5 * 2**30)  # sparse
    named = make_process(worker.settings, "named", models_extra_folders=(tmp_path,))
    try:
        job_id = ask(worker, "a", str(huge))
        work(named)
    finally:
        named.close()
    type_, message = error_of(worker, job_id)
    assert (type_, "SLUICE_HF_CACHE_MIB" in message) == ("Permanent", True)


def test_least_recently_used_models_make_room(
    worker: Process, settings: Settings, models: Path
) -> None:
    small = make_process(settings, "small", models_folder=models, hf_cache_mib=1)
    try:
        for _ in range(2):
            ids = [ask(worker, TEXTS[0]), ask(worker, "once", "tiny/writer")]
            work(small)
            for job_id in ids:
                ended(worker, job_id)
        assert len(models_of(small)) == 1
    finally:
        small.close()


def test_a_cancelled_job_ends_and_its_neighbours_go_on(worker: Process) -> None:
    ids = [ask(worker, TEXTS[n]) for n in range(3)]
    cancel(worker, ids[1])
    work(worker)
    assert [job_of(worker, job_id).state for job_id in ids] == [
        "succeeded",
        "cancelled",
        "succeeded",
    ]


def test_a_worker_without_the_queue_leaves_it(worker: Process) -> None:
    job_id = ask(worker, TEXTS[0])
    assert not run_next(worker, handlers_of(HF_QUEUES), Queue.EMBED.value)
    work(worker)
    ended(worker, job_id)


def test_base64_that_is_none(worker: Process) -> None:
    job_id = ask(worker, "%%%", task="automatic-speech-recognition", model="tiny/sentiment")
    other = ask(worker, base64.b64encode(b"x").decode(), task="automatic-speech-recognition")
    work(worker)
    for id_ in (job_id, other):
        assert error_of(worker, id_)[0] == "WrongTask"
