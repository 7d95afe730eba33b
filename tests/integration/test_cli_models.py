"""`sluice models`: what is asked for, what is shown, and what is wrong with a description."""

import io
from pathlib import Path
from typing import Any

import pytest

from cli.main import run
from tests.integration.cli_process import document
from tests.integration.fake_api import State
from tests.integration.terminal import on_terminal

Captured = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("cli_folder")


def last_input(state: State) -> Any:
    """The input of the last job."""
    return list(state.jobs.values())[-1]["input"]


def test_list_and_show(state: State, capsys: Captured) -> None:
    state.models["ollama/helpdesk"] = {
        "details": {"family": "llama", "format": ""},
        "capabilities": ["completion", "tools"],
        "system": "You answer.\nBriefly.",
        "modelfile": "FROM x",
    }
    assert run(["models"]) == 0
    assert capsys.readouterr().out == "extractive\trag\tyes\t1\nollama/helpdesk\tchat\t\t1\n"
    for name in ("helpdesk", "ollama/helpdesk"):
        assert run(["models", "show", name]) == 0
        out = capsys.readouterr().out
        assert out.startswith("model\tollama/helpdesk\nkinds\tchat\ndefault\tno\nworkers\t1\n")
        details = "details\tfamily: llama\ncapabilities\tcompletion, tools\nsystem\tYou answer.\\nB"
        assert details in out
        assert "FROM x" not in out
    assert run(["models", "show", "helpdesk", "--json"]) == 0
    assert document(capsys)["details"]["modelfile"] == "FROM x"
    assert run(["models", "show", "other"]) == 4


def test_pull_and_delete(state: State, capsys: Captured) -> None:
    assert run(["models", "pull", "llama3.2"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("Pulled ollama/llama3.2.\n", "")
    assert last_input(state) == {"action": "pull", "name": "ollama/llama3.2"}
    assert run(["models", "delete", "llama3.2"]) == 2
    assert "--yes" in capsys.readouterr().err
    assert run(["models", "delete", "llama3.2", "--yes", "--json"]) == 0
    assert document(capsys)["result"] == {"action": "delete", "name": "ollama/llama3.2"}
    state.outcome = "failed"
    assert run(["models", "pull", "nosuch"]) == 1
    assert "failed: The model is not there." in capsys.readouterr().err
    assert run(["models", "pull", "hf/some/model"]) == 2


def test_the_progress_of_a_pull_is_in_bytes(state: State) -> None:
    half = {"event": "progress", "done": 1_500_000, "total": 3_000_000, "unit": "bytes"}
    state.script = [half, {**half, "done": 3_000_000}]
    with on_terminal("models", "pull", "llama3.2") as terminal:
        terminal.expect("Pulling")
        terminal.expect("3.0 MB/3.0 MB")
        terminal.expect("Pulled ollama/llama3.2.")
        assert terminal.end() == 0
    assert last_input(state)["action"] == "pull"


def test_create_by_options(state: State, capsys: Captured) -> None:
    options = ["--from", "llama3.2", "--system", "Be brief.", "--template", "{{ .Prompt }}"]
    parameters = ["--parameter", "temperature=0.2", "--parameter", "stop=A", "--parameter=stop=B=C"]
    assert run(["models", "create", "helpdesk", *options, *parameters]) == 0
    assert capsys.readouterr().out == "Created ollama/helpdesk.\n"
    assert last_input(state) == {
        "action": "create",
        "name": "ollama/helpdesk",
        "from": "ollama/llama3.2",
        "system": "Be brief.",
        "template": "{{ .Prompt }}",
        "parameters": {"temperature": 0.2, "stop": ["A", "B=C"]},
    }


def test_create_by_a_file_whose_words_options_overrule(state: State, tmp_path: Path) -> None:
    path = tmp_path / "Modelfile"
    path.write_text(
        "\ufeff# mine\nFROM llama3.2\nSYSTEM 친절하게.\nPARAMETER top_k 5\nPARAMETER top_p 0.5\n",
        encoding="utf-8",
    )
    options = ["--file", str(path), "--system", "Be brief.", "--parameter", "top_k=9"]
    assert run(["models", "create", "mine", *options]) == 0
    assert last_input(state) == {
        "action": "create",
        "name": "ollama/mine",
        "from": "ollama/llama3.2",
        "system": "Be brief.",
        "parameters": {"top_k": 9, "top_p": 0.5},
    }


def test_what_is_wrong_with_a_description_is_reported_before_any_job(
    state: State, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "Modelfile"
    for text, says in {
        "FROM a\nADAPTER x": "line 2: ADAPTER is for named models: `sluice models define`",
        "FROM a\nPARSER x": "line 2: PARSER is not supported",
        "SYSTEM hi": "--from MODEL, or FROM in the --file",
        'FROM a\nSYSTEM """x': "line 2: the quotes",
    }.items():
        path.write_text(text)
        assert run(["models", "create", "mine", "--file", str(path)]) == 2
        assert says in capsys.readouterr().err
    path.write_bytes(b"FROM \xff")
    assert run(["models", "create", "mine", "--file", str(path)]) == 2
    assert run(["models", "create", "mine"]) == 2
    assert run(["models", "create", "mine", "--from", "a", "--parameter", "b"]) == 2
    assert "'b' does not read NAME=VALUE" in capsys.readouterr().err
    assert not state.jobs
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"FROM llama3.2")))
    assert run(["models", "create", "mine", "--file", "-"]) == 0


def test_named_models_are_defined_shown_and_deleted(
    state: State, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / "Modelfile"
    path.write_text("FROM tiny\nMESSAGE user Hi")
    assert run(["models", "define", "mine", "--file", str(path), "--system", "Be brief."]) == 0
    assert capsys.readouterr().out == "Defined mine over ollama/tiny.\n"
    sent = state.models["mine"]["sent"]
    assert sent == {"modelfile": "FROM tiny\nMESSAGE user Hi", "system": "Be brief."}
    assert run(["models", "show", "mine"]) == 0
    assert "from\tollama/tiny" in capsys.readouterr().out
    assert run(["models", "delete", "mine"]) == 2
    assert run(["models", "delete", "mine", "--yes"]) == 0
    assert "Deleted mine.\n" in capsys.readouterr().out
    assert not state.models
    assert not state.jobs
    assert run(["models", "define", "mine"]) == 2
