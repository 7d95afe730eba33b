"""Every embedder does what the protocol says; a new one is a module and a line."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pkgutil import resolve_name
from uuid import uuid4

import httpx
import numpy as np
import pytest

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.documents import collections
from shared.errors import Cancelled
from shared.kinds import registry as kinds
from tests.integration import toy_embedder
from tests.integration.ingestion import CATS, TRAINS, ingest, search
from tests.integration.job_runner import drain, embedders, job_of, submit
from tests.integration.remotes import MODEL, remote
from tests.integration.toy_embedder import Letters
from tests.tiny.onnx_bert import save_bert
from workers.attempts.process import Process
from workers.models.devices import Vectors
from workers.retrieval.embed import EMBEDDERS, Embedder, LoadEmbedder, provider_of
from workers.retrieval.embedders import fastembed, ollama, openai
from workers.retrieval.embedders.local import load as load_local
from workers.retrieval.embedders.remote import RemoteEmbedder

TEXTS = ["A cat sleeps.", "Trains run every thirty minutes, " * 9, "고양이", "x"]


class EmbedderContract:
    """Subclasses have a fixture `embedder`."""

    def test_it_has_all_that_an_embedder_has(self, embedder: Embedder) -> None:
        assert isinstance(embedder, Embedder)
        assert (embedder.window is None) == (embedder.readable is None)
        assert isinstance(embedder.passage_prompt, str)

    def test_vectors_have_length_one_or_none(self, embedder: Embedder) -> None:
        for vectors in (
            embedder.encode(TEXTS, between=lambda: None),
            embedder.encode_queries(TEXTS, between=lambda: None),
        ):
            assert vectors.shape == (len(TEXTS), embedder.dimension)
            assert vectors.dtype == np.float32
            lengths = np.linalg.norm(vectors, axis=1)
            assert np.minimum(abs(lengths - 1), lengths).max() < 1e-5

    def test_company_does_not_matter(self, embedder: Embedder) -> None:
        together = embedder.encode(TEXTS, between=lambda: None)
        alone = [embedder.encode([text], between=lambda: None)[0] for text in TEXTS]
        assert together == pytest.approx(np.stack(alone), abs=2e-2)

    def test_nothing_gives_nothing(self, embedder: Embedder) -> None:
        assert embedder.encode([], between=lambda: None).shape == (0, embedder.dimension)
        assert embedder.overlong([], between=lambda: None) == {}

    def test_it_can_be_stopped(self, embedder: Embedder) -> None:
        def stop() -> None:
            raise Cancelled("enough")

        with pytest.raises(Cancelled):
            embedder.encode(TEXTS, between=stop)

    def test_what_is_too_long_is_known(self, embedder: Embedder) -> None:
        if embedder.window is None:
            return
        texts = ["short", "word " * (embedder.window + 1)]
        for overlong in (embedder.overlong, embedder.overlong_queries):
            cut = overlong(texts, between=lambda: None)
            assert list(cut) == [1]
            assert cut[1] > embedder.window


class TestHuggingFace(EmbedderContract):
    load = load_local

    @pytest.fixture
    def embedder(self) -> Embedder:
        return embedders().get(DEFAULT_EMBEDDING_MODEL)


def of_server(provider: str, load: LoadEmbedder) -> Iterator[Embedder]:
    with remote(provider) as server:
        embedder = load(f"{provider}/{MODEL}", server.settings, lambda: None)
        assert isinstance(embedder, RemoteEmbedder)
        with closing(embedder):
            yield embedder


class TestOpenAI(EmbedderContract):
    load = openai.load

    @pytest.fixture(scope="class")
    @classmethod
    def embedder(cls) -> Iterator[Embedder]:
        yield from of_server("openai", openai.load)


class TestOllama(EmbedderContract):
    load = ollama.load

    @pytest.fixture(scope="class")
    @classmethod
    def embedder(cls) -> Iterator[Embedder]:
        yield from of_server("ollama", ollama.load)


class TestFastEmbed(EmbedderContract):
    load = fastembed.load

    @pytest.fixture(scope="class")
    @classmethod
    def embedder(cls, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
        models = tmp_path_factory.mktemp("models")
        save_bert(models / "own" / "tiny")
        settings = Settings(_env_file=None, models_folder=models)
        return fastembed.load("fastembed/own/tiny", settings, lambda: None)


class TestLetters(EmbedderContract):
    load = toy_embedder.load

    @pytest.fixture
    def embedder(self) -> Embedder:
        return Letters("toy/letters")


@pytest.mark.parametrize("provider", EMBEDDERS)
def test_an_embedder_is_complete(provider: str) -> None:
    load = resolve_name(EMBEDDERS[provider])
    contracts = [vars(contract)["load"] for contract in EmbedderContract.__subclasses__()]
    assert load in contracts, f"{EMBEDDERS[provider]} has no subclass of the contract"


def test_a_name_without_a_provider_is_one_of_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDERS, "toy", "tests.integration.toy_embedder:load")
    assert provider_of("toy/letters") == "toy"
    for name in (DEFAULT_EMBEDDING_MODEL, "toy", "/toy/letters", "./toy", "toys/letters"):
        assert provider_of(name) == "hf"


def test_a_new_provider_is_used_over_http(
    api: httpx.Client, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMBEDDERS, "toy", "tests.integration.toy_embedder:load")
    body = {"embedding_model": "toy/letters"}
    collection = f"toy-{uuid4().hex[:12]}"
    api.put(f"/v1/collections/{collection}", json=body).raise_for_status()
    job = {"kind": "embed", "input": {"model": "toy/letters", "texts": ["abba"]}}
    id_ = api.post("/v1/jobs", json=job).raise_for_status().json()["id"]
    drain(process)
    result = api.get(f"/v1/jobs/{id_}").raise_for_status().json()["result"]
    assert result["model"] == "toy/letters"
    assert result["embeddings"][0][:3] == pytest.approx([0.5**0.5, 0.5**0.5, 0])
    assert ingest(process, collection, {"cats": CATS, "trains": TRAINS})[0] == {"added": 2}
    assert ingest(process, collection, {"palindrome": "abba"})[0] == {"added": 1}
    (hit,) = search(process, collection, "BAAB", k=1, search={"type": "similarity"})
    assert hit.source == "palindrome"
    assert hit.score == pytest.approx(1, abs=1e-3)


class Asking(Letters):
    """Tells queries, which it reads behind a z, from passages."""

    passage_prompt = ""

    def encode_queries(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        return self.encode([f"z{text}" for text in texts], between=between)


def load_asking(name: str, settings: Settings, check: Callable[[], None]) -> Asking:
    del settings, check
    return Asking(name)


def test_texts_are_embedded_as_what_they_are(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMBEDDERS, "asking", "tests.integration.test_embedders:load_asking")

    def first(**input_: str) -> list[float]:
        texts = {"texts": ["a"], "model": "asking/letters"}
        job_id = submit(process, kinds.EMBED, texts | input_)
        drain(process)
        job = job_of(process, job_id)
        assert job.result is not None
        vector: list[float] = job.result["embeddings"][0]
        return [vector[0], vector[25]]

    assert first() == [1, 0]
    assert first(input_type="passage") == [1, 0]
    assert first(input_type="query") == pytest.approx([0.5**0.5, 0.5**0.5])


def test_another_prompt_makes_other_vectors_of_the_same_document(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMBEDDERS, "asking", "tests.integration.test_embedders:load_asking")
    name = f"test-{uuid4().hex[:12]}"
    with process.ledger.begin() as session:
        collections.put(session, name, collections.Spec(embedding_model="asking/letters"))
    assert ingest(process, name, {"a": CATS})[0] == {"added": 1}
    assert ingest(process, name, {"a": CATS})[0] == {"skipped": 1}
    monkeypatch.setattr(Asking, "passage_prompt", "passage: ")
    assert ingest(process, name, {"a": CATS})[0] == {"replaced": 1}
