"""Text Embeddings Inference's paths, and chats on a model's URL, as huggingface_hub and plain HTTP
clients call them, with real models."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from api.compat.tei import NO_MODEL
from shared.config import Settings
from tests.integration.thread_worker import running_worker
from tests.tiny.manifest import checkpoint
from tests.tiny_models import Answerer

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = ["We open at nine.", "Tea is hot."]


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    models = {
        "text-ranking": str(checkpoint("crossencoder")),
        "text-classification": str(checkpoint("distilbert")),
    }
    return settings.model_copy(
        update={
            "hf_models": models,
            "generation_device": "cpu",
            "worker_heartbeat_s": 600,
            "hub_connect_timeout_s": 0.5,
        }
    )


@pytest.fixture(scope="module")
def held(answerer: Answerer) -> str:
    return f"hf/{answerer.path}"


@pytest.fixture(scope="module", autouse=True)
def worker(settings: Settings, held: str) -> Iterator[None]:
    with running_worker(settings, held):
        yield


@pytest.fixture(scope="module")
def http(api_url: str, worker: None) -> Iterator[httpx.Client]:  # noqa: ARG001 (order)
    with httpx.Client(base_url=f"{api_url}/tei", timeout=180, trust_env=False) as client:
        yield client


def post(http: httpx.Client, path: str, body: Any) -> Any:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_embed(http: httpx.Client, api_url: str) -> None:
    vectors = post(http, "/embed", {"inputs": TEXTS})
    assert [len(vector) for vector in vectors] == [384, 384]
    assert sum(value**2 for value in vectors[0]) == pytest.approx(1, abs=1e-3)
    (alone,) = post(http, f"/{MINILM}/embed", {"inputs": TEXTS[0], "truncate": None})
    assert alone == pytest.approx(vectors[0], abs=1e-4)
    short = post(http, "/embed", {"inputs": TEXTS[0], "dimensions": 8})
    assert len(short[0]) == 8
    with InferenceClient(model=f"{api_url}/tei/{MINILM}", timeout=60) as client:
        assert client.feature_extraction(TEXTS[0])[0].tolist() == pytest.approx(alone, abs=1e-4)
    with InferenceClient(model=f"{api_url}/tei", timeout=60) as client:
        assert client.feature_extraction(TEXTS[0])[0].tolist() == pytest.approx(alone, abs=1e-4)
    (as_openai,) = post(http, "/v1/embeddings", {"input": TEXTS[0], "model": None})["data"]
    for path, model in ((f"/{MINILM}/v1/embeddings", "x"), ("/v1/embeddings", NO_MODEL)):
        (again,) = post(http, path, {"input": TEXTS[0], "model": model})["data"]
        assert again["embedding"] == as_openai["embedding"]
    # The kind `embed` may compute in another precision.
    assert sum(a * b for a, b in zip(as_openai["embedding"], alone, strict=True)) > 0.999


def test_rerank_predict_and_similarity(http: httpx.Client) -> None:
    body = {"query": "When do you open?", "texts": TEXTS, "return_text": True, "truncate": True}
    ranks = post(http, "/rerank", body)
    assert sorted(rank["index"] for rank in ranks) == [0, 1]
    assert ranks[0]["score"] >= ranks[1]["score"]
    assert ranks[0]["text"] == TEXTS[ranks[0]["index"]]
    single = post(http, "/predict", {"inputs": TEXTS[0]})
    assert sum(label["score"] for label in single) == pytest.approx(1, abs=1e-3)
    both = post(http, "/predict", {"inputs": [[TEXTS[0]], [TEXTS[1]]]})
    assert [label["label"] for label in both[0]] == [label["label"] for label in single]
    assert len(both) == 2
    raw = post(http, "/predict", {"inputs": TEXTS[0], "raw_scores": True})
    assert raw != single
    pair = {"source_sentence": TEXTS[0], "sentences": TEXTS}
    scores = post(http, "/similarity", {"inputs": pair})
    assert scores[0] == pytest.approx(1, abs=1e-3)


def test_info_and_health(http: httpx.Client) -> None:
    assert http.get("/info").json()["model_id"] == MINILM
    assert http.get("/BAAI/bge-m3/info").json()["model_id"] == "BAAI/bge-m3"
    for path in ("/health", "/ping", ""):
        assert http.get(path).status_code == 200
    refused = http.get("/embed")
    assert (refused.status_code, set(refused.json())) == (405, {"error", "error_type"})


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/embed", {"inputs": []}, 422, "inputs"),
        ("/embed", {"inputs": ["word " * 2000], "truncate": False}, 422, "tokens"),
        ("/embed", {"inputs": "a", "no_such": 1}, 422, "no_such"),
        ("/no/such/embed", {"inputs": "a"}, 404, "no/such does not exist"),
        ("/predict", {"inputs": ["a", "b"]}, 422, "pair of texts"),
        ("/predict", {"inputs": 5}, 422, "inputs: must be a text, or a list of lists"),
        ("/rerank", {"query": "a", "texts": ["b"], "truncate": False}, 422, "must be true or left"),
        ("/vertex", {"instances": []}, 422, "vertex is not supported"),
        ("/embed", [], 422, "the body must be a JSON object"),
        ("/embed_sparse", {"inputs": "a"}, 422, "embed_sparse is not supported"),
        ("/embed_all", {"inputs": "a"}, 422, "embed_all is not supported"),
        ("/tokenize", {"inputs": "a"}, 422, "tokenize is not supported"),
        ("/rerank", {"query": "a"}, 422, "texts"),
    ],
)
def test_errors_are_those_of_that_api(
    http: httpx.Client, path: str, body: Any, status: int, says: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    assert says in answer.json()["error"]


def test_a_chat_on_the_url_of_a_model(api_url: str, held: str, answerer: Answerer) -> None:
    asked, answer = next(iter(answerer.questions.items()))
    messages = [{"role": "user", "content": asked}]
    url = f"{api_url}/models/{held}"
    with InferenceClient(model=url, timeout=60) as client:
        said = client.chat_completion(messages, max_tokens=48, temperature=0)
        assert said.choices[0].message.content == answer
        assert said.usage.completion_tokens > 0
        stream = client.chat_completion(messages, max_tokens=48, temperature=0, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in stream if part.choices)
        assert text == answer
    bare = httpx.post(f"{url}/v1/chat/completions", json={"messages": messages}, timeout=60)
    assert bare.json()["choices"][0]["message"]["content"] == answer
    wrong = httpx.post(f"{url}/v1/chat/completions", json={"messages": messages, "model": 5})
    assert (wrong.status_code, wrong.json()["error"][:6]) == (400, "model:")
    with InferenceClient(model=f"{api_url}/models/no/such", timeout=60) as client:
        with pytest.raises(HfHubHTTPError) as refused:
            client.chat_completion(messages)
        assert refused.value.response.status_code == 404


PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients" / "huggingface_hub.md"


def test_the_page_runs(api_url: str, held: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With this server's address, and the model that its worker holds."""
    text = PAGE.read_text(encoding="utf-8")
    text = text.replace("http://localhost:8000", api_url)
    text = text.replace("/models/Qwen/Qwen3-4B-Instruct-2507", f"/models/{held}")
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names: dict[str, Any] = {}
        exec(compile(block, str(PAGE), "exec"), names)
        if "client" in names:
            names["client"].close()
        else:
            assert len(names["vectors"]) == 2
    assert capsys.readouterr().out.strip()
