"""The command line against a real HTTP server: what goes to stdout and stderr, and exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.main import run
from tests.unit.fake_api import State, serving

ROOT = Path(__file__).parents[2]


@pytest.fixture
def state() -> State:
    return State()


@pytest.fixture(autouse=True)
def url(state: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    with serving(state) as url:
        monkeypatch.setenv("SLUICE_URL", url)
        monkeypatch.setenv("SLUICE_HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        yield url


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.md").write_text(f"# {number}")
    return folder


Captured = pytest.CaptureFixture[str]


def document(capsys: Captured) -> Any:
    return json.loads(capsys.readouterr().out)


def start(*args: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *args],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# ingest


def test_ingest_makes_the_collection_uploads_and_reports(
    docs: Path, state: State, capsys: Captured
) -> None:
    (docs / "photo.png").write_bytes(b"\x89PNG")
    assert run(["ingest", "docs", "--collection", "handbook"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("handbook: 5 added, 0 replaced, 0 skipped, 0 failed; 10 chunks in ")
    assert "Created the collection handbook" in err
    assert "Left out 1 file of other types (.png 1)." in err
    assert sorted(file["name"] for file in state.files.values()) == [
        f"docs/{number}.md" for number in range(5)
    ]
    assert state.count("POST", "/v1/jobs") == 1


def test_a_second_run_uploads_only_what_is_new(docs: Path, state: State, capsys: Captured) -> None:
    assert run(["ingest", "docs", "-c", "handbook", "--json"]) == 0
    assert document(capsys)["uploaded_files"] == 5
    (docs / "0.md").write_text("changed")
    # The same content under another name is another document.
    (docs / "copy.md").write_text("# 1")
    assert run(["ingest", "docs", "-c", "handbook", "--json"]) == 0
    report = document(capsys)
    assert (report["uploaded_files"], report["reused_files"]) == (2, 4)
    assert not report["collection_created"]
    assert report["documents"]["added"] == 6
    assert len(state.files) == 7


def test_refused_files_are_entries_and_the_rest_goes_on(
    docs: Path, state: State, capsys: Captured
) -> None:
    (docs / "big.txt").write_bytes(b"x" * 300_000)
    (docs / "empty.txt").touch()
    (docs / "gone.txt").symlink_to("nowhere")
    state.job_errors = [{"source": "docs/0.md", "message": "no text in it"}]
    assert run(["ingest", "docs", "-c", "handbook", "--json"]) == 1
    report = document(capsys)
    assert report["documents"] == {"added": 4, "replaced": 0, "skipped": 0, "failed": 4}
    assert {error["source"]: error["message"] for error in report["errors"]} == {
        "docs/big.txt": "The file is larger than the server accepts.",
        "docs/empty.txt": "docs/empty.txt is empty.",
        "docs/gone.txt": "Cannot read docs/gone.txt: No such file or directory.",
        "docs/0.md": "no text in it",
    }


def test_when_every_file_is_refused_there_is_no_job(
    tmp_path: Path, state: State, capsys: Captured
) -> None:
    (tmp_path / "empty.txt").touch()
    assert run(["ingest", "empty.txt", "-c", "handbook"]) == 1
    assert "Failed: empty.txt: empty.txt is empty." in capsys.readouterr().err
    assert not state.jobs


def test_only_twenty_errors_are_shown(docs: Path, state: State, capsys: Captured) -> None:
    state.job_errors = [{"source": f"docs/{n}.md", "message": "bad"} for n in range(25)]
    assert run(["ingest", str(docs), "-c", "handbook"]) == 1
    err = capsys.readouterr().err
    assert err.count("Failed: ") == 20
    assert "and 5 more; --json lists all" in err


@pytest.mark.usefixtures("docs")
def test_options_reach_the_job_and_only_those(state: State, capsys: Captured) -> None:
    args = "--splitter token --chunk-size 64 --on-existing replace --lane bulk --no-wait"
    meta = ["--metadata", "year=2024", "--metadata", "draft=false", "--metadata", 'n="7"']
    columns = ["--content-columns", 'title,"a, b"']
    assert run(["ingest", "docs/0.md", "-c", "handbook", *args.split(), *meta, *columns]) == 0
    [job] = state.jobs.values()
    sources = job["input"].pop("sources")
    assert [state.files[source["file_id"]]["name"] for source in sources] == ["docs/0.md"]
    assert job["lane"] == "bulk"
    assert job["input"] == {
        "collection": "handbook",
        "on_existing": "replace",
        "splitter": {"type": "token", "chunk_size": 64},
        "csv": {"content_columns": ["title", "a, b"]},
        "metadata": {"year": 2024, "draft": False, "n": "7"},
    }
    assert capsys.readouterr().out == f"{job['id']}\n"


def test_standard_input_is_a_text_document(state: State) -> None:
    done = start("ingest", "-", "-c", "handbook", "--name", "note", stdin=subprocess.PIPE)
    done.communicate("안녕하세요")
    assert done.returncode == 0
    [job] = state.jobs.values()
    assert job["input"]["sources"] == [{"type": "text", "text": "안녕하세요", "name": "note"}]


@pytest.mark.parametrize(
    "args",
    [
        ["ingest", "nowhere", "-c", "handbook"],
        ["ingest", "home", "-c", "handbook"],
        ["ingest", "docs"],
        ["ingest", "docs", "-c", "handbook", "--metadata", "year"],
        ["nonsense"],
        ["jobs", "nonsense"],
        ["--url", "nonsense", "jobs"],
        ["collections", "delete", "handbook"],
    ],
)
def test_usage_errors_are_2_and_say_why(args: list[str], state: State, capsys: Captured) -> None:
    Path("home").mkdir()
    Path("docs").mkdir()
    state.collections.add("handbook")
    assert run(args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err
    assert "Traceback" not in err


def test_interrupting_the_wait_leaves_the_job_and_says_how_to_go_on(
    docs: Path, state: State
) -> None:
    state.outcome = "running"
    running = start("ingest", str(docs), "-c", "handbook")
    while not state.last_event_ids:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate()
    [job_id] = state.jobs
    state.jobs[job_id]["state"] = "cancelled"
    assert running.returncode == 130
    assert out == ""
    assert f"sluice jobs watch {job_id}" in err
    assert f"sluice jobs cancel {job_id}" in err


# ask, search


def test_ask_shows_the_answer_and_its_sources(capsys: Captured) -> None:
    assert run(["ask", "언제부터?", "--collection", "handbook"]) == 0
    answer, gap, source = capsys.readouterr().out.splitlines()
    assert answer == "만료 여섯 달 전부터 신청할 수 있습니다 [1].[31m"
    assert gap == ""
    assert source.startswith("[1] 안내/여권.md (0.81) — 여권 갱신은 만료 여섯 달 전부터")
    assert source.endswith("…")


def test_ask_and_search_with_json(capsys: Captured) -> None:
    assert run(["ask", "?", "-c", "handbook", "--json"]) == 0
    assert document(capsys)["citations"][0]["start"] == 1200
    assert run(["search", "?", "-c", "handbook", "--json"]) == 0
    assert document(capsys)["hits"][0]["score"] == 0.8125


def test_search_lists_passages(capsys: Captured) -> None:
    assert run(["search", "여권", "-c", "handbook"]) == 0
    assert capsys.readouterr().out.startswith("1. 안내/여권.md (0.81, from character 1,200)\n")


@pytest.mark.parametrize(
    ("outcome", "code", "text"),
    [
        ("failed", 1, "failed: The model is not there."),
        ("cancelled", 6, "was cancelled"),
        ("running", 7, "it goes on"),
    ],
)
def test_the_exit_code_tells_how_the_job_ended(
    state: State, capsys: Captured, outcome: str, code: int, text: str
) -> None:
    state.outcome = outcome
    assert run(["ask", "?", "-c", "handbook", "--timeout", "0.5"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err


# jobs


def test_bare_jobs_lists_and_takes_the_options_of_list(state: State, capsys: Captured) -> None:
    for _ in range(3):
        run(["ask", "?", "-c", "handbook", "--json"])
    capsys.readouterr()
    assert run(["jobs", "--limit", "2", "--json"]) == 0
    assert [job["id"] for job in document(capsys)["items"]] == list(state.jobs)[:0:-1]
    assert run(["jobs"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows] == [[i, "rag", "succeeded"] for i in reversed(state.jobs)]


@pytest.mark.parametrize(
    ("outcome", "code"), [("succeeded", 0), ("failed", 1), ("cancelled", 6), ("running", 7)]
)
def test_watch_follows_to_the_end(
    state: State, docs: Path, capsys: Captured, outcome: str, code: int
) -> None:
    run(["ingest", str(docs), "-c", "handbook", "--no-wait"])
    [job_id] = state.jobs
    capsys.readouterr()
    state.outcome = outcome
    state.dropped_streams = 1
    assert run(["jobs", "watch", job_id, "--json", "--timeout", "0.5"]) == code
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events[:2]] == ["state", "progress"]
    assert (events[-1]["event"] == "end") == (code != 7)
    assert run(["jobs", "watch", job_id, "--timeout", "0.5"]) == code


def test_show_cancel_and_retry(state: State, docs: Path, capsys: Captured) -> None:
    state.outcome = "running"
    run(["ingest", str(docs), "-c", "handbook", "--no-wait"])
    [job_id] = state.jobs
    capsys.readouterr()
    assert run(["jobs", "show", job_id]) == 0
    assert "position   1, done in about 2.5 s" in capsys.readouterr().out
    assert run(["jobs", "cancel", job_id]) == 0
    assert capsys.readouterr().out == f"{job_id} is cancelled\n"
    assert run(["jobs", "retry", job_id]) == 5
    assert capsys.readouterr().err == f"sluice: Job {job_id} has not failed.\n"
    assert run(["jobs", "show", "nope"]) == 4
    assert capsys.readouterr().err == "sluice: No job nope.\n"


# collections, documents


def test_collections(state: State, capsys: Captured) -> None:
    assert run(["collections", "create", "handbook", "--json"]) == 0
    assert document(capsys)["dimension"] == 384
    assert run(["collections"]) == 0
    assert capsys.readouterr().out.startswith("handbook\t3\t6\tall-MiniLM-L6-v2\t")
    assert run(["collections", "show", "other"]) == 4
    assert run(["collections", "delete", "handbook", "--yes"]) == 0
    assert capsys.readouterr().out == "Deleted handbook: 3 documents, 6 chunks.\n"
    assert not state.collections


def test_documents_are_found_by_their_source(capsys: Captured) -> None:
    assert run(["documents", "-c", "handbook", "--json"]) == 0
    assert len(document(capsys)["items"]) == 3
    assert run(["documents", "show", "docs/1.md", "-c", "handbook", "--json"]) == 0
    assert document(capsys)["id"] == "d1"
    assert run(["documents", "show", "docs/9.md", "-c", "handbook"]) == 4
    assert run(["documents", "show", "d9"]) == 4


# The whole


def test_status_tells_what_is_not_ready(state: State, capsys: Captured) -> None:
    assert run(["status", "--json"]) == 0
    assert document(capsys)["queues"][0]["paused"] is True
    state.ready = False
    assert run(["status"]) == 1
    assert "database: no answer" in capsys.readouterr().out


def test_down_without_a_stack(capsys: Captured) -> None:
    assert run(["down", "--json"]) == 0
    assert document(capsys)["stopped"] is False


def test_no_api_is_3_and_says_how_to_start_one(capsys: Captured) -> None:
    assert run(["--url", "http://127.0.0.1:9", "jobs"]) == 3
    assert "sluice up" in capsys.readouterr().err


def test_a_missing_key_is_5_and_the_option_helps(state: State, capsys: Captured) -> None:
    state.api_key = "s3cret"
    assert run(["jobs"]) == 5
    assert "--api-key" in capsys.readouterr().err
    assert run(["jobs", "--api-key", "s3cret"]) == 0
    assert run(["--api-key", "s3cret", "jobs"]) == 0


def test_migrate_without_a_database_names_the_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.delenv("SLUICE_DATABASE_URL", raising=False)
    assert run(["migrate"]) == 2
    assert "SLUICE_DATABASE_URL" in capsys.readouterr().err
    monkeypatch.setenv("SLUICE_DATABASE_URL", "postgresql://nobody@127.0.0.1:9/none")
    assert run(["migrate"]) == 3
    assert "Cannot reach the database" in capsys.readouterr().err


def test_a_wrong_setting_of_the_stack_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setenv("SLUICE_API_PORT", "many")
    assert run(["up"]) == 2
    assert capsys.readouterr().err.startswith("sluice: SLUICE_API_PORT: ")


def test_a_reader_that_leaves_is_no_error(state: State) -> None:
    for number in range(3000):
        state.collections.add(f"collection-{number}")
    running = start("collections", "--json")
    assert running.stdout is not None
    running.stdout.close()
    assert running.stderr is not None
    with running.stderr as stderr:
        assert stderr.read() == ""
    assert running.wait() == 141


def test_pipes_get_no_colours() -> None:
    done = start("status")
    out, _ = done.communicate()
    assert "\x1b" not in out
    assert "ingest\t3\t1\tpaused" in out


@pytest.mark.parametrize(
    "command",
    ["up", "down", "status", "doctor", "migrate", "ingest", "ask", "search", "jobs list",
     "jobs show", "jobs watch", "jobs cancel", "jobs retry", "collections list",
     "collections create", "collections show", "collections delete", "documents list",
     "documents show", "documents delete"],
)  # fmt: skip
def test_every_command_has_json_and_help(command: str, capsys: Captured) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert "--json" in capsys.readouterr().out
