"""Keys, sizes, full queues and impatience, as callers of the inference API meet them."""

from collections.abc import Iterator
from uuid import UUID

import httpx
import pytest
from huggingface_hub import InferenceClient
from pydantic import SecretStr

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.vocabulary import State
from tests.api_server import served
from tests.integration.answers import stored
from tests.integration.inference import BODY, MODEL, SUMMARY, URL, Worker, error, working

KIB = 1024
FILL = f"{URL}/pipeline/fill-mask"


@pytest.fixture
def worker(ledger: Ledger) -> Iterator[Worker]:
    with working(ledger) as worker:
        yield worker


KEYS = {"ann": SecretStr("s3cret"), "bob": SecretStr("other")}


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    changes = {
        "api_keys": KEYS,
        "max_file_bytes": 240 * KIB,
        "max_body_bytes": 100 * KIB,
        "queue_limit_steps": 2,
        "queue_full_retry_after_s": 7,
        "compat_wait_s": 0.3,
    }
    with served(settings.model_copy(update=changes)) as url:
        yield url


@pytest.fixture
def ann(url: str, ledger: Ledger) -> Iterator[httpx.Client]:  # noqa: ARG001 (empty tables)
    headers = {"Authorization": "Bearer s3cret"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
        yield client


@pytest.mark.parametrize("key", ["", "Bearer hf_unknown", "Basic s3cret"])
def test_without_a_key(key: str, url: str) -> None:
    for path in (URL, FILL, f"/pipeline/fill-mask/{MODEL}", "/models/"):
        answer = httpx.post(url + path, headers={"Authorization": key}, trust_env=False)
        assert error(answer, 401).startswith("Invalid credentials in Authorization header")


def test_the_token_of_the_hubs_client_is_the_key(settings: Settings, worker: Worker) -> None:
    patient = settings.model_copy(update={"api_keys": KEYS})
    with (
        served(patient) as url,
        InferenceClient(model=url + URL, token="other", timeout=30) as client,
    ):
        output, job = worker.answer(lambda: client.summarization("A text."), SUMMARY)
    assert output.summary_text == "We open at nine."
    assert job.fair_key == "bob"


@pytest.mark.parametrize(
    ("body", "headers", "setting"),
    [
        (b"x" * (240 * KIB + 1), {}, "SLUICE_MAX_FILE_BYTES"),
        (b"x" * (500 * KIB), {}, "SLUICE_MAX_FILE_BYTES"),
        (b'{"inputs": "%b"}' % (b"A" * (320 * KIB + 4)), {}, "SLUICE_MAX_FILE_BYTES"),
        (b'{"inputs": "%b"}' % (b"a " * (60 * KIB)), {}, "SLUICE_MAX_BODY_BYTES"),
        (b"a " * (60 * KIB), {"Content-Type": "text/plain"}, "SLUICE_MAX_BODY_BYTES"),
    ],
    ids=["file", "far too large", "base64", "JSON", "text"],
)
def test_what_is_too_large(
    body: bytes,
    headers: dict[str, str],
    setting: str,
    ann: httpx.Client,
    settings: Settings,
) -> None:
    before = stored(settings)
    assert setting in error(ann.post(URL, content=body, headers=headers), 413)
    assert stored(settings) == before


@pytest.mark.parametrize(
    "body",
    [b"x" * (240 * KIB), b'{"inputs": "%b", "language": "en"}' % (b"AAAA" * (80 * KIB))],
    ids=["raw", "base64"],
)
def test_files_of_the_largest_size(
    body: bytes, ann: httpx.Client, settings: Settings, worker: Worker
) -> None:
    """And a job that is not waited for to its end: it goes on, and keeps its upload."""
    before = set(stored(settings))
    answer = ann.post(URL, content=body)
    job_id = answer.headers["x-sluice-job-id"]
    assert f"GET /v1/jobs/{job_id}" in error(answer, 504)
    assert worker.job(UUID(job_id)).state == State.QUEUED
    (new,) = set(stored(settings)) - before
    assert new.stat().st_size == 240 * KIB


def test_a_full_queue(ann: httpx.Client, settings: Settings, worker: Worker) -> None:
    before = stored(settings)
    refused: list[httpx.Response] = []
    while not refused:
        answer = ann.post(URL, json=BODY)
        refused = [answer] if answer.status_code != 504 else []
    assert "SLUICE_QUEUE_LIMIT_STEPS" in error(refused[0], 429)
    assert refused[0].headers["retry-after"] == "7"
    count = worker.count()
    assert error(ann.post(URL, content=b"fLaC"), 429)
    assert worker.count() == count
    assert stored(settings) == before
