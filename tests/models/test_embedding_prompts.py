"""What models want to read before queries and passages: known, counted, and put before texts."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer

from shared.config import DEFAULT_EMBEDDING_MODEL, EmbeddingPrompts, Settings
from workers.models.devices import Vectors
from workers.models.locate import bundled
from workers.retrieval.embed import Embedders
from workers.retrieval.embedders.local import LocalEmbedder
from workers.retrieval.embedders.prompts import prompts_of

TEXTS = ["The gate opens at nine.", "창고는 여덟 시에 연다.", "x"]
E5 = EmbeddingPrompts(query="query: ", passage="passage: ")
WEB = "Given a web search query, retrieve relevant passages that answer the query"


@cache
def plain() -> SentenceTransformer:
    return SentenceTransformer(
        str(bundled(DEFAULT_EMBEDDING_MODEL)), device="cpu", model_kwargs={"dtype": torch.float32}
    )


def model(folder: Path, *, own: Any = None, card: str = "", **config: Any) -> Path:
    """The default model under another name, with prompts or names of its own in its files."""
    source = bundled(DEFAULT_EMBEDDING_MODEL)
    assert source is not None
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name not in ("config.json", "README.md", "config_sentence_transformers.json"):
            (folder / path.name).symlink_to(path)
    read = json.loads((source / "config.json").read_text())
    read.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(read | config))
    if own is not None:
        text = json.dumps({"prompts": own, "model_type": "SentenceTransformer"})
        (folder / "config_sentence_transformers.json").write_text(text)
    if card:
        (folder / "README.md").write_text(f"---\n{card}\n---\n# A model")
    return folder


def loaded(home: Path, reference: str, **settings: Any) -> LocalEmbedder:
    all_settings = Settings(_env_file=None, home=home, embedding_dtype="float32", **settings)
    embedder = Embedders(all_settings).get(reference)
    assert isinstance(embedder, LocalEmbedder)
    return embedder


def assert_same(ours: Vectors, theirs: Vectors) -> None:
    assert (ours * theirs).sum(axis=1) == pytest.approx(np.ones(len(ours)), abs=1e-4)


@pytest.mark.parametrize(
    ("reference", "query", "passage"),
    [
        ("intfloat/multilingual-e5-small", "query: ", "passage: "),
        ("intfloat/e5-base-v2", "query: ", "passage: "),
        ("dragonkue/multilingual-e5-small-ko", "query: ", "passage: "),
        ("nlpai-lab/KoE5", "query: ", "passage: "),
        ("intfloat/multilingual-e5-large-instruct", f"Instruct: {WEB}\nQuery: ", ""),
        ("intfloat/e5-mistral-7b-instruct", f"Instruct: {WEB}\nQuery: ", ""),
        ("BAAI/bge-small-en-v1.5", "Represent this sentence for searching relevant passages: ", ""),
        ("BAAI/bge-large-zh", "为这个句子生成表示以用于检索相关文章：", ""),
        ("BAAI/bge-m3", "", ""),
        ("nlpai-lab/KURE-v1", "", ""),
        ("Snowflake/snowflake-arctic-embed-l-v2.0", "query: ", ""),
        ("dragonkue/snowflake-arctic-embed-l-v2.0-ko", "query: ", ""),
        ("Qwen/Qwen3-Embedding-0.6B", f"Instruct: {WEB}\nQuery:", ""),
        ("google/embeddinggemma-300m", "task: search result | query: ", "title: none | text: "),
        ("nomic-ai/nomic-embed-text-v1.5", "search_query: ", "search_document: "),
        ("Alibaba-NLP/gte-multilingual-base", "", ""),
        ("thenlper/gte-small", "", ""),
        ("sentence-transformers/LaBSE", "", ""),
        (DEFAULT_EMBEDDING_MODEL, "", ""),
        ("own/e500", "", ""),
    ],
)
def test_families_are_known_by_their_names(
    tmp_path: Path, reference: str, query: str, passage: str
) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    expected = EmbeddingPrompts(query=query, passage=passage)
    assert prompts_of(reference, tmp_path, settings) == expected
    assert prompts_of(f"/models/{reference}", tmp_path, settings) == expected


def test_a_copy_is_known_by_what_its_files_say(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    base = model(tmp_path / "a", _name_or_path="intfloat/multilingual-e5-small")
    card = model(tmp_path / "b", card="base_model: BAAI/bge-base-en-v1.5\ntags: [a]")
    listed = model(tmp_path / "c", card="base_model:\n- intfloat/multilingual-e5-base")
    silent = model(tmp_path / "d", card="language: ko", _name_or_path="/tmp/checkpoint")
    assert prompts_of("own/a", base, settings) == E5
    assert prompts_of("own/b", card, settings).query.startswith("Represent this sentence")
    assert prompts_of("own/c", listed, settings) == E5
    assert prompts_of("own/d", silent, settings) == EmbeddingPrompts()


@pytest.mark.parametrize(
    ("own", "query", "passage"),
    [
        ({"query": "Q: ", "document": "D: "}, "Q: ", "D: "),
        ({"query": "Q: ", "document": ""}, "Q: ", ""),
        # The library adds an empty `document` and would take that for the one of passages.
        ({"query": "Q: ", "document": "", "passage": "P: "}, "Q: ", "P: "),
        ({"Retrieval-query": "Q: ", "Retrieval-document": "D: ", "STS": "S: "}, "Q: ", "D: "),
        ({"query": "", "document": ""}, "query: ", "passage: "),
        ({"Classification": "C: "}, "query: ", "passage: "),
        ({"query": 7, "document": None}, "query: ", "passage: "),
        ([1], "query: ", "passage: "),
    ],
)
def test_what_the_model_says_itself_counts_before_its_family(
    tmp_path: Path, own: Any, query: str, passage: str
) -> None:
    folder = model(tmp_path / "e5-small-v2", own=own)
    settings = Settings(_env_file=None, home=tmp_path)
    expected = EmbeddingPrompts(query=query, passage=passage)
    assert prompts_of("intfloat/e5-small-v2", folder, settings) == expected


def test_the_setting_counts_before_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model(tmp_path / "e5-small-v2", own={"query": "Q: "})
    monkeypatch.setenv(
        "SLUICE_EMBEDDING_PROMPTS",
        '{"own/e5-small-v2": {"query": "ask:\\n"}, "own/none": {}}',
    )
    settings = Settings(_env_file=None, home=tmp_path)
    assert prompts_of("own/e5-small-v2", folder, settings) == EmbeddingPrompts(query="ask:\n")
    assert prompts_of("own/none", folder, settings) == EmbeddingPrompts()
    assert prompts_of("other/e5-small-v2", folder, settings) == EmbeddingPrompts(query="Q: ")


@pytest.mark.parametrize("value", ["query: ", "[1]", '{"a": {"doc": "x"}}', '{"a": "x"}', "{"])
def test_a_setting_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SLUICE_EMBEDDING_PROMPTS", value)
    with pytest.raises(ValidationError, match="embedding_prompts"):
        Settings(_env_file=None)


def test_prompts_stand_before_queries_and_passages(tmp_path: Path) -> None:
    """The vectors are those of the library with the same prompt."""
    model(tmp_path / "models" / "intfloat" / "multilingual-e5-small")
    embedder = loaded(tmp_path, "intfloat/multilingual-e5-small")
    assert embedder.passage_prompt == "passage: "
    passages = embedder.encode(TEXTS, between=lambda: None)
    queries = embedder.encode_queries(TEXTS, between=lambda: None)
    assert_same(passages, plain().encode(TEXTS, prompt="passage: ", normalize_embeddings=True))
    assert_same(queries, plain().encode(TEXTS, prompt="query: ", normalize_embeddings=True))
    assert (passages * queries).sum(axis=1).max() < 0.99


def test_a_prompt_by_default_is_for_neither(tmp_path: Path) -> None:
    """It is that of another task, unless it is named as one of these."""
    folder = model(tmp_path / "models" / "own" / "m", own={"STS": "S: ", "query": "Q: "})
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"default_prompt_name": "STS"}))
    embedder = loaded(tmp_path, "own/m")
    passages = embedder.encode(TEXTS, between=lambda: None)
    assert_same(passages, plain().encode(TEXTS, normalize_embeddings=True))


def test_tokens_of_prompts_are_counted(tmp_path: Path) -> None:
    model(tmp_path / "models" / "intfloat" / "multilingual-e5-small")
    embedder = loaded(tmp_path, "intfloat/multilingual-e5-small")
    # "passage: " is two tokens of this vocabulary.
    assert embedder.readable == 256 - 2 - 2
    exact = "word " * 252
    longer = exact + "word"
    assert embedder.overlong([exact, longer], between=lambda: None) == {1: 257}
    prompts = EmbeddingPrompts(query="to find things: ")
    other = loaded(tmp_path, embedder.name, embedding_prompts={embedder.name: prompts})
    assert other.readable == 254
    assert other.overlong([longer], between=lambda: None) == {}
    assert other.overlong_queries([exact, exact[5:-5]], between=lambda: None) == {0: 258}
