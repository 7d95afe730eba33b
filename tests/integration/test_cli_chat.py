"""`sluice chat` and `ask` that stream, and conversations: streams, exit codes, a real terminal."""

import json
from pathlib import Path

import pytest

from cli.main import run
from tests.integration.cli_process import document, started
from tests.integration.fake_api import State
from tests.integration.terminal import CTRL_C, CTRL_D, on_terminal
from tests.integration.test_client_generation import SCRIPT

Captured = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("cli_folder")


def test_text_goes_to_stdout_and_tool_runs_to_stderr(state: State, capsys: Captured) -> None:
    state.script, state.cuts = SCRIPT, [1]
    assert run(["chat", "how much?", "--tool", "calculator", "--system", "Be brief."]) == 0
    out, err = capsys.readouterr()
    assert out == "Let me see.\nIt is 42.\n"
    assert err == '> calculator {"expression": "6*7"}\n< 42\n'
    [job] = state.jobs.values()
    assert job["input"] == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "how much?"},
        ],
        "tools": [{"type": "calculator"}],
    }
    assert job["lane"] == "interactive"


def test_options_of_chat(state: State, capsys: Captured) -> None:
    options = ["--model", "ollama/tiny", "--max-tokens", "5", "--temperature", "0.5"]
    assert run(["chat", "hi", *options, "--conversation", "new"]) == 0
    out, err = capsys.readouterr()
    assert out == "HI\n"
    [conversation] = state.conversations
    assert f"Conversation {conversation}" in err
    assert "--max-tokens allows more" in err
    [job] = state.jobs.values()
    assert job["input"]["conversation_id"] == conversation
    assert job["input"]["parameters"] == {"max_tokens": 5, "temperature": 0.5}


def test_chat_with_json_is_one_document(state: State, capsys: Captured) -> None:
    assert run(["chat", "hi", "--json"]) == 0
    answer = document(capsys)
    assert answer["message"]["content"] == "HI"
    assert answer["job_id"] in state.jobs


def test_chat_of_standard_input() -> None:
    with started("chat", "-", stdin=-1) as running:
        assert running.communicate("안녕 hello")[0] == "안녕 HELLO\n"
    with started("chat", stdin=-1) as running:
        out, err = running.communicate(" \n")
    assert (out, running.returncode) == ("", 2)
    assert "holds no text" in err


@pytest.mark.parametrize(("outcome", "code"), [("failed", 1), ("cancelled", 6), ("running", 7)])
def test_the_exit_code_tells_how_a_streamed_job_ended(
    state: State, capsys: Captured, outcome: str, code: int
) -> None:
    state.outcome = outcome
    state.script = SCRIPT[:1]
    assert run(["chat", "hi", "--timeout", "0.3"]) == code
    assert capsys.readouterr().err.startswith("sluice: Job ")


def test_a_model_that_nobody_serves_is_reported(state: State, capsys: Captured) -> None:
    state.waiting_for = "No living worker serves the model 'hf/x'."
    assert run(["chat", "hi"]) == 0
    assert "Waiting: No living worker serves the model 'hf/x'." in capsys.readouterr().err
    [job_id] = state.jobs
    assert run(["jobs", "show", job_id]) == 0
    assert "waiting\tNo living worker" in capsys.readouterr().out


def test_a_reader_that_leaves_cancels_the_job(state: State) -> None:
    # More than the pipe holds: the command is in the middle of it when the reader leaves.
    state.script = [
        {"event": "token", "step": 1, "offset": 10 * n, "text": "It is 42. "} for n in range(20_000)
    ]
    state.outcome = "running"
    with started("chat", "hi") as running:
        assert running.stdout is not None
        running.stdout.read(3)
        running.stdout.close()
        assert running.wait() == 141
    assert [job["state"] for job in state.jobs.values()] == ["cancelled"]


def test_ctrl_c_cancels_the_job(state: State) -> None:
    state.script, state.outcome = SCRIPT, "running"
    with on_terminal("chat", "how much?") as terminal:
        terminal.expect("It is 42.")
        terminal.type(CTRL_C)
        assert terminal.end() == 130
    assert [job["state"] for job in state.jobs.values()] == ["cancelled"]


def test_an_interactive_chat_is_one_conversation(state: State) -> None:
    with on_terminal("chat", "--model", "ollama/tiny", "--system", "Be brief.") as terminal:
        terminal.expect("Ctrl-D ends")
        terminal.expect("> ")
        terminal.type_until(CTRL_C, "> ")  # at the prompt: no more than a new line
        terminal.type("\n")
        terminal.expect("> ")
        terminal.type("첫째\n")
        terminal.expect("첫째\r\n")
        terminal.expect("> ")
        state.script, state.outcome = SCRIPT[:2], "running"
        terminal.type("second\n")
        terminal.expect("Let me see.")
        terminal.type(CTRL_C)
        terminal.expect("Cancelled. This turn is not part of the conversation.")
        terminal.expect("> ")
        state.script, state.outcome = [], "failed"
        terminal.type("third\n")
        terminal.expect("failed: The model is not there.")
        terminal.expect("> ")
        state.outcome = "succeeded"
        terminal.type("fourth\n")
        terminal.expect("FOURTH")
        terminal.expect("> ")
        terminal.type(CTRL_D)
        [conversation] = state.conversations
        terminal.expect(f"sluice chat --conversation {conversation}")
        assert terminal.end() == 0
    jobs = list(state.jobs.values())
    assert [job["state"] for job in jobs] == ["succeeded", "cancelled", "failed", "succeeded"]
    assert {job["input"]["conversation_id"] for job in jobs} == {conversation}
    said = [message["content"] for message in jobs[3]["input"]["messages"]]
    assert said == ["Be brief.", "fourth"]


def test_an_interactive_chat_goes_on_with_a_conversation_that_there_is(state: State) -> None:
    with on_terminal("chat", "--conversation", "nope") as terminal:
        terminal.expect("There is no conversation nope.")
        assert terminal.end() == 4
    with on_terminal("chat", "--json") as terminal:
        terminal.expect("Give a TEXT")
        assert terminal.end() == 2
    assert not state.jobs


# ask


def test_ask_streams_with_its_option_and_says_what_was_left_out(
    state: State, tmp_path: Path, capsys: Captured
) -> None:
    state.script = [{"event": "token", "step": 2, "offset": 0, "text": "여섯 달 전 "}]
    state.script.append({"event": "token", "step": 2, "offset": 7, "text": "[1]."})
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{context} {question}", encoding="utf-8")
    options = ["--model", "ollama/tiny", "--max-tokens", "50", "--prompt-file", str(prompt)]
    for how in ("--stream", "--no-stream"):
        assert run(["ask", "언제?", "-c", "handbook", *options, how]) == 0
        out, err = capsys.readouterr()
        answer, gap, source = out.splitlines()
        assert (answer, gap) == ("여섯 달 전 [1].", "")
        assert source.startswith("[1] 안내/여권.md (0.81)")
        assert "no room in the window: 2" in err
        assert "cited nothing, taken out: 1" in err
    streamed, waited = [job["input"] for job in state.jobs.values()]
    assert streamed == waited
    assert streamed["prompt"] == "{context} {question}"
    assert streamed["parameters"] == {"max_tokens": 50}


def test_ask_of_what_only_quotes_shows_the_answer_once_on_a_terminal() -> None:
    with on_terminal("ask", "언제?", "-c", "handbook") as terminal:
        terminal.expect("만료 여섯 달 전부터")
        terminal.expect("[1] 안내/여권.md (0.81)")
        assert terminal.end() == 0
        assert terminal.seen.count("만료 여섯 달 전부터 신청할 수 있습니다 [1]") == 1


# conversations


def test_conversations_are_listed_shown_and_erased(state: State, capsys: Captured) -> None:
    run(["chat", "hi", "--conversation", "new"])
    [conversation] = state.conversations
    state.conversations[conversation] |= {"metadata": {"team": "가"}, "summary": "They said hi."}
    capsys.readouterr()
    assert run(["conversations"]) == 0
    cells = capsys.readouterr().out.split("\t")
    assert (cells[0], cells[1], cells[3]) == (conversation, "2", '{"team": "가"}\n')
    assert run(["conversations", "show", conversation]) == 0
    shown = capsys.readouterr().out
    assert "summary\tThey said hi.\n" in shown
    assert shown.endswith('user\n얼마예요?\n\nassistant\n> calculator {"expression": "6*7"}\n')
    assert run(["conversations", "show", conversation, "--json"]) == 0
    assert len(document(capsys)["messages"]) == 2
    assert run(["conversations", "erase", conversation]) == 2
    assert run(["conversations", "erase", conversation, "--yes", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"erased": conversation}
    assert run(["conversations", "erase", conversation, "--yes"]) == 4
    assert run(["conversations"]) == 0
    assert "No conversations." in capsys.readouterr().err
