"""What a job waits for is told, wherever somebody waits; and an API that answers is not away."""

import threading
from pathlib import Path

import pytest

from cli.main import run
from sluice import ApiError, Client, Retries, WaitTimeout, events
from tests.integration.cli_process import document
from tests.integration.fake_api import State
from tests.integration.terminal import on_terminal

PAUSED = "The queue generate is paused; `sluice queues resume generate` lets it go on."
AWAY = "Ollama at http://127.0.0.1:11434 does not answer."
QUICK = Retries(connect_for_s=5.0, retry_for_s=60.0, busy_for_s=1.0, base_s=0.001, cap_s=0.002)
PROBLEM = "application/problem+json"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def state() -> State:
    """Jobs run until somebody has seen three times what they wait for."""
    return State(outcome="running", reasons=[PAUSED, AWAY, AWAY])


@pytest.fixture(autouse=True)
def quick_start(cli_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question why a job waits comes at once; and there is a file to ingest."""
    monkeypatch.setattr(events, "FIRST_PAUSE_S", 0.02)
    (cli_folder / "a.md").write_text("# a")


@pytest.mark.parametrize(
    "command",
    [
        "ask ? -c handbook",
        "ask ? -c handbook --json",
        "ask ? -c handbook --stream",
        "search ? -c handbook",
        "chat hello",
        "chat hello --json",
        "ingest a.md -c handbook",
        "ingest a.md -c handbook --json",
        "hf summarization text",
        "hf summarization text --json",
        "models pull llama3.2",
        "models pull llama3.2 --json",
        "models create mine --from llama3.2",
        "models delete llama3.2 --yes",
        "collections delete handbook --yes",
    ],
)
def test_a_pipe_gets_a_line_for_each_reason(command: str, state: State, capsys: Captured) -> None:
    state.collections.add("handbook")
    assert run(command.split()) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Waiting:")]
    assert lines == [f"Waiting: {PAUSED}", f"Waiting: {AWAY}"]


def test_watch_tells_each_reason_and_show_the_last(state: State, capsys: Captured) -> None:
    run(["ingest", "a.md", "-c", "handbook", "--no-wait"])
    [job_id] = state.jobs
    assert run(["jobs", "show", job_id]) == 0
    assert f"\nwaiting\t{PAUSED}\n" in capsys.readouterr().out
    state.reasons = [PAUSED, AWAY, AWAY]
    assert run(["jobs", "watch", job_id]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Waiting:")]
    assert lines == [f"Waiting: {PAUSED}", f"Waiting: {AWAY}"]


@pytest.mark.parametrize("command", [("ask", "?", "-c", "handbook"), ("chat", "hi")])
def test_a_terminal_shows_the_reason_beside_the_spinner(command: tuple[str, ...]) -> None:
    with on_terminal(*command, columns=200) as terminal:
        terminal.expect(f"… waiting: {PAUSED}")
        terminal.expect(f"… waiting: {AWAY}")
        assert terminal.end() == 0


@pytest.mark.parametrize(
    "command", [("ingest", "a.md", "-c", "handbook"), ("models", "pull", "llama3.2")]
)
def test_a_terminal_shows_the_reason_above_the_bars(command: tuple[str, ...]) -> None:
    with on_terminal(*command, columns=200) as terminal:
        terminal.expect(f"Waiting: {PAUSED}")
        terminal.expect(f"Waiting: {AWAY}")
        assert terminal.end() == 0


def test_a_reason_is_said_once_however_its_times_go_on(state: State, capsys: Captured) -> None:
    again = f"{AWAY} The next attempt begins"
    state.reasons = [
        f"{again} in 3 s.", f"{again} in 1 s.", f"{again} as soon as a worker is free.", None,
        f"{again} in 60 s.", PAUSED, PAUSED,
    ]  # fmt: skip
    assert run(["hf", "summarization", "text"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Waiting:")]
    assert lines == [f"Waiting: {again} in 3 s.", f"Waiting: {PAUSED}"]


def test_a_program_that_wants_no_news_asks_no_questions(url: str, state: State) -> None:
    state.reasons = []
    with Client(url) as client:
        job = client.submit("embed", {"texts": ["a"]})
        with pytest.raises(WaitTimeout):
            client.wait(job.id, timeout_s=0.05)
    # Once, by the one that waits, when its stream has ended.
    assert state.count("GET", f"/v1/jobs/{job.id}") == 1


def test_a_program_hears_reasons_and_when_there_is_none_any_more(url: str, state: State) -> None:
    state.reasons = [PAUSED, None, None]
    reasons: list[str | None] = []
    both = threading.Event()
    with Client(url) as client:
        job = client.submit("embed", {"texts": ["a"]})

        def tell(reason: str | None) -> None:
            reasons.append(reason)
            if len(reasons) == 2:
                both.set()

        client.wait(job.id, on_waiting=tell)
    assert both.wait(30)
    assert reasons == [PAUSED, None]


def test_warnings_of_every_kind_are_shown(state: State, capsys: Captured) -> None:
    state.reasons, state.outcome = [], "succeeded"
    state.warnings = ["texts[0] was cut from 900 to 256 tokens."]
    for command in ("ask ? -c handbook", "search ? -c handbook", "chat hi", "ingest a.md -c books"):
        assert run(command.split()) == 0
        assert "Warning: texts[0] was cut from 900 to 256 tokens." in capsys.readouterr().err
        assert run([*command.split(), "--json"]) == 0
        out, err = capsys.readouterr()
        assert "cut from 900" in (out if not command.startswith("chat") else err)


def test_json_answers_name_their_job(state: State, capsys: Captured) -> None:
    state.reasons, state.outcome = [], "succeeded"
    for command in ("ask ? -c handbook", "search ? -c handbook", "chat hi"):
        assert run([*command.split(), "--json"]) == 0
        assert document(capsys)["job_id"] == list(state.jobs)[-1]


# An API that answers, and one that does not


@pytest.mark.parametrize("status", [502, 503, 504])
@pytest.mark.parametrize("retry_after", [None, "60"])
def test_a_problem_is_an_answer(
    url: str, state: State, status: int, retry_after: str | None, capsys: Captured
) -> None:
    state.problems = [(status, retry_after, PROBLEM)]
    notes: list[str] = []
    with Client(url, notify=notes.append) as client, pytest.raises(ApiError) as caught:
        client.queues()
    assert caught.value.status == status
    assert caught.value.message == "Ollama does not answer."
    assert notes == []
    assert state.count("GET", "/v1/queues") == 1
    state.problems = [(status, retry_after, PROBLEM)]
    assert run(["queues"]) == 3
    assert capsys.readouterr().err == "sluice: Ollama does not answer.\n"


def test_a_problem_that_passes_soon_is_waited_for_in_its_own_words(url: str, state: State) -> None:
    state.problems = [(503, "0", f"{PROBLEM}; charset=utf-8")] * 6
    notes: list[str] = []
    with Client(url, notify=notes.append, retries=QUICK) as client:
        client.workers()
        assert client.queues()[0].name == "ingest"
    assert notes == ["Ollama does not answer; trying again for up to 60 s."]
    assert state.count("GET", "/v1/queues") == 7


def test_a_gateway_is_not_the_api(url: str, state: State) -> None:
    state.problems = [(503, None, "text/html")] * 6
    notes: list[str] = []
    with Client(url, notify=notes.append, retries=QUICK) as client:
        client.workers()
        assert client.queues()[0].name == "ingest"
    assert notes == [f"The API at {url} does not answer; trying again for up to 60 s."]
