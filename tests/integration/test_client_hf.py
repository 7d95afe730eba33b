"""The Python client's calls about Hugging Face tasks, over real HTTP."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sluice import ApiError, Client, JobFailed, WaitTimeout
from tests.integration.fake_api import State, serving


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[str, State]]:
    state = State()
    with serving(state) as url:
        yield url, state


@pytest.fixture
def state(api: tuple[str, State]) -> State:
    """Of the API, as new."""
    vars(api[1]).update(vars(State()))
    return api[1]


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def client(api: tuple[str, State], notes: list[str]) -> Iterator[Client]:
    with Client(api[0], notify=notes.append) as client:
        yield client


def input_of(state: State) -> Any:
    [job] = state.jobs.values()
    return job["input"]


def test_the_output_is_that_of_the_api(client: Client, state: State) -> None:
    context = {"question": "Where?", "context": "It is Rome"}
    assert client.hf("question-answering", context) == {
        "score": 1.0, "start": 6, "end": 10, "answer": "Rome"
    }  # fmt: skip
    assert input_of(state) == {
        "task": "question-answering",
        "inputs": context,
        "backend": "local",
    }


def test_everything_is_passed_on(client: Client, state: State) -> None:
    output = client.hf(
        "translation",
        ["a", "b"],
        model="org/name",
        parameters={"src_lang": "en", "tgt_lang": "fr"},
        backend="hub",
    )
    assert output == [{"translation_text": "fr: A"}, {"translation_text": "fr: B"}]
    assert input_of(state) == {
        "task": "translation",
        "inputs": ["a", "b"],
        "model": "org/name",
        "parameters": {"src_lang": "en", "tgt_lang": "fr"},
        "backend": "hub",
    }


def test_files_and_bytes_are_uploaded_for_the_job(
    client: Client, state: State, tmp_path: Path
) -> None:
    path = tmp_path / "call.flac"
    path.write_bytes(b"fLaC")
    task = "automatic-speech-recognition"
    assert client.hf(task, b"12345") == {"text": "5 bytes"}
    assert client.hf(task, [path, b"123"]) == [{"text": "4 bytes"}, {"text": "3 bytes"}]
    assert not state.files
    assert state.count("POST", "/v1/files") == 3
    with pytest.raises(FileNotFoundError):
        client.hf(task, [path, tmp_path / "nowhere"])
    assert not state.files
    state.outcome = "failed"
    with pytest.raises(JobFailed):
        client.hf(task, path)
    assert len(state.files) == 1, "for when the job is redriven"


def test_warnings_and_large_results(client: Client, state: State, notes: list[str]) -> None:
    state.warnings, state.results_are_large = ["inputs was cut"], True
    assert client.hf("feature-extraction", "banana") == [3.0, 0.0, 0.0, 0.0, 0.0]
    assert notes == ["inputs was cut"]
    [job_id] = state.jobs
    job = client.job(job_id)
    assert (job.result, job.warnings) == (None, ["inputs was cut"])
    assert client.result(job) == [3.0, 0.0, 0.0, 0.0, 0.0]
    del state.large_results[job_id]
    with pytest.raises(ApiError, match="has no result"):
        client.result(job)


def test_large_results_of_other_kinds(client: Client, state: State) -> None:
    state.results_are_large = True
    assert client.embed(["a"]).dimension == 2
    assert client.search("handbook", "?")[0].score == 0.8125


def test_a_job_that_goes_on(client: Client, state: State) -> None:
    state.outcome = "running"
    with pytest.raises(WaitTimeout):
        client.hf("translation", "a", timeout_s=0.1)
