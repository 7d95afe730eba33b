"""Embedding models of servers (`openai/...`, `ollama/...`) in front of their test servers:
requests, refusals, and a collection from the first document to the search."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.documents import collections
from shared.errors import Cancelled, InvalidInput, ModelNotFound, Permanent, Unavailable
from shared.kinds import registry as kinds
from tests.api_server import served
from tests.integration.ingestion import CATS, TRAINS, ingest, search
from tests.integration.job_runner import drain, job_of, make_process, submit
from tests.integration.remotes import MODEL, Remote, remote
from tests.integration.thread_worker import running_worker
from tests.wire.behaviour import DIMENSION, Behaviour, vector_of
from workers.attempts.process import Process
from workers.models.devices import unit
from workers.retrieval.embed import Embedders, make_embedders
from workers.retrieval.embedders import ollama, openai
from workers.retrieval.embedders.remote import RemoteEmbedder

PATHS = {"openai": "/v1/embeddings", "ollama": "/api/embed"}


@pytest.fixture(scope="module", params=["ollama", "openai"])
def running(request: pytest.FixtureRequest) -> Iterator[Remote]:
    with remote(request.param) as server:
        yield server


@pytest.fixture
def server(running: Remote) -> Remote:
    running.wire.behaviours.clear()
    running.wire.requests.clear()
    return running


@contextmanager
def loaded(server: Remote, model: str = MODEL, **changes: Any) -> Iterator[RemoteEmbedder]:
    settings = server.settings.model_copy(update=changes)
    load = ollama.load if server.provider == "ollama" else openai.load
    with closing(load(f"{server.provider}/{model}", settings, lambda: None)) as embedder:
        yield embedder


def asked(server: Remote) -> list[dict[str, Any]]:
    return server.wire.bodies(PATHS[server.provider])


def test_vectors_are_those_of_the_server(server: Remote) -> None:
    texts = [f"text number {n}" for n in range(70)]
    with loaded(server) as embedder:
        vectors = embedder.encode(texts, between=lambda: None)
        assert embedder.dimension == DIMENSION
    expected = unit(np.array([vector_of(text) for text in texts]))
    assert vectors == pytest.approx(expected, abs=1e-6)


def test_requests_stay_within_the_limits(server: Remote) -> None:
    with loaded(server, remote_embedding_batch_texts=8, remote_embedding_batch_tokens=60) as model:
        server.wire.requests.clear()
        model.encode(["one two three"] * 30 + ["four " * 60], between=lambda: None)
    sizes = [len(body["input"]) for body in asked(server)]
    assert sum(sizes) == 31
    assert max(sizes) <= 8
    assert [len(body["input"]) for body in asked(server) if "four" in body["input"][0]] == [1]


def test_a_model_of_a_known_family_gets_its_prompts(server: Remote) -> None:
    server.wire.models["nomic-embed-text"] = {}
    with loaded(server, "nomic-embed-text") as embedder:
        server.wire.requests.clear()
        embedder.encode(["a"], between=lambda: None)
        embedder.encode_queries(["a"], between=lambda: None)
    texts = [body["input"] for body in asked(server)]
    assert texts == [["search_document: a"], ["search_query: a"]]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_cannot_now_is_asked_later(server: Remote, status: int) -> None:
    with loaded(server) as embedder:
        server.wire.behaviours[MODEL] = Behaviour(
            refuse_times=1, refuse_status=status, retry_after="7"
        )
        with pytest.raises(Unavailable) as raised:
            embedder.encode(["a"], between=lambda: None)
        assert raised.value.retry_after_s == 7
        assert len(embedder.encode(["a"], between=lambda: None)) == 1


def test_a_server_that_is_not_there_names_its_setting(server: Remote) -> None:
    setting = "ollama_url" if server.provider == "ollama" else "openai_base_url"
    with pytest.raises(Unavailable, match=f"SLUICE_{setting.upper()}"):
        loaded(server, **{setting: "http://127.0.0.1:9"}).__enter__()


def test_a_model_that_the_server_lacks_is_permanent(server: Remote) -> None:
    kind = ModelNotFound if server.provider == "ollama" else Permanent
    with pytest.raises(kind, match="unheard-of"):
        loaded(server, "unheard-of").__enter__()


@pytest.mark.parametrize(
    "behaviour",
    [
        Behaviour(lacks_vectors=1),
        Behaviour(vector=[]),
        Behaviour(vector=[1e39] * DIMENSION),
        Behaviour(vector=[1.0, 2.0]),
    ],
)
def test_answers_that_are_no_vectors_are_refused(server: Remote, behaviour: Behaviour) -> None:
    with loaded(server) as embedder:
        server.wire.behaviours[MODEL] = behaviour
        with pytest.raises(Permanent, match=f"{server.provider}/{MODEL}"):
            embedder.encode(["a", "b c"], between=lambda: None)


def test_a_server_that_hangs_can_be_left(server: Remote) -> None:
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise Cancelled("enough")

    with loaded(server) as embedder:
        server.wire.behaviours[MODEL] = Behaviour(hang=True)
        with pytest.raises(Cancelled):
            embedder.encode(["a"], between=stop)


def test_ollama_cuts_nothing_that_was_not_warned_of() -> None:
    with remote("ollama") as server, loaded(server, remote_window_tokens=10) as embedder:
        long = "word " * 40
        assert embedder.window == 10
        assert list(embedder.overlong(["short", long], between=lambda: None)) == [1]
        server.wire.requests.clear()
        embedder.encode(["short", long], between=lambda: None)
        cuts = {body["input"][0][:5]: body["truncate"] for body in asked(server)}
        assert cuts == {"short": False, "word ": True}
        dense = "a b c d e f g h i j k l"  # more tokens for the server than by the estimate
        assert embedder.overlong([dense], between=lambda: None) == {}
        with pytest.raises(Permanent, match=r"exceeds the context length\. .* chunk_size"):
            embedder.encode([dense], between=lambda: None)


def test_ollama_models_for_english_have_more_tokens_for_hangul() -> None:
    with remote("ollama") as server:
        server.wire.models["english"] = {"tokenizer": "bert"}
        for model, sizes in ((MODEL, [5, 3]), ("english", [11, 3])):
            with loaded(server, model, remote_window_tokens=10) as embedder:
                texts = ["고양이", "cat"]
                assert embedder.sizes(texts, is_query=False, between=lambda: None) == sizes
                assert (0 in embedder.overlong(texts, between=lambda: None)) is (sizes[0] > 10)


@pytest.fixture
def worker(settings: Settings, server: Remote) -> Iterator[Process]:
    mine = make_process(
        settings,
        "remote",
        ollama_url=server.settings.ollama_url,
        openai_base_url=server.settings.openai_base_url,
    )
    mine.hold(make_embedders, Embedders(mine.settings))
    yield mine
    mine.close()


def test_a_collection_uses_the_model_that_it_was_made_with(worker: Process, server: Remote) -> None:
    """Without a tokenizer: what splits, tunes and warns has estimates to go by."""
    name, model = f"remote-{uuid4().hex[:12]}", f"{server.provider}/{MODEL}"
    with worker.ledger.begin() as session:
        collections.put(session, name, collections.Spec(embedding_model=model))
    long = " ".join(f"Sentence {n} of a long text." for n in range(100))
    documents = {
        "cats": CATS,
        "trains": TRAINS,
        "long": long,
        "han": "고양이는 낮에 잡니다. " * 60,
    }
    assert ingest(worker, name, documents)[0] == {"added": 4}
    with worker.ledger.read() as session:
        assert collections.get_with_index(session, name)[1].dimension == DIMENSION
    (hit,) = search(worker, name, CATS, k=1, search={"type": "similarity"})
    assert hit.source == "cats"
    assert search(worker, name, "long text", k=2, search={"type": "hybrid"})


def test_the_splitter_of_tokens_says_that_there_is_no_tokenizer(
    worker: Process, server: Remote
) -> None:
    name = f"remote-{uuid4().hex[:12]}"
    spec = collections.Spec(embedding_model=f"{server.provider}/{MODEL}")
    with worker.ledger.begin() as session:
        collections.put(session, name, spec)
    source = {"type": "text", "text": CATS, "name": "cats"}
    splitter = {"type": "token", "chunk_size": 20, "chunk_overlap": 0}
    input_ = {"collection": name, "sources": [source], "splitter": splitter}
    parsed = kinds.INGEST.input.model_validate(input_).model_dump(mode="json")
    job_id = submit(worker, kinds.INGEST, parsed)
    drain(worker)
    [error] = job_of(worker, job_id).result["errors"]
    assert "has no tokenizer" in error["message"]


def test_a_job_without_a_server_fails_at_its_first_step(settings: Settings) -> None:
    mine = make_process(settings, "unset", openai_base_url=None)
    mine.hold(make_embedders, Embedders(mine.settings))
    job_id = submit(mine, kinds.EMBED, {"texts": ["a"], "model": "openai/tiny"})
    assert drain(mine) == 1
    job = job_of(mine, job_id)
    assert job.error is not None
    assert "SLUICE_OPENAI_BASE_URL" in job.error["message"]
    mine.close()


CALLS: list[Callable[[httpx.Client], httpx.Response]] = [
    lambda api: api.put("/v1/collections/unset", json={"embedding_model": "openai/tiny"}),
    lambda api: api.post(
        "/v1/jobs", json={"kind": "embed", "input": {"texts": ["a"], "model": "openai/tiny"}}
    ),
    lambda api: api.post("/openai/v1/embeddings", json={"input": "a", "model": "openai/tiny"}),
    lambda api: api.post("/ollama/api/embed", json={"input": "a", "model": "openai/tiny"}),
]


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_is_not_set_is_an_error_at_once(
    api: httpx.Client, call: Callable[[httpx.Client], httpx.Response]
) -> None:
    answer = call(api)
    assert 400 <= answer.status_code < 500, answer.text
    if answer.status_code != 404:
        assert "SLUICE_OPENAI_BASE_URL" in answer.text


def test_no_collection_is_made_whose_model_nobody_runs(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
) -> None:
    """By the default model of the installation, whichever API makes it."""
    own = settings.model_copy(update={"embedding_model": "openai/tiny", "openai_base_url": None})
    with served(own) as url, httpx.Client(base_url=url, trust_env=False) as api:
        for answer in (
            api.put("/v1/collections/unset-1"),
            api.post("/openai/v1/vector_stores", json={"name": "a"}),
        ):
            assert "SLUICE_OPENAI_BASE_URL" in answer.text
            assert "SLUICE_EMBEDDING_MODEL" in answer.text
        assert api.get("/v1/collections").json()["items"] == []


def test_clients_of_tei_get_the_vectors_of_the_server(
    settings: Settings,
    server: Remote,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
) -> None:
    model = f"{server.provider}/{MODEL}"
    urls = {key: getattr(server.settings, key) for key in ("ollama_url", "openai_base_url")}
    own = settings.model_copy(update={"embedding_model": model, **urls})
    texts = ["a cat", "a train"]
    expected = unit(np.array([vector_of(text) for text in texts]))
    with (
        running_worker(own, threads=0) as worker,
        served(own) as url,
        httpx.Client(base_url=f"{url}/tei", trust_env=False, timeout=60) as api,
    ):
        worker.hold(make_embedders, Embedders(own))
        for path in ("/embed", f"/{model}/embed"):
            vectors = api.post(path, json={"inputs": texts}).raise_for_status().json()
            assert np.array(vectors) == pytest.approx(expected, abs=1e-5)
        inputs = {"source_sentence": texts[0], "sentences": texts}
        cosines = api.post("/similarity", json={"inputs": inputs}).raise_for_status().json()
        assert cosines == pytest.approx(list(expected @ expected[0]), abs=1e-5)
        refused = api.post("/embed", json={"inputs": "a", "normalize": False})
        assert refused.status_code == 422
        assert model in refused.text


def test_an_ingest_job_says_that_its_collection_lacks_a_server(
    api: httpx.Client, process: Process
) -> None:
    name = f"unset-{uuid4().hex[:12]}"
    with process.ledger.begin() as session:
        collections.put(session, name, collections.Spec(embedding_model="openai/tiny"))
    source = {"type": "text", "text": "a", "name": "a"}
    job = {"kind": "ingest", "input": {"collection": name, "sources": [source]}}
    answer = api.post("/v1/jobs", json=job)
    assert answer.status_code == 422
    assert "SLUICE_OPENAI_BASE_URL" in answer.text
    assert name in answer.text


def test_openai_itself_wants_a_key(settings: Settings) -> None:
    changed = settings.model_copy(update={"openai_base_url": "https://api.openai.com/v1"})
    with pytest.raises(InvalidInput, match="SLUICE_OPENAI_API_KEY"):
        Embedders(changed).get("openai/text-embedding-3-small")
