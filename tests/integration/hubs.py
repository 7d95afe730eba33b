"""A hub for tests of the back end `hub`, and what each task is to answer."""

from collections.abc import Iterator
from typing import Any

import pytest

from shared.config import Settings
from shared.kinds.hf import Task
from tests.wire.behaviour import Wire
from tests.wire.hub import TOKEN, served_hub

FLAC = b"fLaC" + bytes(96)
PNG = b"\x89PNG" + bytes(46)


@pytest.fixture(scope="module")
def hub() -> Iterator[Wire]:
    with served_hub() as wire:
        yield wire


@pytest.fixture
def wire(hub: Wire) -> Wire:
    """The hub, which behaves well unless the test says otherwise, and has been asked nothing."""
    hub.behaviours.clear()
    hub.requests.clear()
    return hub


@pytest.fixture
def settings(wire: Wire) -> Settings:
    return Settings(_env_file=None, hf_token=TOKEN, hf_hub_url=wire.url, hf_hub_timeout_s=60)


# What each task answers for one input (`finish` of the local back end), and for that input alone.
OUTPUTS: list[tuple[Task, Any, dict[str, Any], Any]] = [
    (Task("summarization"), "one two three four", {}, {"summary_text": "one two three"}),
    (Task("summarization"), "one two three", {"max_length": 2}, {"summary_text": "one two"}),
    (
        Task("summarization"),
        "one two three",
        {"num_beams": 2, "truncation": "do_not_truncate", "generate_parameters": {"max_length": 1}},
        {"summary_text": "one"},
    ),
    (
        Task("question-answering"),
        {"question": "Where?", "context": "It is in Paris"},
        {"handle_impossible_answer": True},
        {"score": 1.0, "start": 9, "end": 14, "answer": "Paris"},
    ),
    (
        Task("question-answering"),
        {"question": "Where?", "context": "It is in Paris"},
        {"top_k": 2},
        [
            {"score": 1.0, "start": 9, "end": 14, "answer": "Paris"},
            {"score": 0.5, "start": 6, "end": 8, "answer": "in"},
        ],
    ),
    (
        Task("sentence-similarity"),
        {"source_sentence": "a b", "sentences": ["a b", "a c d", "c"]},
        {},
        [1.0, 0.25, 0.0],
    ),
    (
        Task("text-classification"),
        "good",
        {},
        [{"label": "POSITIVE", "score": 0.75}, {"label": "NEGATIVE", "score": 0.25}],
    ),
    (Task("text-classification"), "bad", {"top_k": 1}, [{"label": "NEGATIVE", "score": 0.75}]),
    (Task("translation"), "hello", {}, {"translation_text": "HELLO"}),
    (
        Task("translation"),
        "hello",
        {"src_lang": "en_XX", "tgt_lang": "fr_XX"},
        {"translation_text": "fr_XX: HELLO"},
    ),
    (Task("automatic-speech-recognition"), FLAC, {}, {"text": "100 bytes"}),
    (
        Task("automatic-speech-recognition"),
        FLAC,
        {"return_timestamps": True, "generate_kwargs": {"num_beams": 2}},
        {"text": "100 bytes", "chunks": [{"text": "100 bytes", "timestamp": [0.0, None]}]},
    ),
    (
        Task("zero-shot-classification"),
        "about birds",
        {"candidate_labels": "cars, birds"},
        [{"label": "birds", "score": 1.0}, {"label": "cars", "score": 0.0}],
    ),
    (
        Task("token-classification"),
        "by Ann",
        {},
        [{"entity_group": "PER", "score": 0.5, "word": "Ann", "start": 3, "end": 6}],
    ),
    (
        Task("token-classification"),
        "by Ann",
        {"aggregation_strategy": "none", "ignore_labels": ["O"], "stride": 8},
        [{"entity": "PER", "score": 0.5, "word": "Ann", "start": 3, "end": 6}],
    ),
    (Task("token-classification"), "nobody", {}, []),
    (
        Task("fill-mask"),
        "a [MASK]",
        {"targets": ["tree"], "top_k": 1},
        [{"score": 1.0, "token": 0, "token_str": "tree", "sequence": "a tree"}],
    ),
    (Task("feature-extraction"), "aaeo", {}, [2.0, 1.0, 0.0, 1.0, 0.0]),
    (
        Task("feature-extraction"),
        "aaeo",
        {"normalize": True, "dimensions": 2, "truncate": True, "truncation_direction": "left"},
        [0.5, 0.25],
    ),
    (Task("feature-extraction"), "batch", {}, [1.0, 0.0, 0.0, 0.0, 0.0]),
    (Task("feature-extraction"), "tokens a", {}, [[0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0, 0, 0, 0]]),
    (Task("text-generation"), "go", {}, {"generated_text": "go again again"}),
    (
        Task("text-generation"),
        "go",
        {"return_full_text": False, "max_new_tokens": 1, "num_return_sequences": 2, "num_beams": 2},
        [{"generated_text": " again"}] * 2,
    ),
    (
        Task("text-ranking"),
        {"query": "a b", "texts": ["c", "a b", "b"]},
        {"return_text": True},
        [
            {"index": 1, "score": 2.0, "text": "a b"},
            {"index": 2, "score": 1.0, "text": "b"},
            {"index": 0, "score": 0.0, "text": "c"},
        ],
    ),
    (
        Task("image-classification"),
        PNG,
        {},
        [{"label": "50 bytes", "score": 0.5}, {"label": "cat", "score": 0.25}],
    ),
    (
        Task("image-classification"),
        PNG,
        {"top_k": 1, "function_to_apply": "softmax"},
        [{"label": "50 bytes", "score": 0.5}],
    ),
]
INPUTS: dict[Task, Any] = {task: value for task, value, _, _ in reversed(OUTPUTS)}
