"""`sluice worker`: it becomes the worker's program, told where the servers are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import run
from cli.stack.stackfile import Stack, StackState, find_process, machine, run_folder, write_stack
from tests.integration.cli_process import ROOT, started


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    run_folder(home).mkdir(parents=True)
    monkeypatch.setenv("SLUICE_HOME", str(home))
    monkeypatch.chdir(tmp_path)
    return home


def stack_of_this_process(home: Path, vectors_url: str = "chroma://127.0.0.1:9") -> None:
    """A stack whose supervisor lives, and whose servers do not answer."""
    own = find_process(os.getpid())
    assert own is not None
    stack = Stack(
        pid=own.pid,
        started_ticks=own.started_ticks,
        machine=machine(),
        state=StackState.READY,
        home=home,
        api_url="http://127.0.0.1:9",
        database_url="postgresql://nobody@127.0.0.1:9/stack",
        redis_url="redis://127.0.0.1:9/0",
        vectors_url=vectors_url,
        parts=(),
    )
    write_stack(stack)


def ended(*args: str) -> tuple[int, str]:
    with started(*args, stdin=subprocess.DEVNULL) as running:
        _, err = running.communicate()
        return running.returncode, err


def test_without_servers_and_stack_it_says_what_to_set(
    capsys: pytest.CaptureFixture[str], home: Path
) -> None:
    assert run(["worker", "generate", "--model", "extractive"]) == 2
    said = capsys.readouterr().err
    assert "SLUICE_DATABASE_URL" in said
    assert f"no stack runs under {home}" in said


def test_with_servers_that_are_set_it_becomes_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own words come back: about a model that its arguments brought it."""
    monkeypatch.setenv("SLUICE_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    monkeypatch.setenv("SLUICE_REDIS_URL", "redis://127.0.0.1:9/0")
    options = ["--model", "hf//nowhere", "--device", "cpu", "--concurrency", "2", "--name", "mine"]
    code, err = ended("worker", "generate", *options)
    assert code == 2
    assert "error: There is no model '/nowhere'" in err


def test_settings_that_are_missing_are_named_by_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    code, err = ended("worker", "cpu")
    assert code == 2
    assert err.startswith("error: SLUICE_VECTORS_URL is not set.")


@pytest.mark.parametrize(
    ("role", "options"),
    [
        ("generate", ["--model", "ollama/a", "--model", "extractive"]),
        ("hf", ["--device", "cuda:1", "--concurrency", "2"]),
        ("hf", []),
    ],
)
def test_it_joins_the_stack_that_runs_here(
    home: Path, tmp_path: Path, role: str, options: list[str]
) -> None:
    """A program in the interpreter's place shows what it is started with."""
    stack_of_this_process(home)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\nenv | grep ^SLUICE_ | sort\n')
    python.chmod(0o755)
    code = f"import sys; sys.executable = {str(python)!r}; from cli.main import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "worker", role, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        output, _ = process.communicate()
    arguments, *environment = output.splitlines()
    name = f"{role}-{process.pid}@{os.uname().nodename}"
    assert arguments == " ".join(["-P -m workers", role, "--name", name, *options])
    assert environment == [
        "SLUICE_CHROMA_URL=",
        "SLUICE_DATABASE_URL=postgresql://nobody@127.0.0.1:9/stack",
        f"SLUICE_HOME={home}",
        "SLUICE_REDIS_URL=redis://127.0.0.1:9/0",
        "SLUICE_VECTORS_URL=chroma://127.0.0.1:9",
    ]


def test_joining_is_reported_and_the_workers_errors_come_through(home: Path) -> None:
    stack_of_this_process(home, vectors_url="no-store://127.0.0.1:9")
    code, err = ended("worker", "cpu")
    assert code == 2
    first, *others = err.splitlines()
    assert first == "Joining the stack at http://127.0.0.1:9."
    assert any(line.startswith("error: SLUICE_VECTORS_URL") for line in others), err


@pytest.mark.parametrize("command", [["up"], ["worker", "generate"]])
@pytest.mark.parametrize("model", ["llama3.2", "hf/", "gpt/4", ""])
def test_what_is_no_model_reference_is_refused_before_anything_starts(
    command: list[str], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*command, "--model", model]) == 2
    assert "ollama/<name>" in capsys.readouterr().err
