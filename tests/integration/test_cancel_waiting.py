"""Jobs that wait for another server, which says nothing: they end when they are cancelled, long
before the server's time is up."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from pydantic import SecretStr

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.kinds import registry as kinds
from shared.kinds.hf import Task
from shared.kinds.kind import Kind
from tests.integration.job_runner import (
    PATIENCE_S,
    cancel,
    drain,
    handlers,
    invariants_hold,
    job_of,
    make_process,
    submit,
)
from tests.waits import until
from tests.wire.behaviour import Wire
from tests.wire.hub import TOKEN, model_of, served_hub
from tests.wire.ollama_server import MODEL, served_ollama
from tests.wire.openai_server import served_openai
from workers.app import HF_QUEUES, handlers_of
from workers.attempts.process import Process

FOREVER_S = 10_000
HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def wires() -> Iterator[dict[str, Wire]]:
    with ExitStack() as stack:
        yield {
            "hub": stack.enter_context(served_hub()),
            "ollama": stack.enter_context(served_ollama()),
            "openai": stack.enter_context(served_openai()),
        }


@pytest.fixture
def process(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    wires: dict[str, Wire],
) -> Iterator[Process]:
    for wire in wires.values():
        wire.behaviours.clear()
        wire.requests.clear()
    process = make_process(
        settings,
        hf_hub_url=wires["hub"].url,
        hf_token=SecretStr(TOKEN),
        hf_hub_timeout_s=FOREVER_S,
        ollama_url=wires["ollama"].url,
        openai_base_url=wires["openai"].url,
        remote_read_timeout_s=FOREVER_S,
    )
    yield process
    invariants_hold(process, all_ended=True)
    process.close()


AT_THE_HUB = {
    "task": str(Task("fill-mask")), "model": model_of(Task("fill-mask")), "inputs": "a [MASK]",
    "parameters": {}, "backend": "hub",
}  # fmt: skip

WAITING: dict[str, tuple[str, str, str, Kind, dict[str, Any]]] = {
    "hub": ("hub", model_of(Task("fill-mask")), "/models/", kinds.HF, AT_THE_HUB),
    "hub, several inputs": (
        "hub", model_of(Task("fill-mask")), "/models/", kinds.HF,
        AT_THE_HUB | {"inputs": ["a [MASK]", "b [MASK]"]},
    ),
    "first byte of Ollama": (
        "ollama", MODEL, "/api/chat", kinds.CHAT, {"model": f"ollama/{MODEL}"}
    ),
    "window of Ollama": (
        "ollama", f"show {MODEL}", "/api/show", kinds.CHAT, {"model": f"ollama/{MODEL}"}
    ),
    "first byte of OpenAI": ("openai", MODEL, "/", kinds.CHAT, {"model": f"openai/{MODEL}"}),
    "pull": ("ollama", "new", "/api/pull", kinds.MODEL, {"action": "pull", "name": "ollama/new"}),
    "deletion": (
        "ollama", MODEL, "/api/delete", kinds.MODEL, {"action": "delete", "name": f"ollama/{MODEL}"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WAITING)
def test_a_job_that_waits_is_cancelled(case: str, process: Process, wires: dict[str, Wire]) -> None:
    server, silent, path, kind, input_ = WAITING[case]
    wire = wires[server]
    wire.of(silent).hang = True
    job_id = submit(process, kind, input_ | (HELLO if kind is kinds.CHAT else {}))
    table = {**handlers(), **handlers_of(HF_QUEUES)}
    worker = threading.Thread(target=drain, args=(process, table), daemon=True)
    worker.start()
    until(lambda: any(request.path.startswith(path) for request in wire.requests), "a request")
    assert worker.is_alive()

    cancel(process, job_id)
    worker.join(PATIENCE_S)

    assert not worker.is_alive()
    assert job_of(process, job_id).state == "cancelled"


def test_a_cancelled_job_leaves_its_batch_at_once(process: Process, wires: dict[str, Wire]) -> None:
    """The others of the batch go on waiting."""
    wire = wires["hub"]
    wire.of(model_of(Task("fill-mask"))).hang = True
    ids = [submit(process, kinds.HF, AT_THE_HUB) for _ in range(2)]
    worker = threading.Thread(target=drain, args=(process, handlers_of(HF_QUEUES)), daemon=True)
    worker.start()
    until(lambda: len(wire.requests) == 2, "both are asked for at once")

    cancel(process, ids[0])
    until(
        lambda: job_of(process, ids[0]).state == "cancelled",
        "it is cancelled alone",
    )
    assert worker.is_alive()
    assert job_of(process, ids[1]).state == "running"

    cancel(process, ids[1])
    worker.join(PATIENCE_S)
    assert not worker.is_alive()
