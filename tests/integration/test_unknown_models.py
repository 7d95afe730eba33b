"""Jobs whose model is nowhere, or is a folder that jobs may not read: each ends at its first
attempt, and says what to do."""

from collections.abc import Iterator

import huggingface_hub.constants
import pytest

from shared.config import Settings
from shared.documents import collections
from shared.kinds import registry as kinds
from shared.kinds.ingest import IngestInput
from shared.kinds.kind import Kind
from shared.redis.events import stream_key
from shared.tables import Job
from tests.integration.job_runner import drain, invariants_hold, job_of, make_process, submit
from workers.attempts.process import Process
from workers.retrieval.embed import Embedders, make_embedders

UNKNOWN = "own/unknown"


@pytest.fixture
def worker(
    settings: Settings, process: Process, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Process]:
    """A worker that reaches no hub."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    mine = make_process(settings, "alone")
    mine.hold(make_embedders, Embedders(mine.settings))
    yield mine
    mine.close()
    invariants_hold(process, all_ended=True)


def ended(worker: Process, kind: Kind, model: str) -> Job:
    """A job of the kind with the model, run to its end in one step, or two where it has to load a
    document first."""
    if kind is kinds.EMBED:
        job_id = submit(worker, kind, {"texts": ["a"], "model": model})
    elif kind is kinds.HF:
        input_ = {"task": "fill-mask", "model": model, "inputs": "a", "parameters": {},
                  "backend": "local"}  # fmt: skip
        job_id = submit(worker, kind, input_)
    else:
        name = f"of-{model.encode().hex()}"
        with worker.ledger.begin() as session:
            collections.put(session, name, collections.Spec(embedding_model=model))
        source = {"type": "text", "text": "a", "name": "a"}
        request = IngestInput.model_validate({"collection": name, "sources": [source]})
        input_ = request.model_dump(mode="json")
        job_id = submit(worker, kind, input_)
    assert drain(worker) <= (3 if kind is kinds.INGEST else 1)
    return job_of(worker, job_id)


KINDS = [kinds.EMBED, kinds.HF, kinds.INGEST]


def message_of(job: Job) -> str:
    assert job.attempt in (0, 1)
    if job.kind == kinds.INGEST.name:
        [error] = job.result["errors"]
        return str(error["message"])
    assert job.error is not None
    return str(job.error["message"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_nowhere_where_there_is_no_hub(worker: Process, kind: Kind) -> None:
    job = ended(worker, kind, UNKNOWN)
    message = message_of(job)
    events = worker.ledger.events.redis.xrange(stream_key(job.id))
    assert events
    assert "loading_model" not in str(events), "nothing is being loaded"
    assert f"There is no model {UNKNOWN!r} on this machine, and the hub cannot be" in message
    assert f"{worker.settings.models_path / UNKNOWN} (SLUICE_MODELS_FOLDER)" in message
    assert "SLUICE_EMBEDDING_MODEL" not in message
    if job.error is not None:
        assert job.error["type"] == "ModelNotFound"


@pytest.mark.parametrize("kind", KINDS)
def test_folders_outside_of_those_of_models_are_refused_alike(worker: Process, kind: Kind) -> None:
    messages = {
        message_of(ended(worker, kind, model)).replace(repr(model), "MODEL")
        for model in ("/etc", "/no/such", "../..", "~root")
    }
    [message] = messages
    assert "SLUICE_MODELS_EXTRA_FOLDERS" in message
