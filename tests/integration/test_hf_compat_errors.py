"""What goes wrong with calls of the inference API: the status and `{"error": ...}` of that API."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError, HfHubHTTPError

from shared.config import Settings
from shared.database.transaction import Ledger, make_ledger
from shared.jobs import jobs, steps
from shared.vocabulary import State
from tests.integration.answers import stored
from tests.integration.inference import BODY, MODEL, URL, Worker, error, working


@pytest.fixture(scope="module")
def ledger(settings: Settings) -> Iterator[Ledger]:
    """One for all: each test ends the jobs that it begins."""
    ledger = make_ledger(settings)
    yield ledger
    ledger.close()


@pytest.fixture
def worker(ledger: Ledger) -> Iterator[Worker]:
    with working(ledger) as worker:
        yield worker


@pytest.mark.parametrize(
    ("type_", "status"),
    [
        ("InvalidInput", 400),
        ("WrongTask", 400),
        ("Permanent", 400),
        ("NotFound", 404),
        ("Unavailable", 503),
        ("Timeout", 504),
        ("WorkerLost", 500),
        ("Retryable", 500),
        ("ConfigurationError", 500),
        ("RuntimeError", 500),
    ],
)
def test_a_failed_job_by_its_error(
    type_: str, status: int, worker: Worker, api: httpx.Client
) -> None:
    answer = worker.refuse(lambda: api.post(URL, json=BODY), type_, "What to do.")
    assert error(answer, status) == "What to do."
    assert worker.job(answer.headers["x-sluice-job-id"]).state == State.FAILED


def test_an_unknown_model(worker: Worker, api_url: str) -> None:
    def call() -> Exception:
        with (
            InferenceClient(model=api_url + URL, timeout=30) as client,
            pytest.raises(HfHubHTTPError) as raised,
        ):
            client.summarization("A text.")
        return raised.value

    error_ = worker.refuse(call, "ModelNotFound", "Put it under SLUICE_MODELS_FOLDER.")
    assert error_.response.status_code == 404
    assert error_.server_message == (
        f"Model {MODEL} does not exist. Put it under SLUICE_MODELS_FOLDER."
    )


def test_a_cancelled_job(worker: Worker, api: httpx.Client) -> None:
    call = worker.call(lambda: api.post(URL, json=BODY))
    claim = worker.claim(call)
    with worker.ledger.begin() as session:
        jobs.cancel(session, claim.job_id)
    with worker.ledger.begin() as session:
        assert steps.abandon(session, claim)
    assert "was cancelled" in error(call.result(), 503)


FILL = f"{URL}/pipeline/fill-mask"
QA = f"{URL}/pipeline/question-answering"
SPEECH = f"{URL}/pipeline/automatic-speech-recognition"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
JSON = {"Content-Type": "application/json"}
FIELDS = {"Content-Type": "application/x-www-form-urlencoded"}


@pytest.mark.parametrize(
    ("path", "sent", "reason"),
    [
        (URL, {"content": b""}, "The body is empty"),
        (URL, {"content": b"", "headers": {"Content-Type": "audio/flac"}}, "The body is empty"),
        (URL, {"content": b'{"inputs": '}, "not valid JSON"),
        (URL, {"content": b"[", "headers": JSON}, "not valid JSON"),
        (URL, {"content": b'{"inputs": NaN}'}, "NaN"),
        (URL, {"content": b'{"inputs": "\\u0000"}'}, "NUL"),
        (URL, {"content": b"\xff", "headers": {"Content-Type": "text/plain"}}, "not UTF-8"),
        (URL, {"content": b"--b--", "headers": FORM}, "is a form"),
        (URL, {"json": True}, "The body is a boolean"),
        (URL, {"content": b"null", "headers": JSON}, "The body is null"),
        (URL, {"content": b"inputs=A+text.", "headers": FIELDS}, "The body is a form"),
        (URL, {"content": b"[MASK] opens", "headers": JSON}, "not valid JSON"),
        (FILL, {"content": b"A\0text."}, "NUL character (position 1)"),
        (URL, {"json": BODY | {"stream": True}}, "stream must be false"),
        (URL, {"json": {}}, "inputs is missing"),
        (URL, {"json": {"parameters": {}}}, "inputs is missing"),
        (URL, {"json": BODY | {"parameters": []}}, "parameters must be an object"),
        (URL, {"json": BODY | {"options": 1}}, "options must be an object"),
        (URL, {"json": BODY | {"options": {"wait_for_model": "no"}}}, "options.wait_for_model"),
        (URL, {"json": BODY, "headers": {"Idempotency-Key": "a b"}}, "Idempotency-Key"),
        (f"/models/{'x' * 2000}", {"json": BODY}, "at most 1024 characters"),
        (f"{URL}/pipeline/dancing", {"json": BODY}, "no task 'dancing'; there are summarization"),
        (f"/pipeline/dancing/{MODEL}", {"json": BODY}, "no task 'dancing'"),
        (FILL, {"json": {"inputs": " "}}, "inputs is empty"),
        (FILL, {"json": {"inputs": []}}, "inputs is an empty list"),
        (FILL, {"json": BODY | {"top_k": 0}}, "parameters.top_k"),
        (FILL, {"json": BODY | {"topk": 1}}, "it knows: top_k, targets"),
        (FILL, {"content": b"fLaC\xff"}, "not UTF-8 (byte 4)"),
        (FILL, {"content": b" \n"}, "inputs is empty"),
        (FILL, {"json": ["a", 1]}, "inputs.1 is a number"),
        (FILL, {"json": {"question": "Where?", "context": "In Seoul."}}, "inputs is missing"),
        (QA, {"json": BODY}, '"context", "question"'),
        (QA, {"json": {"question": "Where?"}}, "an object with ['question']"),
        (QA, {"json": {"query": "How many?", "table": {"a": ["1"]}}}, "inputs is missing"),
        (QA, {"content": b"Where?"}, "inputs is a string"),
        (SPEECH, {"json": {"inputs": "no base64!" * 7000}}, "this is no base64"),
        (SPEECH, {"json": {"inputs": {"file_id": "x"}}}, "ids are UUIDs"),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_at_once(
    path: str, sent: dict[str, Any], reason: str, api_url: str, settings: Settings
) -> None:
    with httpx.Client(base_url=api_url, trust_env=False) as client:
        before = stored(settings), client.get("/v1/jobs").json()["items"]
        assert reason in error(client.post(path, **sent), 400)
        assert (stored(settings), client.get("/v1/jobs").json()["items"]) == before


def test_the_hubs_client_raises_what_it_raises_for_bad_requests(api_url: str) -> None:
    with (
        InferenceClient(model=f"{api_url}{FILL}", timeout=30) as client,
        pytest.raises(BadRequestError, match="inputs is empty; give a text"),
    ):
        client.fill_mask("")


def test_paths_that_are_not_there(api: httpx.Client) -> None:
    assert "Name a model" in error(api.post("/models/", json=BODY), 404)
    unknown = {"inputs": {"file_id": str(uuid4())}}
    assert "There is no file" in error(api.post(SPEECH, json=unknown), 404)
    assert "GET is not a method" in error(api.get(URL), 405)
    assert "Name a model" in error(api.post("/pipeline/fill-mask/", json=BODY), 404)


def test_the_native_paths_keep_their_problems(api: httpx.Client) -> None:
    answer = api.post("/v1/models", json=BODY)
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_routes_are_documented(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    operations = {
        path: methods["post"] for path, methods in paths.items() if path.startswith("/models/")
    }
    chat = operations.pop("/models/{model_id}/v1/chat/completions")
    assert chat["tags"]
    assert set(operations) == {"/models/{model_id}", "/models/{model_id}/pipeline/{task}"}
    for operation in operations.values():
        assert operation["tags"] == ["compatible"]
        assert set(operation["requestBody"]["content"]) == {
            "application/json", "application/octet-stream"
        }  # fmt: skip
        errors = {
            status: response
            for status, response in operation["responses"].items()
            if status != "200"
        }
        assert set(errors) == {
            "400", "401", "403", "404", "408", "409", "413", "421", "429", "431", "500", "503",
            "504",
        }  # fmt: skip
        for response in errors.values():
            schema = response["content"]["application/json"]["schema"]
            assert schema["required"] == ["error"]
        names = {parameter["name"] for parameter in operation["parameters"]}
        assert {"model_id", "Idempotency-Key", "x-wait-for-model"} <= names
