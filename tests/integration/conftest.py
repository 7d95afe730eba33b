"""A process of a worker, streams of events, and the stand-in of the API for the CLI and clients."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.database.transaction import Ledger
from shared.jobs import claims, steps
from shared.jobs.claims import Claim
from shared.vector_stores import STORES
from tests.integration import contract
from tests.integration.event_stream import EventStream
from tests.integration.fake_api import State, serving
from tests.integration.ingestion import new_collection
from tests.integration.job_runner import handlers, make_process
from tests.integration.thread_worker import running_worker
from tests.wire.behaviour import Wire
from tests.wire.ollama_server import served_ollama
from workers.attempts.process import Process
from workers.retrieval.embed import EMBEDDERS, import_embedder
from workers.retrieval.servers import import_store

Finish = Callable[[str, dict[str, Any]], Claim]


def pytest_collection_finish(session: pytest.Session) -> None:
    """What most tests import or make at first use is there before processes are forked."""
    if session.config.getoption("--processes", 0):
        handlers()
        import_embedder(DEFAULT_EMBEDDING_MODEL)
        import_store(STORES["chroma"])
        contract.document()


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings)
    yield process
    process.close()


@pytest.fixture
def process_with_store(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
) -> Iterator[Callable[[str], Process]]:
    """Makes a process whose vector store is at a URL, a value of SLUICE_VECTORS_URL."""
    with ExitStack() as made:

        def make(url: str) -> Process:
            process = make_process(settings, chroma_url=None, vectors_url=SecretStr(url))
            made.callback(process.close)
            return process

        yield make


@pytest.fixture
def collection(process: Process) -> str:
    return new_collection(process)


@pytest.fixture
def claim(ledger: Ledger) -> Callable[[str], Claim]:
    """Start the next step of a queue."""

    def start(queue: str) -> Claim:
        with ledger.begin() as session:
            next_claim = claims.claim(session, queue, worker="a test", lease_s=60)
        assert next_claim is not None, f"nothing to claim in {queue}"
        return next_claim

    return start


@pytest.fixture
def finish(ledger: Ledger, claim: Callable[[str], Claim]) -> Finish:
    """Run the next step of a queue to its end, with this result."""

    def run(queue: str, result: dict[str, Any]) -> Claim:
        next_claim = claim(queue)
        with ledger.begin() as session:
            assert steps.succeed(session, next_claim, result=result)
        return next_claim

    return run


@pytest.fixture
def toy_worker(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Process]:
    """A worker at work beside the test, which knows the embedding model `toy/letters`."""
    monkeypatch.setitem(EMBEDDERS, "toy", "tests.integration.toy_embedder:load")
    with running_worker(
        settings, threads=0, load_step_documents=50, embed_step_chunks=500
    ) as process:
        yield process


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """A server that speaks Ollama's wire format."""
    with served_ollama() as wire:
        yield wire


@pytest.fixture
def talker(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    wire: Wire,
) -> Iterator[Callable[..., Process]]:
    """Makes processes whose models are those of the server, with settings of their own."""
    wire.behaviours.clear()
    wire.requests.clear()
    made: list[Process] = []

    def make(**changes: Any) -> Process:
        made.append(make_process(settings, ollama_url=wire.url, **changes))
        return made[-1]

    yield make
    for process in made:
        process.close()


@pytest.fixture
def follow(api: httpx.Client) -> Iterator[Callable[..., EventStream]]:
    """Opens streams of jobs' events."""
    open_: list[httpx.Response] = []

    def start(job_id: str, last_event_id: str | None = None) -> EventStream:
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        request = api.build_request("GET", f"/v1/jobs/{job_id}/events", headers=headers)
        open_.append(api.send(request, stream=True))
        return EventStream(open_[-1])

    yield start
    for response in open_:
        response.close()


@pytest.fixture
def state() -> State:
    """Of the stand-in of the API."""
    return State()


@pytest.fixture
def url(state: State) -> Iterator[str]:
    """Of the stand-in of the API."""
    with serving(state) as url:
        yield url


@pytest.fixture
def cli_folder(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder to run the CLI in, which then speaks to the stand-in."""
    monkeypatch.setenv("SLUICE_URL", url)
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `localhost`, signed by itself; the file holds the key too."""
    folder = tmp_path_factory.mktemp("certificate")
    key, signed = folder / "key.pem", folder / "signed.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", signed, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    signed.write_text(signed.read_text() + key.read_text())
    return signed
