"""Results of calls of the inference API: large ones, and those that one has to know more of."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from huggingface_hub import InferenceClient

from shared.config import Settings
from shared.database.transaction import Ledger
from tests.integration.inference import MODEL, SUMMARY, Worker, working


@pytest.fixture
def worker(ledger: Ledger) -> Iterator[Worker]:
    with working(ledger) as worker:
        yield worker


@pytest.fixture
def client(api_url: str) -> Iterator[InferenceClient]:
    with InferenceClient(model=f"{api_url}/models/{MODEL}", timeout=30) as client:
        yield client


def test_a_large_result_is_streamed_from_the_storage(
    worker: Worker, client: InferenceClient, settings: Settings, api: httpx.Client
) -> None:
    vectors = [[0.5] * 384] * 500
    data = json.dumps(vectors).encode()
    path = Path(settings.storage()) / "results" / "large.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    where = {"path": "results/large.json", "size_bytes": len(data)}
    output, _ = worker.answer(lambda: client.feature_extraction(["a"] * 500), None, **where)
    assert output.tolist() == vectors

    answer, _ = worker.answer(
        lambda: api.post(f"/models/{MODEL}", json={"inputs": "a"}), None, **where
    )
    assert answer.content == data
    assert answer.headers["content-length"] == str(len(data))

    path.unlink()
    answer, _ = worker.answer(
        lambda: api.post(f"/models/{MODEL}", json={"inputs": "a"}), None, **where
    )
    assert answer.status_code == 404
    assert "SLUICE_STORAGE_URL" in answer.json()["error"]


def test_warnings_are_headers(worker: Worker, api: httpx.Client) -> None:
    warnings = ["inputs was cut from 30,112 to 512 tokens; 98% is lost", "한국어", "x" * 5000]
    answer, _ = worker.answer(
        lambda: api.post(f"/models/{MODEL}", json={"inputs": "a"}), SUMMARY, warnings=warnings
    )
    shown = [v for k, v in answer.headers.multi_items() if k == "x-warning"]
    assert shown[0] == "inputs was cut from 30,112 to 512 tokens; 98%25 is lost"
    assert shown[1] == "%ED%95%9C%EA%B5%AD%EC%96%B4"
    assert len(shown[2]) < 1100
    assert len(shown) == 3

    answer, job = worker.answer(
        lambda: api.post(f"/models/{MODEL}", json={"inputs": "a"}), SUMMARY, warnings=["cut"] * 500
    )
    shown = [v for k, v in answer.headers.multi_items() if k == "x-warning"]
    assert shown[:8] == ["cut"] * 8
    assert shown[8:] == [f"and 492 more: GET /v1/jobs/{job.id} has all"]
