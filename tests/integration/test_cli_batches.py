"""`sluice batch` against the real API, its lines run in this process."""

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.main import run
from shared.config import Settings
from shared.database.transaction import Ledger
from shared.vocabulary import Queue
from tests.integration.cli_process import document, started
from tests.integration.job_runner import drain, handlers, make_due, make_process
from workers.attempts.process import Process
from workers.attempts.runner import run_next

Captured = pytest.CaptureFixture[str]
NOBODY = "01a21957-3c86-7c1b-9aaa-000000000001"


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings, batch_interval_s=0.01, batch_open_lines=2)
    yield process
    process.close()


@pytest.fixture(autouse=True)
def folder(api: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLUICE_URL", str(api.base_url))
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line(name: str, url: str = "/v1/embed", **body: Any) -> dict[str, Any]:
    return {"custom_id": name, "url": url, "body": body or {"texts": [name]}}


def write(path: Path, lines: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(f"{json.dumps(one)}\n" for one in lines))
    return str(path)


def submitted(path: str, capsys: Captured, *options: str) -> str:
    assert run(["batch", "submit", path, *options]) == 0
    out, err = capsys.readouterr()
    assert f"sluice batch watch {out.strip()}" in err
    return out.strip()


def names(text: str) -> list[str]:
    return [json.loads(one)["custom_id"] for one in text.splitlines()]


def test_a_batch_from_its_file_to_its_answers(
    folder: Path, process: Process, capsys: Captured
) -> None:
    lines = [line("하나"), line("none", "/v1/search", collection="later", query="x"), line("\x85")]
    batch_id = submitted(write(folder / "lines.jsonl", lines), capsys, "--metadata", "team=a")
    assert run(["batch", "results", batch_id]) == 0
    assert "No answers yet." in capsys.readouterr().err
    drain(process)
    assert run(["batch", "watch", batch_id[:18]]) == 0
    shown = capsys.readouterr().out
    assert "status\tcompleted\n" in shown
    assert "1 of 3 lines failed" in shown
    assert run(["batch", "results", f"batch_{batch_id.replace('-', '')}"]) == 0
    assert names(capsys.readouterr().out) == ["하나", "\x85"]
    assert run(["batch", "results", batch_id, "--json"]) == 0
    assert [one["custom_id"] for one in document(capsys)["items"]] == ["하나", "\x85"]
    assert run(["batch", "results", batch_id, "--errors"]) == 0
    assert names(capsys.readouterr().out) == ["none"]
    assert run(["batch", "results", batch_id, "-o", "answers.jsonl"]) == 0
    assert names((folder / "answers.jsonl").read_text()) == ["하나", "\x85"]
    assert "Wrote 2 lines" in capsys.readouterr().err
    assert run(["batch"]) == 0
    assert f"{batch_id}\tcompleted\t2/3\t1\t" in capsys.readouterr().out
    assert run(["jobs", "list", "--batch", batch_id, "--json"]) == 0
    assert len(document(capsys)["items"]) == 2
    assert run(["batch", "show", batch_id, "--json"]) == 0
    assert document(capsys)["metadata"] == {"team": "a"}

    assert run(["collections", "create", "later"]) == 0
    capsys.readouterr()
    assert run(["batch", "retry-failed", batch_id]) == 0
    assert "1 line to run" in capsys.readouterr().err
    drain(process)
    assert run(["batch", "results", batch_id]) == 0
    assert names(capsys.readouterr().out) == ["하나", "none", "\x85"]
    assert run(["batch", "retry-failed", batch_id]) == 5
    assert "no lines that are failed" in capsys.readouterr().err


def test_lines_come_from_pipes(folder: Path, process: Process, capsys: Captured) -> None:
    text = json.dumps(line("a"))
    with started("batch", "submit", "-", stdin=subprocess.PIPE) as running:
        out, _ = running.communicate(text)
    pipe = folder / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(text,))
    writer.start()
    ids = [out.strip(), submitted(str(pipe), capsys)]
    writer.join()
    drain(process)
    for batch_id in ids:
        assert run(["batch", "results", batch_id]) == 0
        assert names(capsys.readouterr().out) == ["a"]


def test_a_cancelled_batch_keeps_its_answers(
    folder: Path, process: Process, capsys: Captured
) -> None:
    batch_id = submitted(write(folder / "lines.jsonl", [line("a"), line("b")]), capsys)
    assert run(["batch", "cancel", batch_id]) == 0
    assert "0 answers stay" in capsys.readouterr().err
    drain(process)
    assert run(["batch", "watch", batch_id]) == 6
    assert "status\tcancelled\n" in capsys.readouterr().out
    assert run(["batch", "retry-failed", batch_id, "--unfinished"]) == 0
    drain(process)
    capsys.readouterr()
    assert run(["batch", "results", batch_id]) == 0
    assert names(capsys.readouterr().out) == ["a", "b"]


def test_a_bad_file_is_shown_with_its_lines(
    folder: Path, process: Process, capsys: Captured
) -> None:
    batch_id = submitted(write(folder / "bad.jsonl", [line("a"), line("a")]), capsys)
    drain(process)
    assert run(["batch", "watch", batch_id]) == 1
    assert "line 2: custom_id 'a' is that of line 1" in capsys.readouterr().out


def test_what_a_batch_waits_for_is_told_while_it_is_watched(
    folder: Path, process: Process, capsys: Captured
) -> None:
    message = {"role": "user", "content": "x"}
    lines = [line("c", "/v1/chat/completions", model="hf/nobody", messages=[message])]
    batch_id = submitted(write(folder / "lines.jsonl", lines), capsys)
    for _ in range(3):
        drain_control(process)
    assert run(["batch", "watch", batch_id, "--timeout", "1"]) != 0
    error = capsys.readouterr().err
    assert "No living worker serves the model 'hf/nobody'" in error
    assert "Its time has not come" not in error


def drain_control(process: Process) -> None:
    make_due(process)
    run_next(process, handlers(), Queue.CONTROL.value)


@pytest.mark.parametrize("command", ["watch", "show", "results", "retry-failed", "cancel"])
@pytest.mark.parametrize("wrong", [NOBODY, "nonsense"])
def test_what_is_no_batch_is_4(command: str, wrong: str, folder: Path, capsys: Captured) -> None:
    kept = folder / "answers.jsonl"
    kept.write_text("kept")
    options = ["-o", str(kept)] if command == "results" else []
    assert run(["batch", command, wrong, *options]) == 4
    assert wrong in capsys.readouterr().err
    assert kept.read_text() == "kept"
    assert [path.name for path in folder.iterdir()] == ["answers.jsonl"]


def test_a_job_of_another_kind_is_no_batch(api: httpx.Client, capsys: Captured) -> None:
    job = api.post("/v1/jobs", json={"kind": "embed", "input": {"texts": ["a"]}}).json()
    for command in ("watch", "show", "results", "cancel"):
        assert run(["batch", command, job["id"]]) == 4
        assert f"no batch {job['id']}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["nowhere.jsonl"], 2, "nowhere.jsonl"),
        (["."], 2, "."),
        (["lines.jsonl", "--timeout", "3"], 2, "--wait"),
        (["lines.jsonl", "--finish-by", "now"], 2, "now"),
        (["lines.jsonl", "--finish-by", "2020-01-01"], 5, "ahead"),
        (["lines.jsonl", "--window", "soon"], 5, "24h"),
        (["lines.jsonl", "--window", "1h", "--finish-by", "2099-01-01"], 5, "either"),
        (["lines.jsonl", "--endpoint", "/v1/images"], 5, "/v1/rag"),
        (["empty.jsonl"], 5, "empty"),
    ],
)
def test_what_cannot_be_submitted_says_why(
    folder: Path, capsys: Captured, options: list[str], code: int, words: str
) -> None:
    write(folder / "lines.jsonl", [line("a")])
    (folder / "empty.jsonl").touch()
    assert run(["batch", "submit", *options]) == code
    assert words in capsys.readouterr().err


def test_the_wrong_key_and_no_server_are_told(folder: Path, capsys: Captured) -> None:
    write(folder / "lines.jsonl", [line("a")])
    assert run(["batch", "submit", "lines.jsonl", "--url", "http://127.0.0.1:9"]) == 3
    assert "127.0.0.1:9" in capsys.readouterr().err
