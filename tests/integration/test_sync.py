"""`sync` through the API and a worker: what is unchanged is not touched, archives and mails too."""

import io
import zipfile
from email.message import EmailMessage
from pathlib import Path

import pytest
from sqlalchemy import text

from cli.main import run
from sluice import Client, IngestOptions, SyncReport
from tests.integration.cli_process import document
from tests.integration.ingestion import live_texts, new_collection, stores_agree
from workers.attempts.process import Process

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def process(toy_worker: Process) -> Process:
    return toy_worker


@pytest.fixture
def collection(process: Process) -> str:
    return new_collection(process, embedding_model="toy/letters")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    return tmp_path / "docs"


def packed(**texts: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in texts.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.txt"), content)
    return buffer.getvalue()


def mail(attachment: str | None) -> bytes:
    message = EmailMessage()
    message["Subject"] = "Minutes"
    message.set_content("These are the minutes.")
    if attachment is not None:
        message.add_attachment(attachment, filename="minutes.txt")
    return message.as_bytes()


def touched(report: SyncReport) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return report.added, report.replaced, report.erased


def test_archives_and_mails_that_are_unchanged_are_not_touched(
    api_url: str, process: Process, collection: str, folder: Path
) -> None:
    (folder / "a.md").write_text("Alone.")
    (folder / "b.zip").write_bytes(packed(one="First.", two="Second.", empty=""))
    (folder / "c.eml").write_bytes(mail("An attachment."))
    with Client(api_url) as client:

        def sync(**options: object) -> SyncReport:
            return client.sync(collection, ["docs"], **options)  # type: ignore[arg-type]

        report = sync()
        assert touched(report) == (("docs/a.md", "docs/b.zip", "docs/c.eml"), (), ())
        assert [error.source for error in report.errors] == ["docs/b.zip!/empty.txt"]
        names = set(live_texts(process, collection))
        assert names == {
            "docs/a.md", "docs/b.zip!/one.txt", "docs/b.zip!/two.txt", "docs/c.eml",
            "docs/c.eml!/minutes.txt",
        }  # fmt: skip
        again = sync()
        assert (touched(again), again.unchanged, again.ingest) == (((), (), ()), 3, None)

        # What somebody has erased of an archive or of a mail comes back.
        for document in client.documents(collection):
            if document.source in ("docs/b.zip!/one.txt", "docs/c.eml!/minutes.txt"):
                client.delete_document(document.id)
        assert touched(sync(dry_run=True)) == ((), ("docs/b.zip", "docs/c.eml"), ())
        assert touched(sync()) == ((), ("docs/b.zip", "docs/c.eml"), ())
        assert set(live_texts(process, collection)) == names
        assert sync().unchanged == 3

        # What is in them no longer goes.
        (folder / "b.zip").write_bytes(packed(two="Second.", three="Third."))
        (folder / "c.eml").write_bytes(mail(None))
        report = sync()
        assert touched(report) == ((), ("docs/b.zip", "docs/c.eml"), ())
        assert report.ingest is not None
        assert report.ingest.documents.erased == 2
        assert sync().unchanged == 3

        options = IngestOptions(metadata={"team": "desk"})
        assert touched(sync(options=options))[1] == ("docs/a.md", "docs/b.zip", "docs/c.eml")
        assert sync(options=options).unchanged == 3

        (folder / "b.zip").unlink()
        report = sync(max_erased_share=1)
        assert report.erased == ("docs/b.zip!/three.txt", "docs/b.zip!/two.txt")
        stores_agree(process, collection)


def test_an_archive_of_which_a_part_was_lost_is_read_again(
    api_url: str, process: Process, collection: str, folder: Path
) -> None:
    (folder / "b.zip").write_bytes(packed(one="First.", two="Second."))
    with Client(api_url) as client:
        client.sync(collection, ["docs"])
        assert client.sync(collection, ["docs"]).unchanged == 1
        with process.ledger.begin() as session:
            session.execute(text("UPDATE containers SET is_whole = false"))
        assert client.sync(collection, ["docs"]).replaced == ("docs/b.zip",)
        assert client.sync(collection, ["docs"]).unchanged == 1


def test_the_ids_of_sources_are_shown(api_url: str, process: Process, collection: str) -> None:
    with Client(api_url) as client:
        job = client.submit(
            "ingest",
            {
                "collection": collection,
                "sources": [
                    {"type": "text", "name": "note", "text": "A note.", "id": "안내-7"},
                ],
            },
        )
        job.wait().require_success()
        [document] = client.documents(collection)
        assert document.source_id == "안내-7"
        assert client.document(document.id).source_id == "안내-7"
    assert process


def test_the_command_says_what_it_could_not_do(
    api_url: str, process: Process, collection: str, folder: Path, capsys: Captured
) -> None:
    command = ["sync", "docs", "-c", collection, "--url", api_url]
    (folder / "a.md").write_text("Fine.")
    assert run([*command, "--json"]) == 0
    assert document(capsys)["added"] == ["docs/a.md"]
    # Nothing is to be sent, and yet this must not be kept quiet.
    (folder / "gone.md").symlink_to("nowhere")
    (folder / "picture.png").write_bytes(b"x")
    (folder / "deep").mkdir()
    (folder / "deep" / "up").symlink_to(folder.parent)
    assert run(command) == 1
    captured = capsys.readouterr()
    assert "0 added, 0 replaced, 0 erased, 1 unchanged, 1 failed" in captured.out
    assert "gone.md" in captured.err
    assert ".png 1" in captured.err
    assert "docs/deep/up" in captured.err
    assert run([*command, "--dry-run", "--json"]) == 1
    dry = document(capsys)
    assert (dry["left_out"], dry["unchanged"], dry["is_dry_run"]) == ({".png": 1}, 1, True)
    (folder / "gone.md").unlink()
    (folder / "a.md").rename(folder / "b.md")
    (folder / "c.md").write_text("")
    # A file that is refused is not said to be added.
    assert run([*command, "--json"]) == 1
    done = document(capsys)
    assert (done["added"], done["erased"]) == (["docs/b.md"], ["docs/a.md"])
    assert [error["source"] for error in done["errors"]] == ["docs/c.md"]
    (folder / "b.md").unlink()
    (folder / "c.md").unlink()
    (folder / "d.md").write_text("D")
    assert run(["sync", "docs/none", *command[2:]]) == 2
    assert run([*command, "--yes"]) == 0
    assert set(live_texts(process, collection)) == {"docs/d.md"}
