"""`sluice watch` as a process: what the collection has follows what the folder has."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli.main import run
from tests.e2e.processes import until
from tests.integration.cli_process import ROOT
from tests.integration.ingestion import live_texts, new_collection
from workers.attempts.process import Process


class ApiPort:
    """A port that leads to the API while it is open; else connections are turned away."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._inner = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.is_open = True
        self.turned_away = 0
        self._ends: set[socket.socket] = set()
        self._carriers: list[threading.Thread] = []
        self._server = threading.Thread(target=self._serve, daemon=True)
        self._server.start()

    def _serve(self) -> None:
        while True:
            try:
                outer, _ = self._listener.accept()
            except OSError:
                return
            if not self.is_open:
                self.turned_away += 1
                outer.close()
                continue
            inner = socket.create_connection(self._inner)
            self._ends |= {outer, inner}
            for ends in ((outer, inner), (inner, outer)):
                carrier = threading.Thread(target=self._carry, args=ends, daemon=True)
                carrier.start()
                self._carriers.append(carrier)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while block := source.recv(2**16):
                target.sendall(block)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        source.close()

    def shut(self) -> None:
        self.is_open = False
        for end in list(self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._server.join()
        self.shut()
        for carrier in self._carriers:
            carrier.join()


@pytest.fixture
def process(toy_worker: Process) -> Process:
    return toy_worker


@pytest.fixture
def collection(process: Process) -> str:
    return new_collection(process, embedding_model="toy/letters")


@contextmanager
def watching(
    folder: Path, collection: str, url: str, *options: str
) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """The command, and the file of what it says."""
    said = folder / "said"
    with (
        said.open("w") as log,
        subprocess.Popen(
            [sys.executable, "-m", "cli.main", "watch", "docs", "-c", collection, "--url", url,
             *options],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, text=True,
        ) as command,
    ):  # fmt: skip
        try:
            yield command, said
        finally:
            if command.poll() is None:
                command.kill()


def test_the_collection_follows_the_folder(
    api_url: str, process: Process, collection: str, tmp_path: Path
) -> None:
    docs, beside = tmp_path / "docs", tmp_path / "beside"
    docs.mkdir()
    beside.mkdir()
    (docs / "a.md").write_text("a")
    (docs / "b.md").write_text("b")

    def follows(**texts: str) -> None:
        expected = {f"docs/{name.replace('__', '/')}.md": [text] for name, text in texts.items()}
        until(lambda: live_texts(process, collection) == expected, f"it has {sorted(expected)}", 60)

    with (
        closing(ApiPort(api_url)) as port,
        watching(tmp_path, collection, port.url) as (command, said),
    ):
        follows(a="a", b="b")
        (docs / "c.md").write_text("created")
        for n in range(50):  # a burst of saves
            (docs / "a.md").write_text(f"saved {n}")
        # As editors do: written beside, and renamed over the old one.
        (docs / ".b.md.swp").write_text("renamed over")
        (docs / ".b.md.swp").replace(docs / "b.md")
        follows(a="saved 49", b="renamed over", c="created")
        (docs / "c.md").rename(docs / "d.md")
        follows(a="saved 49", b="renamed over", d="created")
        (docs / "d.md").unlink()
        # A folder that is moved in is watched from then on.
        (beside / "deep").mkdir()
        (beside / "deep" / "e.md").write_text("moved in")
        (beside / "deep" / "f.md").write_text("with it")
        (beside / "deep").rename(docs / "deep")
        top = {"a": "saved 49", "b": "renamed over"}
        deep = {"deep__e": "moved in", "deep__f": "with it"}
        follows(**top, **deep)
        (docs / "deep" / "g.md").write_text("created within")
        follows(**top, **deep, deep__g="created within")

        # Too much vanishes at once: nothing goes, until it is back.
        (docs / "deep").rename(beside / "deep")
        until(lambda: "--yes" in said.read_text(), "it says that too much has vanished", 60)
        assert len(live_texts(process, collection)) == 5
        (beside / "deep" / "g.md").unlink()
        (beside / "deep").rename(docs / "deep")
        follows(**top, **deep)

        # The API is away for a while.
        port.shut()
        (docs / "a.md").write_text("meanwhile")
        until(lambda: port.turned_away, "it has missed the API", 60)
        (docs / "h.md").write_text("and this")
        port.is_open = True
        follows(a="meanwhile", b="renamed over", **deep, h="and this")

        # The folder itself becomes another one.
        shutil.copytree(docs, tmp_path / "copy")
        docs.rename(beside / "docs")
        (tmp_path / "copy").rename(docs)
        (docs / "b.md").write_text("in the copy")
        follows(a="meanwhile", b="in the copy", **deep, h="and this")

        command.send_signal(signal.SIGINT)
        assert command.wait(60) == 0
        assert "Ended" in said.read_text()


def test_a_single_file_is_followed_though_its_editor_renames(
    api_url: str, process: Process, collection: str, tmp_path: Path
) -> None:
    (tmp_path / "docs").write_text("no suffix")

    def becomes(text: str) -> None:
        until(lambda: live_texts(process, collection) == {"docs": [text]}, text, 60)

    with watching(tmp_path, collection, api_url):
        becomes("no suffix")
        for text in ("once", "again"):
            (tmp_path / "new").write_text(text)
            (tmp_path / "new").replace(tmp_path / "docs")
            becomes(text)


def test_what_is_wrong_at_first_ends_it(api_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["watch", "nowhere", "-c", "c", "--url", api_url]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert run(["watch", "https://example.org/", "-c", "c", "--url", api_url]) == 2
    assert "cannot be watched" in capsys.readouterr().err
