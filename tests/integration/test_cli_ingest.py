"""`sluice ingest` against a real HTTP server: uploads, resumption, refusals, interruption."""

import signal
import subprocess
import unicodedata
from pathlib import Path

import pytest

from cli.main import run
from tests.integration.cli_process import document, started
from tests.integration.fake_api import State
from tests.integration.fake_bodies import make_document
from tests.waits import until

pytestmark = pytest.mark.usefixtures("cli_folder")


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.md").write_text(f"# {number}")
    return folder


Captured = pytest.CaptureFixture[str]


def test_ingest_makes_the_collection_uploads_and_reports(
    docs: Path, state: State, capsys: Captured
) -> None:
    (docs / "photo.png").write_bytes(b"\x89PNG")
    assert run(["ingest", "docs", "--collection", "handbook"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("handbook: 5 added, 0 replaced, 0 skipped, 0 failed; 10 chunks in ")
    assert "Created the collection handbook" in err
    assert "Left out 1 file of other types (.png 1). --ocr would take some of them in." in err
    assert sorted(file["name"] for file in state.files.values()) == [
        f"docs/{number}.md" for number in range(5)
    ]
    assert state.count("POST", "/v1/jobs") == 1


def test_pictures_and_recordings_are_taken_in_where_they_are_to_be_read(
    docs: Path, state: State
) -> None:
    (docs / "photo.png").write_bytes(b"\x89PNG")
    (docs / "talk.mp3").write_bytes(b"ID3")
    options = ["--ocr-languages", "kor,eng", "--speech", "--speech-model", "openai/whisper-small"]
    assert run(["ingest", "docs", "-c", "handbook", *options]) == 0
    (job,) = state.jobs.values()
    assert job["input"]["ocr"] == {"languages": ["kor", "eng"]}
    assert job["input"]["speech"] == {"model": "openai/whisper-small"}
    names = {file["name"] for file in state.files.values()}
    assert {"docs/photo.png", "docs/talk.mp3"} <= names
    assert run(["sync", "docs", "-c", "other", "--ocr"]) == 0
    *_, job = state.jobs.values()
    assert (job["input"]["ocr"], "speech" in job["input"]) == ({}, False)


def test_one_name_that_stands_for_two_files_fails_alone(
    docs: Path, state: State, capsys: Captured
) -> None:
    for form in ("NFC", "NFD"):
        (docs / unicodedata.normalize(form, "출입 규정.md")).write_text(form)
    (docs / "around").symlink_to("..")
    assert run(["ingest", "docs", "--collection", "handbook"]) == 1
    out, err = capsys.readouterr()
    assert "5 added, 0 replaced, 0 skipped, 1 failed" in out
    assert "Failed: docs/출입 규정.md stands for two files" in err
    assert "NFD" in err
    assert "Left out 1 link to folders around them (docs/around)." in err
    assert len(state.files) == 5
    for number in range(5):
        (docs / f"{number}.md").unlink()
    assert run(["ingest", "docs", "--collection", "handbook"]) != 0
    assert "stands for two files" in capsys.readouterr().err


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
    counts = {name: count for name, count in report["documents"].items() if count}
    assert counts == {"added": 4, "failed": 4}
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
    assert "Failed: empty.txt is empty." in capsys.readouterr().err
    assert not state.jobs


def test_only_twenty_errors_are_shown(docs: Path, state: State, capsys: Captured) -> None:
    state.job_errors = [{"source": f"docs/{n}.md", "message": "bad"} for n in range(25)]
    assert run(["ingest", str(docs), "-c", "handbook"]) == 1
    err = capsys.readouterr().err
    assert err.count("Failed: ") == 20
    assert "and 5 more; --json lists all" in err


@pytest.mark.usefixtures("docs")
def test_options_reach_the_job_and_only_those(state: State, capsys: Captured) -> None:
    args = "--splitter token --chunk-size 64 --on-existing skip --lane bulk --no-wait"
    meta = ["--metadata", "year=2024", "--metadata", "draft=false", "--metadata", 'n="7"']
    columns = ["--content-columns", 'title,"a, b"', "--content-fields", "title,author.name"]
    columns += ["--metadata-fields", "id", "--whole-pages"]
    assert run(["ingest", "docs/0.md", "-c", "handbook", *args.split(), *meta, *columns]) == 0
    [job] = state.jobs.values()
    sources = job["input"].pop("sources")
    assert [state.files[source["file_id"]]["name"] for source in sources] == ["docs/0.md"]
    assert job["lane"] == "bulk"
    assert job["input"] == {
        "collection": "handbook",
        "on_existing": "skip",
        "splitter": {"type": "token", "chunk_size": 64},
        "csv": {"content_columns": ["title", "a, b"]},
        "json": {"content_fields": ["title", "author.name"], "metadata_fields": ["id"]},
        "html": {"main_content": False},
        "metadata": {"year": 2024, "draft": False, "n": "7"},
    }
    assert capsys.readouterr().out == f"{job['id']}\n"


def test_standard_input_is_a_text_document(state: State) -> None:
    args = ("ingest", "-", "-c", "handbook", "--name", "note")
    with started(*args, stdin=subprocess.PIPE) as running:
        running.communicate("안녕하세요")
    assert running.returncode == 0
    [job] = state.jobs.values()
    assert job["input"]["sources"] == [{"type": "text", "text": "안녕하세요", "name": "note"}]


def test_interrupting_the_wait_leaves_the_job_and_says_how_to_go_on(
    docs: Path, state: State
) -> None:
    state.outcome = "running"
    with started("ingest", str(docs), "-c", "handbook") as running:
        until(lambda: state.last_event_ids, "the wait follows the events")
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    [job_id] = state.jobs
    state.jobs[job_id]["state"] = "cancelled"
    assert running.returncode == 130
    assert out == ""
    assert f"sluice jobs watch {job_id}" in err
    assert f"sluice jobs cancel {job_id}" in err


def test_interrupting_the_uploads_ends_at_once_and_says_how_to_go_on(
    docs: Path, state: State
) -> None:
    state.held_uploads = True
    with started("ingest", str(docs), "-c", "handbook", "--json") as running:
        until(lambda: state.files, "an upload")
        running.send_signal(signal.SIGINT)
        # Far less than the client's patience with the uploads that hang.
        out, err = running.communicate(timeout=120)
    state.held_uploads = False
    assert running.returncode == 130
    assert out == ""
    assert "Run the same command again" in err
    assert not state.jobs


def test_a_connection_that_breaks_is_tried_again(docs: Path, state: State) -> None:
    state.broken_uploads = 2
    assert run(["ingest", str(docs), "-c", "handbook"]) == 0
    assert len(state.files) == 5


def test_a_file_that_breaks_every_connection_is_an_entry(
    docs: Path, state: State, capsys: Captured
) -> None:
    state.broken_uploads = 3
    assert run(["ingest", str(docs / "0.md"), "-c", "handbook", "--json"]) == 1
    [error] = document(capsys)["errors"]
    assert "may be too large" in error["message"]


# Names


@pytest.fixture
def company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`company/web/page.html` and `company/a.md`, seen from the folder above."""
    web = tmp_path / "company" / "web"
    web.mkdir(parents=True)
    (web / "page.html").write_text("<p>hello")
    (web.parent / "a.md").write_text("# a")
    monkeypatch.chdir(tmp_path)
    return web.parent


def live(state: State) -> None:
    """What has been ingested is in the collection."""
    state.documents = [
        {**make_document("handbook", number), "source": file["name"], "sha256": file["sha256"]}
        for number, file in enumerate(state.files.values())
    ]


@pytest.mark.parametrize(
    "argument",
    [
        "company",
        "company/web",
        "company/web/page.html",
        "company/**/*.html",
        "./company/../company",
    ],
)
@pytest.mark.parametrize("root", ["company", ".", "{absolute}"])
def test_with_a_root_a_file_has_one_name(
    argument: str, root: str, company: Path, state: State
) -> None:
    root = root.format(absolute=company)
    assert run(["ingest", argument, "-c", "handbook", "--root", root]) == 0
    names = {file["name"] for file in state.files.values()}
    assert ("web/page.html" if root != "." else "company/web/page.html") in names


def test_the_root_may_be_above_the_folder_that_one_is_in(
    company: Path, state: State, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(company / "web")
    assert run(["ingest", "page.html", "-c", "handbook", "--root", ".."]) == 0
    assert [file["name"] for file in state.files.values()] == ["web/page.html"]
    assert run(["ingest", "../a.md", "-c", "handbook", "--root", "."]) == 2
    assert "is not below the root" in capsys.readouterr().err
    assert run(["ingest", "page.html", "-c", "handbook", "--root", "nowhere"]) == 2


@pytest.mark.usefixtures("company")
def test_the_same_file_under_another_name_is_warned_of(state: State, capsys: Captured) -> None:
    assert run(["ingest", "company", "-c", "handbook", "--json"]) == 0
    assert document(capsys)["duplicates"] == []
    live(state)
    assert run(["ingest", "company/web", "-c", "handbook", "--json"]) == 0
    assert document(capsys)["duplicates"] == []  # it has the same name
    other = ["ingest", "company/web", "--root", "company", "-c", "handbook"]
    assert run([*other, "--json"]) == 0
    again = document(capsys)
    duplicate = {"source": "web/page.html", "other": "company/web/page.html"}
    assert again["duplicates"] == [duplicate]
    assert run(other) == 0
    error = capsys.readouterr().err
    assert "web/page.html is company/web/page.html" in error
    assert "--root" in error


@pytest.mark.usefixtures("company")
def test_the_same_name_or_a_name_that_is_not_live_is_no_duplicate(
    state: State, capsys: Captured
) -> None:
    assert run(["ingest", "company", "-c", "handbook"]) == 0
    live(state)
    capsys.readouterr()
    assert run(["ingest", "company", "-c", "handbook", "--json"]) == 0
    assert document(capsys)["duplicates"] == []
    assert state.count("GET", "/v1/collections/handbook/documents") == 0
    state.documents = state.documents[:1]
    state.documents[0]["source"] = "elsewhere.md"
    state.documents[0]["sha256"] = "0" * 64
    assert run(["ingest", "company/web", "-c", "handbook", "--json"]) == 0
    assert document(capsys)["duplicates"] == []
