"""Fetching models from a hub that counts what it sends."""

import json
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import close_session, constants

from shared.config import Settings
from shared.errors import ModelNotFound
from shared.kinds.hf import Task
from tests.models.checkpoints import save
from tests.models.model_finder import Locator, locator
from tests.waits import until
from tests.wire.hub_files import BLOCK_BYTES, TOKEN, Shelf, served_files
from workers.models.locate import locate

WHOLE = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
LEFT_OUT = {
    "flax_model.msgpack": b"x",
    "model.fp16.safetensors": b"x",
    "onnx/model.onnx": b"x",
    "own.py": b"raise SystemExit",
    "pytorch_model.bin": b"x",
    "tf_model.h5": b"x",
}

_versions = count()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its weights go out in several blocks."""
    folder = save(
        tmp_path_factory.mktemp("hub") / "model", "fill_mask", max_position_embeddings=4096
    )
    assert (folder / "model.safetensors").stat().st_size > 2 * BLOCK_BYTES
    return folder


@pytest.fixture(scope="module")
def running() -> Iterator[Shelf]:
    with served_files() as shelf:
        yield shelf


@pytest.fixture
def shelf(running: Shelf, checkpoint: Path) -> Iterator[Shelf]:
    """A hub that has `own/fill` in a version of this test's own, and has been asked nothing."""
    running.repositories.clear()
    running.gated.clear()
    running.behaviours.clear()
    running.gets.clear()
    running.sending.clear()
    running.put("own/fill", checkpoint)
    version = str(next(_versions)).encode()
    running.repositories["own/fill"] |= LEFT_OUT | {".gitattributes": version}
    yield running
    running.open.set()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def process(running: Shelf, home: Path) -> Iterator[Locator]:
    with locator(home, running.environment(home / "hf")) as worker:
        yield worker


@pytest.fixture
def worker(process: Locator, home: Path) -> Locator:
    """The process, with nothing in its cache."""
    shutil.rmtree(home / "hf", ignore_errors=True)
    return process


def sent(shelf: Shelf, model: str = "own/fill") -> dict[str, int]:
    return {
        name.removeprefix(f"{model}/"): count
        for name, count in shelf.gets.items()
        if name.startswith(model)
    }


def test_a_model_is_fetched_once(shelf: Shelf, worker: Locator, checkpoint: Path) -> None:
    answer = worker.ask("own/fill", Task("fill-mask"))
    folder = Path(answer["folder"])
    for path in checkpoint.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert sent(shelf) == dict.fromkeys(WHOLE, 1)
    shelf.gets.clear()
    assert worker.ask("own/fill", Task("fill-mask")) == answer
    assert not shelf.gets


def test_a_model_that_generates_text_is_fetched_alike(
    shelf: Shelf, worker: Locator, checkpoint: Path
) -> None:
    """Whatever its task is said to be, for the operator has named it."""
    shelf.put("own/chat", checkpoint)
    shelf.repositories["own/chat"] |= LEFT_OUT
    answer = worker.ask("own/chat", generates=True)
    assert (Path(answer["folder"]) / "model.safetensors").is_file()
    assert sent(shelf, "own/chat") == dict.fromkeys(WHOLE, 1)
    shelf.gets.clear()
    assert worker.ask("own/chat", generates=True) == answer
    assert not shelf.gets
    settings = {"generation_trust_remote_code": True}
    worker.ask("own/chat", generates=True, settings=settings)
    assert sent(shelf, "own/chat") == {"own.py": 1}


def test_two_processes_fetch_a_model_once(
    shelf: Shelf, worker: Locator, running: Shelf, home: Path, tmp_path: Path
) -> None:
    with locator(home, running.environment(home / "hf")) as other:
        shelf.open.clear()
        worker.send("own/fill")
        assert shelf.sending.wait(120)
        other.send("own/fill", waits=str(tmp_path / "waits"))
        until((tmp_path / "waits").exists, "the other waits")
        shelf.open.set()
        first, second = worker.receive(), other.receive()
    assert first == second
    assert sent(shelf) == dict.fromkeys(WHOLE, 1)
    # Looked up and described by the first; who waits asks the hub nothing.
    assert shelf.gets["description of own/fill"] == 2


def test_pickled_weights_are_fetched_where_there_are_no_others(
    shelf: Shelf, worker: Locator
) -> None:
    del shelf.repositories["own/fill"]["model.safetensors"]
    worker.ask("own/fill")
    assert set(sent(shelf)) == WHOLE - {"model.safetensors"} | {"pytorch_model.bin"}


def test_modules_of_a_sentence_model_are_fetched(shelf: Shelf, worker: Locator) -> None:
    paths = ["", "1_Pooling", "2_Dense"]
    modules = [{"idx": n, "name": str(n), "path": p, "type": "x"} for n, p in enumerate(paths)]
    files = {
        "modules.json": json.dumps(modules).encode(),
        "1_Pooling/config.json": b"{}",
        "2_Dense/model.safetensors": b"x",
        "2_Dense/pytorch_model.bin": b"x",
        "openvino/openvino_model.xml": b"x",
    }
    shelf.repositories["own/fill"] |= files
    worker.ask("own/fill", Task("sentence-similarity"))
    fetched = set(sent(shelf))
    assert fetched == WHOLE | set(files) - {"2_Dense/pytorch_model.bin"} - {
        "openvino/openvino_model.xml"
    }


def test_no_weights_are_fetched_for_another_task(shelf: Shelf, worker: Locator) -> None:
    refused = worker.ask("own/fill", Task("summarization"))
    assert refused["error"] == "WrongTask"
    assert "own/fill is a model for fill-mask" in refused["message"]
    assert set(sent(shelf)) == {"config.json"}


@pytest.mark.parametrize(
    ("left_away", "message"),
    [
        ({"model.safetensors", "pytorch_model.bin"}, "has only flax_model.msgpack"),
        ({"config.json"}, "has no config.json on the hub"),
    ],
)
def test_what_is_no_model_is_refused(
    shelf: Shelf, worker: Locator, left_away: set[str], message: str
) -> None:
    for name in left_away:
        del shelf.repositories["own/fill"][name]
    refused = worker.ask("own/fill")
    assert refused["error"] == "Permanent"
    assert message in refused["message"]
    assert set(sent(shelf)) <= {"config.json"}


def test_a_model_that_is_nowhere_is_reported(shelf: Shelf, worker: Locator, home: Path) -> None:
    del shelf
    missing = worker.ask("no/such")
    assert missing["error"] == "ModelNotFound"
    assert "There is no model 'no/such' on this machine or the hub" in missing["message"]
    assert f"{home}/models/no/such (SLUICE_MODELS_FOLDER)" in missing["message"]


def test_a_gated_model_needs_a_token(shelf: Shelf, worker: Locator) -> None:
    shelf.gated.add("own/fill")
    refused = worker.ask("own/fill")
    assert refused["error"] == "Permanent"
    assert "own/fill is gated" in refused["message"]
    assert "HF_TOKEN" in refused["message"]
    assert "folder" in worker.ask("own/fill", token=TOKEN)


def test_a_wrong_token_is_reported(shelf: Shelf, worker: Locator) -> None:
    del shelf
    refused = worker.ask("own/fill", token="hf_of_nobody")
    assert refused["error"] == "Permanent"
    assert "HF_TOKEN" in refused["message"]
    assert "hf_of_nobody" not in refused["message"]


def test_a_hub_that_is_busy_is_asked_later(shelf: Shelf, worker: Locator) -> None:
    behaviour = shelf.of("own/fill")
    behaviour.refuse_times, behaviour.refuse_status, behaviour.retry_after = 1000, 429, "7"
    refused = worker.ask("own/fill")
    assert refused["error"] == "Unavailable"
    assert refused["retry_after_s"] == 7


def test_who_waits_can_be_cancelled(
    shelf: Shelf, worker: Locator, running: Shelf, home: Path, tmp_path: Path
) -> None:
    """One that downloads, and one that waits for the other's download."""
    stop = tmp_path / "stop"
    with locator(home, running.environment(home / "hf")) as other:
        shelf.open.clear()
        other.send("own/fill")
        assert shelf.sending.wait(120)
        stop.touch()
        waiting = worker.ask("own/fill", stop=str(stop), stopped_by="Cancelled")
        assert waiting["error"] == "Cancelled"
        shelf.open.set()
        assert "folder" in other.receive()
    assert sent(shelf) == dict.fromkeys(WHOLE, 1)


def test_a_download_is_given_up_with_its_job(shelf: Shelf, worker: Locator, tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    shelf.open.clear()
    worker.send("own/fill", stop=str(stop), stopped_by="Cancelled")
    assert shelf.sending.wait(120)
    stop.touch()
    assert worker.receive()["error"] == "Cancelled"
    shelf.open.set()
    stop.unlink()
    assert "folder" in worker.ask("own/fill")
    assert sent(shelf)["model.safetensors"] == 2, "the first one was thrown away"


def test_a_long_download_goes_on_behind_its_step(
    shelf: Shelf, worker: Locator, tmp_path: Path
) -> None:
    stop = tmp_path / "stop"
    shelf.open.clear()
    worker.send("own/fill", stop=str(stop), stopped_by="SoftTimeLimitExceeded")
    assert shelf.sending.wait(120)
    stop.touch()
    late = worker.receive()
    assert late["error"] == "Unavailable"
    assert "still being downloaded" in late["message"]
    shelf.open.set()
    assert "folder" in worker.ask("own/fill")
    assert sent(shelf) == dict.fromkeys(WHOLE, 1)


def test_a_broken_download_is_mended(shelf: Shelf, worker: Locator) -> None:
    """As an attempt leaves it that was killed: described, and without weights."""
    folder = Path(worker.ask("own/fill")["folder"])
    weights = folder / "model.safetensors"
    weights.resolve().unlink()
    weights.unlink()
    assert worker.ask("own/fill") == {"folder": str(folder)}
    assert weights.is_file()
    assert sent(shelf) == dict.fromkeys(WHOLE, 1) | {"model.safetensors": 2}


def test_without_a_hub_the_cache_serves(
    shelf: Shelf, worker: Locator, running: Shelf, home: Path
) -> None:
    answer = worker.ask("own/fill")
    shelf.gets.clear()
    away = running.environment(home / "hf") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    with locator(home, away) as alone:
        assert alone.ask("own/fill") == answer
        missing = alone.ask("own/other")
    assert missing["error"] == "ModelNotFound"
    assert "SLUICE_MODELS_FOLDER" in missing["message"]
    assert shelf.gets == Counter()


@contextmanager
def answering(status: int, headers: dict[str, str], body: bytes) -> Iterator[tuple[str, list[str]]]:
    """The URL of a gateway that answers so to all, and what it was asked."""
    requests: list[str] = []

    class Gateway(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_CONNECT = do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Gateway) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", requests
        server.shutdown()


@contextmanager
def silent(*, accepts: bool) -> Iterator[str]:
    """The URL of a port where nothing is answered, or not even a connection is made."""
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port = server.getsockname()[1]
        for _ in range(0 if accepts else 8):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
        yield f"http://127.0.0.1:{port}"


IMPATIENT = {"hub_connect_timeout_s": 0.3, "hub_answer_timeout_s": 0.3}


Away = Callable[..., str]


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Away]:
    """Returns the message about an unknown model where the hub is away."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)

    def look(endpoint: str, proxies: dict[str, str] | None = None, **settings: Any) -> str:
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        for name, url in (proxies or {}).items():
            monkeypatch.setenv(name, url)
        close_session()  # which knows the proxies of before
        chosen = Settings(_env_file=None, home=tmp_path, **settings)

        def on_known() -> None:
            raise AssertionError("nothing is there to be loaded")

        with pytest.raises(ModelNotFound) as caught:
            locate("own/unknown", chosen, task=None, on_known=on_known)
        message = caught.value.message
        assert "There is no model 'own/unknown' on this machine, and the hub cannot be" in message
        assert f"{chosen.models_path}/own/unknown (SLUICE_MODELS_FOLDER)" in message
        assert "HF_ENDPOINT" in message
        return message

    yield look
    close_session()


@pytest.mark.parametrize(
    ("endpoint", "message"),
    [
        ("http://127.0.0.1:9", "127.0.0.1:9: "),
        ("https://127.0.0.1:9", "127.0.0.1:9: "),
        ("https://hub.invalid", "hub.invalid"),
    ],
)
def test_an_unknown_model_is_missing_where_nothing_listens(
    endpoint: str, message: str, unreachable: Away
) -> None:
    assert message in unreachable(endpoint)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", [502, 503, 504])
def test_an_unknown_model_is_missing_behind_a_proxy_that_reaches_nothing(
    scheme: str, status: int, unreachable: Away
) -> None:
    with answering(status, {}, b"<h1>Bad Gateway</h1>") as (proxy, requests):
        message = unreachable(f"{scheme}://hub.invalid", {f"{scheme}_proxy": proxy})
        assert str(status) in message
    # Once for the model; the library looks for a list of its own beside it.
    assert len([request for request in requests if "agent-harnesses" not in request]) <= 2
    assert len([request for request in requests if "own/unknown" in request]) == (scheme == "http")


def test_a_proxy_that_is_away_is_named(unreachable: Away) -> None:
    message = unreachable("https://hub.invalid", {"https_proxy": "127.0.0.1:9"})
    assert "the proxy 127.0.0.1:9" in message


@pytest.mark.parametrize(("status", "type_"), [(200, "text/html"), (200, "application/json")])
def test_a_gateway_that_answers_for_the_hub_is_no_hub(
    status: int, type_: str, unreachable: Away
) -> None:
    with answering(status, {"Content-Type": type_}, b"<h1>Please sign in</h1>") as (url, _):
        unreachable(url)


@pytest.mark.parametrize("accepts", [True, False])
def test_silence_is_waited_for_as_long_as_a_setting_says(accepts: bool, unreachable: Away) -> None:
    """Whether the connection itself is silent is up to the kernel's own queue."""
    with silent(accepts=accepts) as url:
        message = unreachable(url, **IMPATIENT)
    assert "timed out" in message or "CONNECT_TIMEOUT_S" in message


@pytest.mark.parametrize("status", [401, 404])
def test_a_hub_that_does_not_know_a_model_is_asked_once(
    status: int, shelf: Shelf, worker: Locator
) -> None:
    behaviour = shelf.of("own/fill")
    behaviour.refuse_times, behaviour.refuse_status = 1, status
    behaviour.refuse_code = None
    missing = worker.ask("own/fill")
    assert missing["error"] == "ModelNotFound"
    assert behaviour.refuse_times == 0
    assert not shelf.gets


def test_a_slow_download_is_announced_and_waited_for(
    shelf: Shelf, worker: Locator, tmp_path: Path
) -> None:
    """The times for the hub to be reached and to answer are not those of a download."""
    shelf.open.clear()
    marker, waits = tmp_path / "marker", tmp_path / "waits"
    worker.send("own/fill", marker=str(marker), waits=str(waits))
    assert shelf.sending.wait(30)
    until(marker.exists, "the model is found")
    waits.unlink()
    until(waits.exists, "it says that it waits")
    shelf.open.set()
    assert "folder" in worker.receive()


def test_an_outage_in_the_middle_of_a_known_model_passes(
    shelf: Shelf, worker: Locator, running: Shelf, home: Path
) -> None:
    """As an attempt leaves it that was killed: described, and without weights."""
    folder = Path(worker.ask("own/fill")["folder"])
    weights = folder / "model.safetensors"
    weights.resolve().unlink()
    weights.unlink()
    away = running.environment(home / "hf") | {"HF_ENDPOINT": "http://127.0.0.1:9"}
    shelf.gets.clear()
    with locator(home, away) as alone:
        late = alone.ask("own/fill")
    assert late["error"] == "Retryable"
    assert "The hub cannot be reached for own/fill" in late["message"]
    assert "folder" in worker.ask("own/fill")


def test_weights_that_are_too_large_are_not_fetched(shelf: Shelf, worker: Locator) -> None:
    shelf.repositories["own/fill"]["model.safetensors"] = bytes(3 * 2**20)
    refused = worker.ask("own/fill", settings={"hf_cache_mib": 1})
    assert refused["error"] == "Permanent"
    assert "take 3 MiB" in refused["message"]
    assert "1 MiB (SLUICE_HF_CACHE_MIB)" in refused["message"]
    assert "model.safetensors" not in sent(shelf)


def test_offline_the_cache_serves(
    shelf: Shelf, worker: Locator, running: Shelf, home: Path
) -> None:
    answer = worker.ask("own/fill")
    shelf.gets.clear()
    # As other programs leave it, which list no trees.
    shutil.rmtree(Path(answer["folder"]).parent.parent / "trees")
    with locator(home, running.environment(home / "hf") | {"HF_HUB_OFFLINE": "1"}) as alone:
        assert alone.ask("own/fill") == answer
        missing = alone.ask("own/other")
    assert missing["error"] == "ModelNotFound"
    assert "HF_HUB_OFFLINE is set" in missing["message"]
    assert not shelf.gets
