"""The kind `model`: models of an Ollama server pulled, created and deleted; pulls on demand."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import select

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.kinds import registry as kinds
from shared.kinds.model import ModelInput
from shared.tables import Job
from tests.integration.chats import chat_error, chat_result, submit_chat
from tests.integration.ingestion import CATS, counts, new_collection, search
from tests.integration.ingestion import order as ingest_order
from tests.integration.job_runner import drain, job_of, make_process, submit
from tests.wire.behaviour import Wire
from tests.wire.ollama_server import served_ollama
from workers.attempts.process import Process
from workers.retrieval.embed import Embedders, make_embedders


@pytest.fixture
def wire() -> Iterator[Wire]:
    with served_ollama() as wire:
        yield wire


@pytest.fixture
def process(settings: Settings, ledger: Ledger, wire: Wire) -> Iterator[Process]:  # noqa: ARG001
    process = make_process(settings, ollama_url=wire.url, ollama_pull=True)
    process.hold(make_embedders, Embedders(process.settings))
    yield process
    process.close()


def order(process: Process, action: str, name: str, **fields: Any) -> UUID:
    input_ = ModelInput.model_validate({"action": action, "name": name} | fields)
    return submit(process, kinds.MODEL, input_.model_dump(mode="json"))


def pulls(process: Process) -> list[Job]:
    with process.ledger.read() as session:
        return list(session.scalars(select(Job).where(Job.kind == "model").order_by(Job.id)))


def test_a_pull_shows_its_progress_in_bytes(process: Process, wire: Wire) -> None:
    job_id = order(process, "pull", "ollama/new")
    assert chat_result(process, job_id) == {"action": "pull", "name": "ollama/new"}
    job = job_of(process, job_id)
    assert job.progress_unit == "bytes"
    assert job.progress_done == job.progress_total
    assert job.progress_done > 0
    assert "new" in wire.models


def test_a_model_is_created_used_and_deleted(process: Process, wire: Wire) -> None:
    made = order(
        process, "create", "ollama/helper", **{"from": "tiny"},
        system="Be brief.", parameters={"temperature": 0.1, "stop": ["END"]},
    )  # fmt: skip
    chat_result(process, made)
    assert wire.models["helper"]["system"] == "Be brief."
    assert wire.models["helper"]["parameters"] == {"temperature": 0.1, "stop": ["END"]}
    assert (
        chat_result(process, submit_chat(process, "hi", model="ollama/helper"))["model"]
        == "ollama/helper"
    )
    chat_result(process, order(process, "delete", "ollama/helper"))
    assert "helper" not in wire.models


@pytest.mark.parametrize(
    ("action", "fields"),
    [("create", {"from": "nothing"}), ("delete", {}), ("pull", {})],
)
def test_what_ollama_refuses_is_reported(
    process: Process, wire: Wire, action: str, fields: dict[str, Any]
) -> None:
    wire.of("absent").refuse_times = 1 if action == "pull" else 0
    wire.of("absent").refuse_status = 400
    wire.of("absent").refuse_message = "file does not exist"
    error = chat_error(process, order(process, action, "ollama/absent", **fields))
    assert error["message"]
    assert "absent" in error["message"] or "does not exist" in error["message"]


def test_a_missing_model_is_pulled_once_for_all_who_want_it(process: Process, wire: Wire) -> None:
    ids = [submit_chat(process, f"hello {n}", model="ollama/fresh") for n in range(3)]
    drain(process)
    for n, job_id in enumerate(ids):
        job = job_of(process, job_id)
        assert job.state == "succeeded", job.error
        assert (job.result or {})["message"]["content"] == f"hello {n}"
    (pull,) = pulls(process)
    assert pull.state == "succeeded"
    assert pull.input["name"] == "ollama/fresh"
    assert len(wire.bodies("/api/pull")) == 1


def test_a_missing_model_is_pulled_for_what_embeds(process: Process, wire: Wire) -> None:
    model = "ollama/fresh"
    collection = new_collection(process, embedding_model=model)
    embedded = submit(process, kinds.EMBED, {"texts": ["a"], "model": model})
    order(process, "pull", "ollama/other")  # which nobody takes for the pull of this one
    ingested = ingest_order(process, collection, {"cats": CATS})
    drain(process)
    assert counts(process, ingested) == {"added": 1}
    assert job_of(process, embedded).state == "succeeded"
    assert [hit.source for hit in search(process, collection, CATS, k=1)] == ["cats"]
    assert [pull.input["name"] for pull in pulls(process)] == ["ollama/other", model]
    assert [body["model"] for body in wire.bodies("/api/pull")].count("fresh") == 1


def test_a_pull_that_fails_fails_who_waits_for_it(process: Process, wire: Wire) -> None:
    wire.of("gone").refuse_times = 99
    wire.of("gone").refuse_status = 400
    wire.of("gone").refuse_message = "no such model"
    error = chat_error(process, submit_chat(process, "hello", model="ollama/gone"))
    (pull,) = pulls(process)
    assert pull.state == "failed"
    assert str(pull.id) in error["message"]
