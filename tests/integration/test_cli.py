"""The command line against a real HTTP server: what goes to stdout and stderr, and exit codes."""

import json
from pathlib import Path
from uuid import UUID

import pytest

from cli.main import run
from tests.integration.cli_process import document, started
from tests.integration.fake_api import State, answering, listening
from tests.integration.fake_bodies import LONG_KOREAN
from tests.integration.terminal import on_terminal

pytestmark = pytest.mark.usefixtures("cli_folder")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.md").write_text(f"# {number}")
    return folder


Captured = pytest.CaptureFixture[str]


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


def test_search_pipes_whole_passages_one_a_line(capsys: Captured) -> None:
    assert run(["search", "여권", "-c", "handbook"]) == 0
    text = LONG_KOREAN.replace("\n", "\\n")
    assert capsys.readouterr().out == f"0.8125\t안내/여권.md\t1200\tc1\t{text}\n"


def test_search_lists_passages_on_a_terminal() -> None:
    with on_terminal("search", "여권", "-c", "handbook") as terminal:
        terminal.expect("1. 안내/여권.md (0.81, from character 1,200)")
        assert terminal.end() == 0


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
    assert "position\t1, done in about 2.5 s\n" in capsys.readouterr().out
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
    capsys.readouterr()
    assert run(["collections", "show", "handbook"]) == 0
    assert "handbook.2" in capsys.readouterr().out
    assert run(["collections", "drop-index", "handbook", "handbook.2", "--yes"]) == 0
    assert "handbook.2" in capsys.readouterr().out
    assert run(["collections", "drop-index", "handbook", "handbook", "--yes"]) != 0
    assert "searches read" in capsys.readouterr().err
    assert run(["collections", "rebuild", "handbook", "--rollback", "--wait"]) == 0
    assert "overlap" not in capsys.readouterr().out  # nothing was compared
    assert state.count("POST", "/v1/collections/handbook/rollback") == 1
    assert run(["collections", "delete", "handbook", "--yes"]) == 0
    assert capsys.readouterr().out == "Deleted handbook: 3 documents, 6 chunks.\n"
    assert not state.collections


def test_bundles_leave_no_upload_and_need_a_folder(
    state: State, capsys: Captured, tmp_path: Path
) -> None:
    bundle = tmp_path / "a.zip"
    bundle.write_bytes(b"PK")
    assert run(["collections", "import", str(bundle), "--json"]) == 0
    assert document(capsys)["kind"] == "import"
    assert not state.files
    before = len(state.jobs)
    assert run(["collections", "export", "handbook", str(tmp_path / "none" / "a.zip")]) == 2
    assert "Make it first" in capsys.readouterr().err
    assert len(state.jobs) == before, "nothing was exported in vain"


def test_documents_are_found_by_their_source(capsys: Captured) -> None:
    assert run(["documents", "-c", "handbook", "--json"]) == 0
    assert len(document(capsys)["items"]) == 3
    assert run(["documents", "show", "docs/1.md", "-c", "handbook", "--json"]) == 0
    assert document(capsys)["id"] == str(UUID(int=1))
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
    with started("collections", "--json") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait() == 141


def test_pipes_get_no_colours() -> None:
    with started("status") as running:
        out, _ = running.communicate()
    assert "\x1b" not in out
    assert "ingest\t3\t1\tpaused" in out


@pytest.mark.parametrize(
    "command",
    ["up", "down", "status", "doctor", "migrate", "ingest", "ask", "search", "jobs list",
     "jobs show", "jobs watch", "jobs cancel", "jobs retry", "collections list",
     "collections create", "collections show", "collections delete",
     "collections rebuild", "collections check", "collections export", "collections import",
     "collections adopt", "collections drop-index", "documents list",
     "documents show", "documents delete", "chat", "conversations list", "conversations show",
     "conversations erase", "models list", "models show", "models pull", "models create",
     "models delete", "hf", "jobs result", "eval", "sync", "watch", "prompts list", "prompts put",
     "schedules list", "schedules put", "schedules show", "schedules run", "schedules pause",
     "schedules resume", "schedules delete", "prompts show", "prompts versions", "prompts diff",
     "prompts rollback", "prompts render", "prompts delete"],
)  # fmt: skip
def test_every_command_has_json_and_help(command: str, capsys: Captured) -> None:
    assert run([*command.split(), "--help"]) == 0
    assert "--json" in capsys.readouterr().out


def test_a_collection_without_documents_has_no_dimension_yet(
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = {"name": "abc", "embedding_model": "m", "distance": "cosine", "dimension": None}
    with listening(answering({"/v1/collections/abc": empty})) as other:
        assert run(["collections", "show", "abc", "--url", other]) == 0
    assert "m (as yet unknown dimensions)" in capsys.readouterr().out
