"""The shapes of inputs and results: what is taken, what is refused, and with which words."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from shared.bounds import COLLECTION_NAME, CollectionName
from shared.kinds import registry as kinds
from shared.kinds.embed import EmbedInput
from shared.kinds.erase import EraseInput
from shared.kinds.ingest import (
    CsvOptions,
    FileSource,
    IngestInput,
    IngestResult,
    Splitter,
    SplitterType,
    TextSource,
)
from shared.kinds.kind import Kind
from shared.kinds.rag import RagInput
from shared.kinds.search import Hit, SearchInput

ID = "0197a0a0-1234-7000-8000-00000000abcd"
TEXT = {"type": "text", "text": "Some text."}
INGEST = {"collection": "handbook", "sources": [TEXT]}

JUDGED = {"query": "q", "relevant": ["a.md"]}

GOOD: dict[Kind, list[dict[str, Any]]] = {
    kinds.INGEST: [
        INGEST,
        INGEST | {"sources": [{"type": "file", "file_id": ID}, TEXT | {"name": "한글 이름.md"}]},
        INGEST | {"splitter": {"type": "token", "chunk_size": 256, "chunk_overlap": 0}},
        INGEST | {"on_existing": "skip", "metadata": {"a": 1, "b": 1.5, "c": True, "d": "x"}},
        INGEST | {"metadata": {"a": ["x", "y"], "b": [1, 2.5], "c": [True], "d": []}},
        INGEST | {"csv": {"encoding": "cp949", "content_columns": ["a"]}},
    ],
    kinds.BATCH: [
        {"file_id": ID},
        {"file_id": ID, "endpoint": "/v1/hf/summarization", "completion_window": "90m"},
        {"file_id": ID, "endpoint": "mixed", "output_expires_after_s": 3600},
    ],
    kinds.EMBED: [{"texts": ["a", "b"]}, {"texts": ["a"], "model": "some/model"}],
    kinds.SEARCH: [
        {"collection": "handbook", "query": "q"},
        {"collection": "handbook", "query": "q", "k": 100, "search": {"filter": {"team": "a"}}},
        {
            "collection": "handbook",
            "query": "q",
            "search": {
                "filter": {
                    "year": {"$gte": 2020, "$lt": 2025.5},
                    "$or": [{"a": True}, {"$not": {"$$or": 1}}],
                }
            },
        },
    ],
    kinds.RAG: [
        {"collection": "handbook", "question": "q", "model": "extractive"},
        {"collection": "handbook", "question": "q", "prompt": "{context} {question} {{}}"},
        {"collection": "handbook", "question": "q", "conversation_id": ID},
    ],
    kinds.HF: [
        {"task": "fill-mask", "inputs": "a [MASK]", "parameters": {"top_k": 3}},
        {"model": "a/b", "inputs": ["a", "b"]},
        {"task": "summarization", "model": "a/b", "inputs": "a", "backend": "hub"},
    ],
    kinds.COMPLETE: [
        {"prompts": ["Once"]},
        {"prompts": ["a", "b"], "n": 3, "parameters": {"logprobs": 5, "frequency_penalty": -2}},
    ],
    kinds.CHAT: [
        {"messages": [{"role": "user", "content": "안녕"}], "model": "ollama/a:b"},
        {
            "messages": [{"role": "user", "content": "q"}],
            "parameters": {"max_tokens": 5, "temperature": 0, "stop": ["a"], "seed": 2**62},
            "response_format": {"type": "json", "schema": {"type": "object"}},
            "tools": [
                {"type": "calculator"},
                {"type": "search_collection", "collection": "handbook"},
                {"type": "function", "function": {"name": "weather"}},
            ],
        },
    ],
    kinds.MODEL: [
        {"action": "pull", "name": "ollama/a"},
        {"action": "create", "name": "ollama/a", "from": "b", "parameters": {"stop": ["x"]}},
        {"action": "delete", "name": "ollama/a"},
    ],
    kinds.ERASE: [{"collection": "handbook"}, {"document_ids": [ID]}],
    kinds.REBUILD: [
        {"collection": "handbook"},
        {"collection": "handbook", "model": "some/model", "queries": [JUDGED], "min_recall": 0.5},
        {"collection": "handbook", "rollback": True},
    ],
    kinds.CHECK: [
        {"collection": "handbook"},
        {"collection": "handbook", "dry_run": True, "sample": 0, "delete_foreign": True},
    ],
    kinds.EXPORT: [{"collection": "handbook"}],
    kinds.IMPORT: [{"file_ids": [ID]}, {"file_ids": [ID, ID], "collection": "copy"}],
    kinds.EVAL: [
        {"collection": "handbook", "queries": [JUDGED]},
        {"collection": "handbook", "file_id": ID, "searches": [{}] * 16, "k": 100},
        {
            "collection": "handbook",
            "queries": [
                {
                    "query": "q",
                    "relevant": ["a", {"id": "b", "grade": 2}, {"text": "c"}],
                    "answers": ["d"],
                }
            ],
        },
    ],
}
BAD: list[tuple[Kind, dict[str, Any], str]] = [
    (kinds.INGEST, {"collection": "handbook"}, "sources"),
    (kinds.INGEST, INGEST | {"sources": []}, "sources"),
    (kinds.INGEST, INGEST | {"sources": [{"type": "web", "url": "x"}]}, "web"),
    (kinds.INGEST, INGEST | {"sources": [{"text": "no type"}]}, "type"),
    (kinds.INGEST, INGEST | {"sources": [TEXT | {"file_id": ID}]}, "file_id"),
    (kinds.INGEST, INGEST | {"sources": [TEXT | {"name": ""}]}, "name"),
    (kinds.INGEST, INGEST | {"on_existing": "replaced"}, "on_existing"),
    (kinds.INGEST, INGEST | {"on_exists": "skip"}, "on_exists"),
    (kinds.INGEST, INGEST | {"metadata": {"a": None}}, "metadata"),
    (kinds.INGEST, INGEST | {"metadata": {"a": [1, "b"]}}, "list of texts, of numbers"),
    (kinds.INGEST, INGEST | {"metadata": {"a": [[1]]}}, "list of texts, of numbers"),
    (kinds.INGEST, INGEST | {"metadata": {"a": 2**63}}, "64 bits"),
    (kinds.INGEST, INGEST | {"splitter": {"chunk_size": 0}}, "chunk_size"),
    (
        kinds.INGEST,
        INGEST | {"splitter": {"chunk_size": 399, "chunk_overlap": 200}},
        "chunk_overlap",
    ),
    (kinds.INGEST, INGEST | {"splitter": {"type": "semantic"}}, "splitter"),
    (kinds.EMBED, {"texts": []}, "texts"),
    (kinds.EMBED, {"texts": [""]}, "texts"),
    (kinds.EMBED, {"texts": "a"}, "texts"),
    (kinds.EMBED, {"texts": ["a"] * 10_001}, "texts"),
    (kinds.EMBED, {"texts": ["a" * 1_000_001]}, "texts"),
    (kinds.SEARCH, {"collection": "handbook", "query": ""}, "query"),
    (kinds.SEARCH, {"collection": "handbook", "query": "q", "k": 0}, "k"),
    (kinds.SEARCH, {"collection": "handbook", "query": "q", "k": 101}, "k"),
    (kinds.SEARCH, {"collection": "handbook", "query": "q", "search": {"type": "best"}}, "type"),
    (kinds.SEARCH, {"collection": "handbook", "query": "q", "search": {"fetch_k": 9}}, "mmr"),
    (kinds.SEARCH, {"collection": "handbook"}, "query or queries"),
    (kinds.SEARCH, {"query": "q"}, "collection or collections"),
    (
        kinds.SEARCH,
        {
            "collection": "handbook",
            "query": "q",
            "search": {"type": "similarity_score_threshold"},
        },
        "needs score_threshold",
    ),
    (
        kinds.SEARCH,
        {"collection": "handbook", "query": "q", "search": {"filter": {"a": -(2**63) - 1}}},
        "64 bits",
    ),
    (kinds.RAG, {"collection": "handbook", "question": "q", "prompt": "x y"}, "prompt"),
    (kinds.RAG, {"collection": "handbook", "question": "q", "prompt": "{context}"}, "prompt"),
    (kinds.RAG, {"collection": "handbook", "question": "q", "prompt": "{context:9}"}, "prompt"),
    (
        kinds.RAG,
        {
            "collection": "handbook",
            "question": "q",
            "prompt": "{context} {question}",
            "variables": {"a": 1},
        },
        "variables",
    ),
    (kinds.CHAT, {"messages": [{"role": "user", "content": "a"}], "prompt": "{a}"}, "prompt"),
    (
        kinds.CHAT,
        {"messages": [{"role": "user", "content": "a"}], "variables": {"a": 1}},
        "variables",
    ),
    (kinds.CHAT, {"prompt": "greeting", "variables": {"a": [1]}}, "variables"),
    (kinds.CHAT, {"prompt": "greeting", "variables": {"a": None}}, "variables"),
    (kinds.RAG, {"collection": "handbook", "question": "q", "model": "hf"}, "model reference"),
    (kinds.CHAT, {"messages": []}, "messages"),
    (kinds.COMPLETE, {"prompts": []}, "prompts"),
    (kinds.COMPLETE, {"prompts": [""]}, "prompts"),
    (kinds.COMPLETE, {"prompts": ["a"] * 65, "n": 2}, "130 choices"),
    (kinds.COMPLETE, {"prompts": ["a"], "n": 20, "parameters": {"logprobs": 20}}, "logprobs"),
    (kinds.CHAT, {"messages": [{"role": "robot", "content": "a"}]}, "role"),
    (kinds.CHAT, {"messages": [{"role": "system", "content": "a"}]}, "must end with one"),
    (kinds.HF, {"inputs": "a"}, "name a task"),
    (kinds.HF, {"task": "guessing", "inputs": "a"}, "summarization"),
    (kinds.HF, {"model": "a/b", "inputs": "a", "backend": "hub"}, "the hub"),
    (kinds.MODEL, {"action": "create", "name": "ollama/a"}, "from"),
    (kinds.MODEL, {"action": "pull", "name": "openai/a"}, "ollama/"),
    (kinds.ERASE, {}, "either"),
    (kinds.ERASE, {"collection": "handbook", "document_ids": [ID]}, "either"),
    (kinds.ERASE, {"document_ids": []}, "document_ids"),
    (kinds.REBUILD, {"collection": "handbook", "model": "m", "rollback": True}, "either"),
    (kinds.REBUILD, {"collection": "handbook", "min_overlap": 2}, "min_overlap"),
    (kinds.REBUILD, {"collection": "handbook", "queries": [JUDGED] * 1001}, "queries"),
    (kinds.CHECK, {}, "collection"),
    (kinds.CHECK, {"collection": "handbook", "sample": -1}, "sample"),
    (kinds.IMPORT, {"file_ids": []}, "file_ids"),
    (kinds.IMPORT, {"file_ids": [ID], "collection": "a/b"}, "collection"),
    (kinds.EVAL, {"collection": "handbook"}, "either queries or file_id"),
    (kinds.EVAL, {"collection": "handbook", "queries": [JUDGED], "file_id": ID}, "either"),
    (kinds.EVAL, {"collection": "handbook", "file_id": "judged.jsonl"}, "file_id"),
    (kinds.EVAL, {"collection": "handbook", "queries": []}, "queries"),
    (kinds.EVAL, {"collection": "handbook", "queries": [JUDGED], "searches": []}, "searches"),
    (kinds.EVAL, {"collection": "handbook", "queries": [JUDGED], "searches": [{}] * 17}, "16"),
    (kinds.EVAL, {"collection": "handbook", "queries": [JUDGED], "k": 9}, "k"),
    (kinds.EVAL, {"collection": "handbook", "queries": [JUDGED | {"relevant": []}]}, "relevant"),
    (
        kinds.EVAL,
        {"collection": "handbook", "queries": [JUDGED | {"relevant": [{"id": "a", "text": "b"}]}]},
        "either id or text",
    ),
    (
        kinds.EVAL,
        {"collection": "handbook", "queries": [JUDGED | {"relevant": [{"id": "a", "grade": 0}]}]},
        "grades of 0",
    ),
]


def test_every_kind_has_an_input() -> None:
    assert set(kinds.KINDS) == {kind.name for kind in GOOD}


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in GOOD.items() for value in values]
)
def test_what_is_taken_comes_back_the_same_from_the_database(
    kind: Kind, value: dict[str, Any]
) -> None:
    parsed = kind.input.model_validate(value)

    stored = parsed.model_dump(mode="json")
    assert kind.input.model_validate(stored) == parsed
    assert stored.items() >= {k: v for k, v in value.items() if isinstance(v, str)}.items()


@pytest.mark.parametrize(("kind", "value", "named"), BAD)
def test_what_is_refused_is_named(kind: Kind, value: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        kind.input.model_validate(value)


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a-b",
        "a.b_c",
        "A1z",
        "0" * 128,
        "handbook-2024.v1",
        "핸드북",
        "고객 지원",
        "日本",
        "😀",
    ],
)
def test_names_of_collections(name: str) -> None:
    assert TypeAdapter(CollectionName).validate_python(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " ",
        "-abc",
        "abc-",
        ".abc",
        " a",
        "a ",
        "a/b",
        "a\\b",
        "a!",
        "a" * 129,
        "abc\n",
        "../x",
        "a\x00b",
        "a\u200bb",
        "가\u3000나",
        "a\u2028b",
        "\ufeffa",
        "a:b",
        "..",
    ],
)
def test_what_is_no_name_of_a_collection(name: str) -> None:
    with pytest.raises(ValidationError):
        SearchInput(collection=name, query="q")


def test_the_pattern_is_one_that_json_schema_can_carry() -> None:
    schema = RagInput.model_json_schema()

    assert schema["properties"]["collection"]["pattern"] == COLLECTION_NAME


def test_the_defaults_are_those_of_the_contract() -> None:
    payload = IngestInput.model_validate(INGEST)

    assert (payload.splitter.type, payload.splitter.chunk_size) == (SplitterType.RECURSIVE, None)
    assert payload.splitter.size == 1000
    assert payload.splitter.chunk_overlap == 200
    assert (payload.on_existing, payload.metadata, payload.csv) == ("replace", {}, CsvOptions())
    assert SearchInput(collection="handbook", query="q").k == 6
    assert RagInput(collection="handbook", question="q").model is None
    assert EmbedInput(texts=["a"]).model is None


def test_metadata_keeps_the_types_of_its_values() -> None:
    metadata = {"bool": True, "int": 1, "float": 1.0, "text": "1", "big": 2**63 - 1}

    kept = IngestInput.model_validate(INGEST | {"metadata": metadata}).metadata

    assert [type(value) for value in kept.values()] == [bool, int, float, str, int]
    assert kept == metadata


@pytest.mark.parametrize(
    "written", [ID, ID.upper(), ID.replace("-", ""), f"urn:uuid:{ID}", f"{{{ID}}}"]
)
def test_an_id_of_a_file_is_the_same_however_it_is_written(written: str) -> None:
    assert FileSource(type="file", file_id=written).file_id == ID


def test_what_is_no_id_of_a_file_is_kept_for_the_message_about_it() -> None:
    assert FileSource(type="file", file_id="report.pdf").file_id == "report.pdf"


@given(size=st.integers(16, 100_000), overlap=st.integers(0, 50_000))
def test_an_overlap_is_at_most_half_of_its_chunk(size: int, overlap: int) -> None:
    if 2 * overlap <= size:
        assert Splitter(chunk_size=size, chunk_overlap=overlap).chunk_overlap == overlap
    else:
        with pytest.raises(ValidationError, match="chunk_overlap must be smaller"):
            Splitter(chunk_size=size, chunk_overlap=overlap)


def test_shapes_are_frozen() -> None:
    payload = EraseInput(collection="handbook")

    with pytest.raises(ValidationError, match="frozen"):
        payload.collection = "another"  # type: ignore[misc]


def test_results_refuse_fields_that_the_contract_does_not_have() -> None:
    good = {"documents": {"added": 1, "replaced": 0, "skipped": 0, "failed": 0}, "chunks": 1}
    IngestResult.model_validate(good | {"errors": []})

    with pytest.raises(ValidationError):
        IngestResult.model_validate(good | {"errors": [], "vectors": 1})


def test_a_hit_has_the_fields_of_the_contract() -> None:
    always, where_asked = list(Hit.model_fields)[:7], list(Hit.model_fields)[7:]
    assert always == [
        "chunk_id", "document_id", "source", "text", "start", "score", "metadata",
    ]  # fmt: skip
    assert where_asked == ["collection", "span", "debug"]


def test_a_text_source_may_be_as_long_as_a_book() -> None:
    assert len(TextSource(type="text", text="a" * 3_000_000).text) == 3_000_000
