"""Jobs of the kind `model`, against a server that speaks Ollama's protocol."""

import json
import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from redis import Redis

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.kinds import registry as kinds
from shared.redis.events import EventType, stream_key
from shared.tables import Job
from shared.vocabulary import Queue
from tests.integration.job_runner import (
    PATIENCE_S,
    cancel,
    drain,
    invariants_hold,
    job_of,
    make_process,
    steps_of,
    submit,
)
from tests.waits import until
from tests.wire.behaviour import Behaviour, Wire
from tests.wire.ollama_server import LAYERS, MODEL, served_ollama
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.generation import ollama_models
from workers.generation.ollama_models import APPLY
from workers.servers.ollama import OllamaServer
from workers.servers.server import ModelMissing

TABLE = {"model.apply": APPLY}
TOTAL = sum(total for _, total in LAYERS)


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with served_ollama() as wire:
        yield wire


@pytest.fixture
def wire(server: Wire) -> Wire:
    """The server as if nothing had happened."""
    server.behaviours.clear()
    server.requests.clear()
    server.dropped = 0
    server.models.clear()
    server.models[MODEL] = {}
    return server


@pytest.fixture
def process(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    wire: Wire,
) -> Iterator[Process]:
    process = make_process(settings, ollama_url=wire.url, remote_read_timeout_s=5)
    yield process
    process.close()


def ask(process: Process, action: str, name: str = "new", **more: Any) -> UUID:
    return submit(process, kinds.MODEL, {"action": action, "name": f"ollama/{name}", **more})


def error_of(job: Job) -> dict[str, Any]:
    error: dict[str, Any] | None = job.error
    assert error is not None
    return error


def progress_of(redis_url: str, job_id: UUID) -> list[dict[str, Any]]:
    """All progress that was announced, oldest first."""
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        entries = redis.xrange(stream_key(job_id))
    return [
        json.loads(fields["data"]) for _, fields in entries if fields["type"] == EventType.PROGRESS
    ]


def test_a_pull_tells_its_progress(process: Process, wire: Wire, redis_url: str) -> None:
    wire.of("new").delay_s = 0.01
    job_id = ask(process, "pull")

    drain(process, TABLE)

    job = job_of(process, job_id)
    assert (job.state, job.result) == ("succeeded", {"action": "pull", "name": "ollama/new"})
    assert (job.progress_done, job.progress_total, job.progress_unit) == (TOTAL, TOTAL, "bytes")
    events = progress_of(redis_url, job_id)
    assert len(events) > 2
    assert [event["done"] for event in events] == sorted(event["done"] for event in events)
    assert all(event["done"] <= event["total"] for event in events)
    assert "new" in wire.models
    invariants_hold(process, all_ended=True)


def test_a_pull_that_breaks_off_goes_on_and_takes_nothing_back(
    process: Process, wire: Wire, redis_url: str
) -> None:
    wire.of("new").break_after = 5
    wire.of("new").delay_s = 0.03
    job_id = ask(process, "pull")
    run_next(process, TABLE, Queue.GENERATE)
    assert [step.state for step in steps_of(process, job_id)] == ["queued"]
    assert job_of(process, job_id).progress_done > 0

    wire.behaviours["new"] = Behaviour(delay_s=0.03)
    drain(process, TABLE)

    assert job_of(process, job_id).state == "succeeded"
    amounts = [event["done"] for event in progress_of(redis_url, job_id)]
    assert amounts == sorted(amounts)
    assert len(wire.bodies("/api/pull")) > 1


def test_a_pull_without_its_success_is_not_done(process: Process, wire: Wire) -> None:
    wire.of("new").ends_without_marker = True
    job_id = ask(process, "pull")

    drain(process, TABLE)

    job = job_of(process, job_id)
    assert job.state == "failed"
    assert "writing manifest" in error_of(job)["message"]
    assert len(wire.bodies("/api/pull")) == job.max_attempts


def test_a_model_that_nobody_has_fails_at_once(process: Process, wire: Wire) -> None:
    job_id = ask(process, "pull", "nosuchmodel")

    drain(process, TABLE)

    job = job_of(process, job_id)
    assert job.state == "failed"
    assert "nosuchmodel" in error_of(job)["message"]
    assert "ollama.com/library" in error_of(job)["message"]
    assert len(wire.bodies("/api/pull")) == 1


def test_an_error_of_the_servers_own_is_tried_again(process: Process, wire: Wire) -> None:
    wire.of("new").error_after = 3
    job_id = ask(process, "pull")

    drain(process, TABLE)

    job = job_of(process, job_id)
    assert (job.state, error_of(job)["type"]) == ("failed", "Retryable")
    assert "the runner has stopped" in error_of(job)["message"]


@pytest.mark.parametrize("fault", ["hang", "hang_after"])
def test_a_pull_that_hangs_is_cancelled(process: Process, wire: Wire, fault: str) -> None:
    setattr(wire.of("new"), fault, 4)  # For `hang`, any number is a yes.
    job_id = ask(process, "pull")
    worker = threading.Thread(target=drain, args=(process, TABLE))
    worker.start()
    until(lambda: wire.bodies("/api/pull"), "a request for the pull")

    cancel(process, job_id)
    worker.join(PATIENCE_S)

    assert not worker.is_alive()
    assert job_of(process, job_id).state == "cancelled"
    until(lambda: wire.dropped, "the connection is closed")
    invariants_hold(process, all_ended=True)


def test_a_server_that_is_down_is_waited_for(process: Process, wire: Wire) -> None:
    wire.of("new").refuse_times, wire.of("new").refuse_status = 1, 503
    job_id = ask(process, "pull")

    drain(process, TABLE)

    job = job_of(process, job_id)
    assert job.state == "succeeded"
    assert len(wire.bodies("/api/pull")) == 2


def test_a_model_is_created_from_another(process: Process, wire: Wire) -> None:
    job_id = ask(
        process, "create", "mine", **{"from": f"ollama/{MODEL}"}, system="Be brief.",
        template="{{ .Prompt }}", parameters={"temperature": 0.2, "stop": ["END"]},
    )  # fmt: skip

    drain(process, TABLE)

    assert job_of(process, job_id).state == "succeeded"
    assert wire.models["mine"] == {
        "from": MODEL, "system": "Be brief.", "template": "{{ .Prompt }}",
        "parameters": {"temperature": 0.2, "stop": ["END"]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"from": "gone"}, "file does not exist"),
        ({"from": MODEL, "parameters": {"no_such_parameter": 1}}, "no_such_parameter"),
    ],
)
def test_a_wrong_description_is_a_clear_error(
    process: Process, wire: Wire, more: dict[str, Any], words: str
) -> None:
    job_id = ask(process, "create", "mine", **more)

    drain(process, TABLE)

    job = job_of(process, job_id)
    assert (job.state, error_of(job)["type"]) == ("failed", "Permanent")
    assert words in error_of(job)["message"]
    assert "'mine'" in error_of(job)["message"]
    assert len(wire.bodies("/api/create")) == 1


def test_a_model_is_deleted(process: Process, wire: Wire) -> None:
    first = ask(process, "delete", MODEL)
    drain(process, TABLE)
    again = ask(process, "delete", MODEL)
    drain(process, TABLE)

    assert job_of(process, first).state == "succeeded"
    assert wire.models == {}
    job = job_of(process, again)
    assert job.state == "failed"
    assert MODEL in error_of(job)["message"]


def test_models_are_listed_and_shown(process: Process, wire: Wire) -> None:
    wire.models["other"] = {}
    server = OllamaServer(process.settings)
    assert ollama_models.list_models(server) == ["other", MODEL]
    assert ollama_models.show(server, MODEL).capabilities == ["completion", "tools"]
    with pytest.raises(ModelMissing):
        ollama_models.show(server, "gone")
    server.close()
