"""`sluice hf` against a real HTTP server: inputs, uploads, warnings, exit codes, a terminal."""

import io
from pathlib import Path
from typing import Any

import pytest

from cli.main import run
from tests.integration.cli_process import document
from tests.integration.fake_api import State
from tests.integration.hf_cli import FLAC
from tests.integration.hf_cli import api as api
from tests.integration.hf_cli import state as state
from tests.integration.terminal import CTRL_C, on_terminal

Captured = pytest.CaptureFixture[str]


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))


def last_input(state: State) -> Any:
    """The input of the last job."""
    job = list(state.jobs.values())[-1]
    assert (job["kind"], job["lane"]) == ("hf", "interactive")
    return job["input"]


def test_json_is_the_output_of_the_api(state: State, capsys: Captured) -> None:
    assert run(["hf", "text-classification", "good", "--json"]) == 0
    labels = [{"label": "POSITIVE", "score": 0.75}, {"label": "NEGATIVE", "score": 0.25}]
    assert document(capsys) == [labels]
    assert run(["hf", "text-classification", "good", "bad", "--json"]) == 0
    assert document(capsys)[0] == labels
    assert last_input(state) == {
        "task": "text-classification",
        "inputs": ["good", "bad"],
        "backend": "local",
    }


def test_everything_is_passed_on(state: State) -> None:
    options = ["--model", "org/name", "--backend", "hub", "-p", "seed=1", "-p", "stop=END"]
    assert run(["hf", "text-generation", "go", *options, "-p", 'generate={"a": [null]}']) == 0
    assert last_input(state) == {
        "task": "text-generation",
        "inputs": "go",
        "model": "org/name",
        "backend": "hub",
        "parameters": {"seed": 1, "stop": "END", "generate": {"a": [None]}},
    }


def test_standard_input(state: State, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    for args in (["-"], []):
        stdin(monkeypatch, "하나 둘 셋 넷\n".encode())
        assert run(["hf", "summarization", *args]) == 0
        assert capsys.readouterr().out == "하나 둘 셋\n"
        assert last_input(state)["inputs"] == "하나 둘 셋 넷"
    stdin(monkeypatch, b"one\n\ntwo\n")
    assert run(["hf", "translation", "-", "--lines"]) == 0
    assert last_input(state)["inputs"] == ["one", "two"]
    stdin(monkeypatch, b"It is Rome")
    assert run(["hf", "question-answering", "Where?", "--context", "-", "--json"]) == 0
    assert last_input(state)["inputs"] == {"question": "Where?", "context": "It is Rome"}
    stdin(monkeypatch, FLAC)
    assert run(["hf", "automatic-speech-recognition", "-"]) == 0
    assert list(last_input(state)["inputs"]) == ["file_id"]


def test_one_line_of_a_file_is_still_a_list(state: State) -> None:
    Path("one.txt").write_text("only\n")
    assert run(["hf", "translation", "--lines", "one.txt", "--json"]) == 0
    assert last_input(state)["inputs"] == ["only"]


def test_uploads_are_deleted_when_the_job_has_succeeded(state: State) -> None:
    args = ["hf", "automatic-speech-recognition", "call.flac", "call.flac"]
    assert run(args) == 0
    assert len({file["file_id"] for file in last_input(state)["inputs"]}) == 2
    assert not state.files
    state.outcome = "failed"
    assert run(args) == 1
    assert {file["name"] for file in state.files.values()} == {"call.flac"}


def test_uploads_that_are_refused_leave_nothing(state: State, capsys: Captured) -> None:
    Path("long.flac").write_bytes(bytes(5000))
    assert run(["hf", "image-classification", "call.flac", "long.flac"]) == 5
    assert "larger than the server accepts" in capsys.readouterr().err
    assert not state.files
    assert not state.jobs


def test_warnings_of_the_job_go_to_stderr(state: State, capsys: Captured) -> None:
    state.warnings = ["inputs was cut from 30,112 to 512 tokens."]
    for options in ([], ["--json"]):
        assert run(["hf", "text-classification", "good", *options]) == 0
        out, err = capsys.readouterr()
        assert err == "Warning: inputs was cut from 30,112 to 512 tokens.\n"
        assert "POSITIVE" in out
    assert run(["jobs", "show", next(iter(state.jobs))]) == 0
    assert "warning\tinputs was cut from 30,112 to 512 tokens." in capsys.readouterr().out


def test_large_results_are_fetched(state: State, capsys: Captured) -> None:
    state.results_are_large = True
    assert run(["hf", "feature-extraction", "banana", "--json"]) == 0
    assert document(capsys) == [3.0, 0.0, 0.0, 0.0, 0.0]
    [job_id] = state.jobs
    assert run(["jobs", "result", job_id]) == 0
    assert document(capsys) == [3.0, 0.0, 0.0, 0.0, 0.0]
    assert run(["jobs", "show", job_id]) == 0
    assert f"`sluice jobs result {job_id}` fetches it" in capsys.readouterr().out


def test_results_that_are_lists_are_shown_by_jobs(state: State, capsys: Captured) -> None:
    assert run(["hf", "translation", "a"]) == 0
    [job_id] = state.jobs
    capsys.readouterr()
    assert run(["jobs", "show", job_id]) == 0
    assert 'result\t[{"translation_text": "A"}]' in capsys.readouterr().out
    assert run(["jobs", "result", job_id]) == 0
    assert document(capsys) == [{"translation_text": "A"}]
    state.jobs[job_id] |= {"state": "running", "result": None}
    assert run(["jobs", "result", job_id]) == 2
    assert f"`sluice jobs watch {job_id}` waits" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense", "x"], "'nonsense' is none of: summarization, question-answering,"),
        (["summarization", ""], "An INPUT is empty"),
        (["summarization", "empty.txt"], "empty.txt holds no text"),
        (["summarization", "call.raw"], "call.raw is no UTF-8 text"),
        (["summarization", "-", "-"], "give - once"),
        (["summarization", "a", "--context", "b"], "summarization takes none"),
        (["question-answering", "who?"], "--context"),
        (["summarization", "a", "--sentence", "b"], "summarization has none"),
        (["text-ranking", "a"], "give at least two"),
        (["zero-shot-classification", "a"], "--labels A,B"),
        (["summarization", "a", "--labels", "b"], "--labels is for zero-shot-classification"),
        (["image-classification", "cat.png"], "There is no file cat.png"),
        (["image-classification", "call.flac", "--lines"], "--lines is for texts"),
        (["fill-mask", "a", "-p", "top_k"], "'top_k' does not read NAME=VALUE"),
    ],
)
def test_what_cannot_be_is_reported_before_any_job(
    state: State, args: list[str], says: str, capsys: Captured
) -> None:
    Path("empty.txt").write_text("\n")
    Path("call.raw").write_bytes(b"\xff\xfe\xff")
    assert run(["hf", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in " ".join(err.split())
    assert not state.jobs
    assert not state.files


def test_a_name_of_no_file_is_a_text_and_it_is_said(capsys: Captured) -> None:
    assert run(["hf", "translation", "reprot.txt"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (
        "REPROT.TXT\n", "There is no file reprot.txt; it is taken as a text.\n"
    )  # fmt: skip
    assert run(["hf", "translation", "x" * 5000]) == 0
    assert capsys.readouterr().out == "X" * 5000 + "\n"


@pytest.mark.parametrize(("outcome", "code"), [("failed", 1), ("cancelled", 6), ("running", 7)])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_exit_code_tells_how_the_job_ended(
    state: State, capsys: Captured, outcome: str, code: int, options: list[str]
) -> None:
    state.outcome = outcome
    assert run(["hf", "translation", "a", "--timeout", "0.2", *options]) == code
    assert capsys.readouterr().out == ""


def test_on_a_terminal_many_inputs_are_kept_apart_and_progress_is_shown(state: State) -> None:
    half = {"event": "progress", "done": 1, "total": 2, "unit": "inputs"}
    state.script = [half, {**half, "done": 2}]
    with on_terminal("hf", "summarization", "a b c d", "report.txt") as terminal:
        terminal.expect("Running")
        terminal.expect("2/2 inputs")
        terminal.expect("a b c d")
        terminal.expect("  a b c")
        terminal.expect("report.txt")
        terminal.expect("  Ann is here")
        assert terminal.end() == 0


def test_ctrl_c_cancels_the_job(state: State) -> None:
    state.outcome = "running"
    state.waiting_for = "a worker"
    with on_terminal("hf", "translation", "a") as terminal:
        terminal.expect("Waiting: a worker")
        terminal.type_until(CTRL_C, "Interrupted.")
        assert terminal.end() == 130
    [job] = state.jobs.values()
    assert job["state"] == "cancelled"
