"""A format is a module and a line: then it is ingested over HTTP and by `sluice ingest`."""

from pathlib import Path

import httpx
import pytest

from cli.main import run
from shared.formats import FORMATS, Format
from tests.integration.ingestion import CATS, TRAINS, live_texts, search
from tests.integration.job_runner import drain
from workers.attempts.process import Process

CARDS = f"{CATS}\n~\n{TRAINS}"


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Format("Toy", [".toy"], ["text/x-toy"], "tests.integration.toy_format:TOY")
    monkeypatch.setitem(FORMATS, line.name, line)


def test_over_http(api: httpx.Client, process: Process, collection: str) -> None:
    files = {"file": ("cards", CARDS.encode(), "text/x-toy")}
    uploaded = api.post("/v1/files", files=files).raise_for_status().json()
    sources = [{"type": "file", "file_id": uploaded["id"]}]
    body = {"kind": "ingest", "input": {"collection": collection, "sources": sources}}
    api.post("/v1/jobs", json=body).raise_for_status()
    drain(process)
    best = search(process, collection, "When does a train leave?", k=1)[0]
    assert best.text == TRAINS
    assert best.metadata == {"media_type": "text/x-toy", "encoding": "utf-8", "card": 2}


def test_by_the_command_line(
    api_url: str,
    process: Process,
    collection: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLUICE_URL", api_url)
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("cards").mkdir()
    Path("cards/day.toy").write_text(CARDS, encoding="utf-8")
    Path("cards/photo.png").write_bytes(b"\x89PNG")
    assert run(["ingest", "cards", "--collection", collection, "--no-wait"]) == 0
    drain(process)
    assert live_texts(process, collection) == {"cards/day.toy": [CATS, TRAINS]}
