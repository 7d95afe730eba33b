"""Commands, where options may stand, prefixes of ids, JSON errors, completion."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from cli.main import run, sluice
from tests.integration.cli_process import ROOT, document, started
from tests.integration.fake_api import State, answering, listening, serving
from tests.integration.fake_bodies import make_conversation, make_job

Captured = pytest.CaptureFixture[str]
ONE, OTHER = "01a21957-3c86-7c1b-9aaa-000000000001", "01a21957-3c99-7c1b-9aaa-000000000002"

pytestmark = pytest.mark.usefixtures("cli_folder")


@pytest.fixture
def state() -> State:
    state = State(outcome="succeeded")
    for id_ in (ONE, OTHER):
        state.jobs[id_] = make_job(id_, {"kind": "embed", "input": {"texts": ["a" * 5000]}})
    return state


def commands(group: click.Group = sluice, *path: str) -> Iterator[tuple[str, ...]]:
    """Every command line that names a command or a group."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


# Help, version


def test_alone_it_helps_and_succeeds(capsys: Captured) -> None:
    assert run([]) == 0
    alone = capsys.readouterr()
    assert run(["--help"]) == 0
    assert alone.out == capsys.readouterr().out
    assert alone.err == ""
    assert run(["worker"]) == 0
    assert "generate" in capsys.readouterr().out


@pytest.mark.parametrize("path", [(), *commands()])
def test_help_is_the_same_by_both_ways_and_cuts_nothing(
    path: tuple[str, ...], capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert run(["help", *path]) == 0
    assert capsys.readouterr().out == shown
    assert "..." not in shown.replace("ID...", "").replace("]...", "").replace("QUEUE...", "")


def test_every_command_is_in_the_help_once(capsys: Captured) -> None:
    assert run(["help"]) == 0
    lines = [
        line.split() for line in capsys.readouterr().out.partition("This machine:")[2].split("\n")
    ]
    named = [words[0] for words in lines if words]
    for name in sluice.list_commands(click.Context(sluice)):
        assert named.count(name) == 1


def test_help_of_nothing_is_2(capsys: Captured) -> None:
    assert run(["help", "jobs", "nonsense"]) == 2
    assert "jobs nonsense" in capsys.readouterr().err


def test_version(capsys: Captured) -> None:
    for way in (["version"], ["--version"], ["-V"]):
        assert run(way) == 0
        assert capsys.readouterr().out == "sluice 0.1.0\n"
    assert run(["version", "--json"]) == 0
    assert document(capsys) == {"version": "0.1.0"}


# Where options may stand


@pytest.mark.parametrize(
    "line",
    [
        "--url {url} jobs list",
        "jobs --url {url} list",
        "jobs --url={url} list",
        "jobs list --url {url}",
        "jobs --url {url}",
        "jobs --limit 5 --url {url} list --state queued",
        "jobs -c handbook --url {url} list",
        "jobs --url {url} --json list",
        "--json jobs --url {url}",
        "jobs --json --url {url} show " + ONE,
        "jobs --url {url} cancel " + ONE,
        "documents --url {url} -c handbook list",
        "documents --collection list --url {url} list",
        "documents --url {url} -c handbook show docs/1.md",
        "collections --url {url} list",
        "models --url {url} list",
        "conversations --url {url} --limit 3 list",
        "queues --url {url} pause ingest",
        "workers --url {url}",
    ],
)
def test_options_may_stand_before_the_command(
    line: str, url: str, state: State, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.delenv("SLUICE_URL")
    state.collections.add("handbook")
    state.conversations[ONE] = make_conversation(ONE)
    assert run(line.format(url=url).split()) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    assert out
    if "--json" in line:
        json.loads(out)
    assert state.requests


def test_an_option_of_another_command_is_refused(capsys: Captured) -> None:
    assert run(["jobs", "--state", "failed", "show", ONE]) == 2
    assert "--state" in capsys.readouterr().err
    assert run(["jobs", "--url"]) == 2
    assert run(["jobs", "--nonsense", "list"]) == 2


def test_help_of_a_group_may_stand_behind_its_options(capsys: Captured) -> None:
    assert run(["jobs", "--url", "http://x", "--help"]) == 0
    assert "sluice jobs [OPTIONS] COMMAND" in capsys.readouterr().out
    assert run(["jobs", "--help", "list"]) == 0
    assert "--state" in capsys.readouterr().out


# Ids by their first digits


def test_a_prefix_stands_for_the_one_that_begins_so(state: State, capsys: Captured) -> None:
    for prefix in ("01a21957-3c86", "01A219573C86", "01a21957-3c86-7c1b-9aaa-00000000000", ONE):
        assert run(["jobs", "show", prefix, "--json"]) == 0
        assert document(capsys)["id"] == ONE
    assert run(["jobs", "watch", "01a21957-3c99"]) == 0
    assert run(["jobs", "cancel", "01a21957-3c86", "01a21957-3c99"]) == 0
    assert {job["state"] for job in state.jobs.values()} == {"cancelled"}


def test_an_ambiguous_prefix_changes_nothing(state: State, capsys: Captured) -> None:
    assert run(["jobs", "cancel", ONE, "01a21957"]) == 4
    error = capsys.readouterr().err
    assert ONE in error
    assert OTHER in error
    assert "More than one job begins with 01a21957" in error
    assert {job["state"] for job in state.jobs.values()} == {"queued"}


def test_what_is_no_prefix_is_left_to_the_api(capsys: Captured) -> None:
    for text in ("nope", "01a", "ffff0000"):
        assert run(["jobs", "show", text]) == 4
        assert capsys.readouterr().err == f"sluice: No job {text}.\n"


def test_prefixes_of_documents_and_conversations(state: State, capsys: Captured) -> None:
    state.prefixed["document"] = [ONE]
    assert run(["documents", "show", "01a2"]) == 4
    assert f"There is no document {ONE}." in capsys.readouterr().err
    state.conversations[ONE] = make_conversation(ONE)
    assert run(["conversations", "show", "01a2"]) == 0
    assert ONE in capsys.readouterr().out
    assert run(["conversations", "erase", "01a2", "--yes"]) == 0
    assert not state.conversations


# Errors as JSON


def error_of(capsys: Captured) -> Any:
    out, err = capsys.readouterr()
    assert out == ""
    return json.loads(err.splitlines()[-1])["error"]


def test_errors_of_json_runs_are_json_on_stderr(
    state: State, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["jobs", "show", "nope", "--json"]) == 4
    error = error_of(capsys)
    assert (error["type"], error["status"], error["exit_code"]) == ("ApiError", 404, 4)
    assert error["message"] == error["detail"] == "No job nope."

    assert run(["--url", "http://127.0.0.1:9", "jobs", "--json"]) == 3
    error = error_of(capsys)
    assert (error["type"], error["exit_code"]) == ("ConnectionFailed", 3)
    assert "sluice up" in error["message"]

    assert run(["jobs", "--state", "nonsense", "--json"]) == 2
    error = error_of(capsys)
    assert (error["type"], error["exit_code"]) == ("BadParameter", 2)
    assert "nonsense" in error["message"]
    assert run(["--json", "nonsense"]) == 2
    assert error_of(capsys)["exit_code"] == 2

    for outcome, code, type_ in (("failed", 1, "JobFailed"), ("cancelled", 6, "JobCancelled")):
        state.outcome = outcome
        assert run(["ask", "?", "-c", "handbook", "--json"]) == code
        error = error_of(capsys)
        assert (error["type"], error["state"], error["exit_code"]) == (type_, outcome, code)
        assert error["job_id"] == list(state.jobs)[-1]
    state.outcome = "running"
    assert run(["search", "?", "-c", "handbook", "--json", "--timeout", "0.1"]) == 7
    error = error_of(capsys)
    assert (error["type"], error["timeout_s"]) == ("WaitTimeout", 0.1)
    assert error["job_id"] == list(state.jobs)[-1]

    monkeypatch.setenv("SLUICE_API_PORT", "many")
    assert run(["up", "--json"]) == 2
    assert error_of(capsys)["type"] == "ConfigurationError"


def test_errors_of_other_runs_are_prose(capsys: Captured) -> None:
    assert run(["ask", "-c", "handbook", "--", "--json"]) == 0
    assert run(["jobs", "show", "nope"]) == 4
    assert capsys.readouterr().err == "sluice: No job nope.\n"


def test_a_wrong_option_in_json_is_one_document(capsys: Captured) -> None:
    assert run(["jobs", "list", "--json", "--nonsense"]) == 2
    assert error_of(capsys)["type"] == "NoSuchOption"


def test_lists_of_jobs_are_lean(capsys: Captured) -> None:
    assert run(["jobs", "list", "--json"]) == 0
    out = capsys.readouterr().out
    assert len(out) < 4000
    assert {"input", "result"}.isdisjoint(json.loads(out)["items"][0])


# Queues, workers


def test_queues_are_listed_paused_and_resumed(capsys: Captured) -> None:
    assert run(["queues"]) == 0
    assert capsys.readouterr().out == "ingest\t3\t1\tpaused\n"
    assert run(["queues", "list", "--json"]) == 0
    assert document(capsys)["items"][0]["queued"] == 3
    assert run(["queues", "resume", "ingest"]) == 0
    assert capsys.readouterr().out == "ingest is running\n"
    assert run(["queues", "pause", "ingest", "--json"]) == 0
    assert document(capsys)["items"][0]["paused"] is True
    assert run(["queues", "pause", "nonsense"]) == 4
    assert "nonsense" in capsys.readouterr().err


def test_status_says_what_is_paused_and_when_it_was_last_swept(
    state: State, capsys: Captured
) -> None:
    assert run(["status"]) == 0
    out = capsys.readouterr().out
    assert "Paused: ingest. `sluice queues resume ingest` goes on.\n" in out
    assert "ok   sweeper: ran 0.4 s ago\n" in out
    state.paused = False
    assert run(["status"]) == 0
    assert "Paused" not in capsys.readouterr().out


def test_workers(capsys: Captured) -> None:
    assert run(["workers"]) == 0
    assert capsys.readouterr().out.startswith("cpu-1\tingest\tollama\t2\t")
    assert run(["workers", "--json"]) == 0
    assert document(capsys)["items"][0]["name"] == "cpu-1"


# Submit


def test_submit_takes_json_from_everywhere(state: State, tmp_path: Path, capsys: Captured) -> None:
    input_ = {"texts": ["하나", "two"]}
    text = json.dumps(input_, ensure_ascii=False)
    (tmp_path / "input.json").write_text("\ufeff" + text, encoding="utf-8")
    options = ["--lane", "bulk", "--metadata", "team=a", "--metadata", "year=2026"]
    for source in ("input.json", text):
        assert run(["submit", "embed", source, *options]) == 0
        job_id = capsys.readouterr().out.strip()
        job = state.jobs[job_id]
        assert (job["input"], job["lane"]) == (input_, "bulk")
        assert job["metadata"] == {"team": "a", "year": 2026}
    with started("submit", "embed", "--json", stdin=subprocess.PIPE) as running:
        out, _ = running.communicate(text)
    assert json.loads(out)["input"] == input_


def test_submitting_again_with_the_same_key_is_the_same_job(state: State, capsys: Captured) -> None:
    before = len(state.jobs)
    for _ in range(2):
        assert run(["submit", "embed", '{"texts": ["a"]}', "--idempotency-key", "k"]) == 0
    first, second = capsys.readouterr().out.split()
    assert first == second
    assert len(state.jobs) == before + 1


@pytest.mark.parametrize(("outcome", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 6)])
def test_submit_waits_and_tells_how_it_ended(
    state: State, capsys: Captured, outcome: str, code: int
) -> None:
    state.outcome = outcome
    assert run(["submit", "embed", '{"texts": ["a"]}', "--wait"]) == code
    assert f"state\t{outcome}\n" in capsys.readouterr().out
    assert run(["submit", "embed", '{"texts": ["a"]}', "--wait", "--json"]) == code
    assert document(capsys)["state"] == outcome


def test_a_check_says_what_it_has_found_and_whether_it_is_mended(
    state: State, capsys: Captured
) -> None:
    state.collections.add("handbook")
    assert run(["collections", "check", "handbook", "--sample", "7", "--wait"]) == 0
    out = capsys.readouterr().out
    assert "state\tmended\n" in out
    assert "missing\t2\n" in out
    assert "missing, such as\tc1\n" in out
    assert run(["collections", "check", "handbook", "--dry-run", "--wait"]) == 1
    assert "state\tdamaged\n" in capsys.readouterr().out
    assert run(["collections", "check", "handbook"]) == 0
    job = state.jobs[capsys.readouterr().out.strip()]
    assert job["input"] == {"collection": "handbook", "dry_run": False, "delete_foreign": False}
    assert run(["collections", "show", "handbook"]) == 0
    assert "check\tok (2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nonsense", "{}"], "nonsense"),
        (["embed", "nowhere.json"], "Cannot read nowhere.json"),
        (["embed", "{nonsense"], "no JSON"),
        (["embed", "list.json"], "must be a JSON object"),
        (["embed", "binary.json"], "no UTF-8"),
        (["embed", '{"a":' + "[" * 100_000], "JSON|nested"),
        (["embed", "{}", "--timeout", "3"], "--wait"),
        (["embed", "{}", "--run-after", "soon"], "soon"),
    ],
)
def test_what_cannot_be_submitted_is_2(
    arguments: list[str], says: str, state: State, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00{")
    before = len(state.jobs)
    assert run(["submit", *arguments]) == 2
    assert any(word in capsys.readouterr().err for word in says.split("|"))
    assert len(state.jobs) == before


# Logs


@pytest.fixture
def log_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "logs"
    folder.mkdir(parents=True)
    for name in ("api", "cpu-1"):
        lines = "".join(f"{name} line {number}\n" for number in range(50))
        (folder / f"{name}.log").write_text(lines)
    (folder / "api.log.1").write_text("older\n")
    return folder


@pytest.mark.usefixtures("log_folder")
def test_logs_of_one_part_and_of_all(capsys: Captured) -> None:
    assert run(["logs", "api", "-n", "3"]) == 0
    assert capsys.readouterr().out == "api line 47\napi line 48\napi line 49\n"
    assert run(["logs", "-n", "1"]) == 0
    assert capsys.readouterr().out == "api   | api line 49\ncpu-1 | cpu-1 line 49\n"
    assert run(["logs", "api", "-n", "1", "--json"]) == 0
    assert document(capsys) == {"part": "api", "line": "api line 49"}
    assert run(["logs", "nonsense"]) == 4
    assert "api, cpu-1" in capsys.readouterr().err


def test_logs_where_nothing_has_run(capsys: Captured) -> None:
    assert run(["logs"]) == 4
    assert "no stack has run" in capsys.readouterr().err


def test_logs_are_followed_into_the_next_file(log_folder: Path) -> None:
    path = log_folder / "api.log"
    with started("logs", "api", "-f", "-n", "1") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "api line 49\n"
        with path.open("a") as file:
            file.write("half")
            file.flush()
            file.write(" a line\n")
        assert running.stdout.readline() == "half a line\n"
        path.rename(log_folder / "api.log.1")
        path.write_text("of the new file\n")
        assert running.stdout.readline() == "of the new file\n"
        running.terminate()


# Completion


Completed = Callable[[str], list[str]]


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> Completed:
    """What bash would be offered for the last word of a line; in this process, as
    `test_the_script_of_bash_completes_in_bash` has all of it."""
    monkeypatch.setenv("_SLUICE_COMPLETE", "bash_complete")

    def complete(line: str) -> list[str]:
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        with pytest.raises(SystemExit) as ended:
            run([])
        assert ended.value.code == 0
        out, err = capsys.readouterr()
        assert err == ""
        return [line.partition(",")[2] for line in out.split()]

    return complete


def test_names_and_ids_of_the_api_are_completed(state: State, completed: Completed) -> None:
    state.collections |= {"handbook", "helpdesk", "other"}
    assert completed("sluice ask x -c h") == ["handbook", "helpdesk"]
    assert completed("sluice jobs show 01a21957-3c8") == [ONE]
    assert completed("sluice jobs watch ") == [OTHER, ONE]
    assert completed("sluice documents show -c handbook docs/1") == ["docs/1.md"]
    assert completed("sluice queues pause i") == ["ingest"]
    assert completed("sluice hf question") == ["question-answering"]
    assert completed("sluice jobs ")[:3] == ["cancel", "erase", "list"]
    assert completed("sluice completion ") == ["bash", "zsh", "fish"]


def test_completion_says_nothing_where_nothing_answers(
    url: str, state: State, completed: Completed, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.api_key = "s3cret"
    assert completed("sluice jobs show ") == []
    assert completed(f"sluice jobs --api-key s3cret --url {url} show ") == [OTHER, ONE]
    for wrong in ("http://127.0.0.1:9", "nonsense", "http://[::1"):
        monkeypatch.setenv("SLUICE_URL", wrong)
        assert completed("sluice ask x -c ") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed(shell: str, capsys: Captured) -> None:
    assert run(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert f"_SLUICE_COMPLETE={shell}_complete" in out
    assert run(["completion", "cmd"]) == 2


def test_the_script_of_bash_completes_in_bash(tmp_path: Path, state: State) -> None:
    state.collections |= {"handbook", "other"}
    binaries = tmp_path / "bin"
    binaries.mkdir()
    program = binaries / "sluice"
    # By the shell: a first line cannot name a Python whose path has a space in it.
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from cli.main import main; main()"
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(code)} "$@"\n'
    )
    program.chmod(0o755)
    script = (
        'eval "$(sluice completion bash)"\n'
        "COMP_WORDS=(sluice search x -c h); COMP_CWORD=4\n"
        '_sluice_completion sluice; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env={**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "handbook"


@pytest.mark.parametrize(
    "answer",
    [
        [1],
        "text",
        {},
        {"items": "none"},
        {"items": [1], "checks": {"database": "ok"}},
        {"items": [{"other": 1}], "id": 7, "checks": None},
    ],
    ids=json.dumps,
)
def test_a_server_of_another_version_is_an_error_that_says_so(
    answer: object, capsys: Captured
) -> None:
    paths = {
        "status": "/readyz", "queues": "/v1/queues", "workers": "/v1/workers",
        "jobs list": "/v1/jobs", f"jobs show {ONE}": f"/v1/jobs/{ONE}", "models": "/v1/models",
        "collections": "/v1/collections", "conversations": "/v1/conversations",
    }  # fmt: skip
    with listening(answering(dict.fromkeys(paths.values(), answer))) as other:
        for command in paths:
            assert run([*command.split(), "--url", other, "--json"]) == 3, command
            output = capsys.readouterr()
            error = json.loads(output.err.splitlines()[-1])["error"]
            assert error["type"] == "ConnectionFailed"
            assert "SLUICE_URL" in error["message"]
            assert not output.out


def test_a_404_of_another_server_is_not_taken_for_the_api(capsys: Captured) -> None:
    with listening(answering({})) as other:
        assert run(["queues", "--url", other]) == 4
    error = capsys.readouterr().err
    assert f"{other}/v1/queues" in error
    assert "SLUICE_URL" in error


@pytest.mark.parametrize("before", [True, False])
def test_the_doctor_asks_the_api_that_is_named(before: bool, capsys: Captured) -> None:
    with serving(State(api_key="s3cret")) as other:
        options = ["--url", other, "--api-key", "s3cret"]
        run([*options, "doctor", "--json"] if before else ["doctor", *options, "--json"])
    checks = {one["name"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["API"]["detail"] == other
    assert checks["API keys"]["detail"] == f"{other} asks for a key"
    assert "API key" not in checks
