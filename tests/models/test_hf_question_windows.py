"""Answers from contexts longer than the window are those of a search through every span of every
window, put together token by token: models of random weights, on real texts."""

import json
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertTokenizer,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

from shared.errors import InvalidInput
from shared.hf.question_answering import QuestionAnsweringParameters
from shared.kinds.hf import Task
from tests.models.hf_tasks import OPTIONS, outputs
from tests.models.spans_reference import Seen, Token, brute_force
from tests.tiny.roberta_qa import byte_level_tokenizer
from tests.tiny.wordpiece import vocabulary
from tests.tiny_models import one_thread
from workers.hf.task import UNWATCHED
from workers.hf.tasks.question_answering import QuestionAnswering

QA = Task("question-answering")
DATA = Path(__file__).parents[3] / "shared" / "data"
CONTEXTS = 5
POSITIONS = 96
TOLERANCE = 1e-5
# Two spans may be closer than padding, which rounds, can tell apart.
CLOSE = 1e-4


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As workers have it; more of them only wait for each other over models this small."""
    with one_thread():
        yield


def _questions(language: str) -> list[dict[str, str]]:
    """The first question of some contexts."""
    path = DATA / f"xquad.{language}.json"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    articles = json.loads(path.read_text())["data"][: CONTEXTS * 4 : 4]
    paragraphs = [article["paragraphs"][0] for article in articles]
    return [{"question": p["qas"][0]["question"], "context": p["context"]} for p in paragraphs]


TINY: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "initializer_range": 0.7,
}  # fmt: skip


def _random(family: str, texts: Sequence[str]) -> QuestionAnswering:
    tokenizer: Any
    model: Any
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if family == "roberta":
            tokenizer = byte_level_tokenizer(texts, vocabulary=900, window_tokens=POSITIONS)
            model = RobertaForQuestionAnswering(
                RobertaConfig(
                    vocab_size=len(tokenizer), max_position_embeddings=POSITIONS + 2,
                    type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2, **TINY,
                )
            )  # fmt: skip
        else:
            words = vocabulary(texts, size=2000, lowercase=True)
            tokenizer = BertTokenizer(vocab=words, model_max_length=POSITIONS)
            model = BertForQuestionAnswering(
                BertConfig(vocab_size=len(words), max_position_embeddings=POSITIONS, **TINY)
            )
    return QuestionAnswering(model.eval(), tokenizer, OPTIONS)


@pytest.fixture(scope="module", params=list(product(("roberta", "bert"), ("en", "zh"))))
def case(request: pytest.FixtureRequest) -> tuple[QuestionAnswering, list[dict[str, str]]]:
    family, language = request.param
    values = _questions(language)
    return _random(family, [text for value in values for text in value.values()]), values


def _seen(
    task: QuestionAnswering, value: dict[str, str], size: int, stride: int, *, by_word: bool
) -> list[Seen]:
    """Each window alone and unpadded, put together token by token."""
    tokenizer = task.tokenizer
    question = tokenizer(value["question"], add_special_tokens=False)["input_ids"]
    whole = tokenizer(value["context"], add_special_tokens=False, return_offsets_mapping=True)
    ids, places = whole["input_ids"], whole["offset_mapping"]
    if by_word:
        words = whole.word_ids()
        within: dict[int, list[tuple[int, int]]] = {}
        for word, place in zip(words, places, strict=True):
            if place[0] < place[1]:
                within.setdefault(word, []).append(place)
        places = [
            (within[word][0][0], within[word][-1][1]) if word in within else place
            for word, place in zip(words, places, strict=True)
        ]
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    is_bert = isinstance(task.model, BertForQuestionAnswering)
    between = [sep] if is_bert else [sep, sep]
    head = [cls, *question, *between]
    room = size - len(head) - 1
    seen = []
    for first in range(0, len(ids), room - stride):
        part = ids[first : first + room]
        row = torch.tensor([[*head, *part, sep]])
        types = torch.tensor([[0] * len(head) + [1] * (len(part) + 1)])
        with torch.inference_mode():
            made = task.model(row, **({"token_type_ids": types} if is_bert else {}))
        starts, ends = made.start_logits[0].tolist(), made.end_logits[0].tolist()
        tokens = [
            Token(
                number=first + n,
                place=places[first + n],
                start=starts[len(head) + n],
                end=ends[len(head) + n],
            )
            for n in range(len(part))
        ]
        seen.append(Seen(tokens=tokens, none=(starts[0], ends[0])))
        if first + room >= len(ids):
            break
    return seen


@pytest.mark.data
@pytest.mark.parametrize(
    ("size", "stride", "by_word"), [(64, 16, True), (96, 32, False), (64, 32, False)]
)
def test_long_contexts_are_searched_as_by_brute_force(
    case: tuple[QuestionAnswering, list[dict[str, str]]], size: int, stride: int, by_word: bool
) -> None:
    task, values = case
    options = {"max_seq_len": size, "doc_stride": stride, "align_to_words": by_word}
    room = {
        value["question"]: size - 4 - len(task.tokenizer(value["question"])["input_ids"])
        for value in values
    }
    values = [value for value in values if room[value["question"]] > stride]
    assert len(values) >= CONTEXTS - 2
    seen = [_seen(task, value, size, stride, by_word=by_word) for value in values]
    assert all(len(windows) > 1 for windows in seen)
    for top_k, may_be_none in product((1, 5), (False, True)):
        results = outputs(
            task, QA, values, top_k=top_k, handle_impossible_answer=may_be_none, **options
        )
        for value, windows, answers in zip(values, seen, results, strict=True):
            context = value["context"]
            expected = brute_force(
                context, windows, top_k=top_k + 1, max_tokens=15, may_be_none=may_be_none
            )
            _assert_same([answers] if top_k == 1 else answers, expected, context)


def _assert_same(answers: list[dict[str, Any]], expected: list[Any], context: str) -> None:
    """`expected` has one more, to see how close the last one is to it."""
    assert len(answers) == len(expected) - 1
    for n, answer in enumerate(answers):
        assert answer["score"] == pytest.approx(expected[n].score, abs=TOLERANCE)
        assert context[answer["start"] : answer["end"]] == answer["answer"]
        others = [candidate.score for k, candidate in enumerate(expected) if k != n]
        if all(abs(other / expected[n].score - 1) > CLOSE for other in others):
            assert (answer["start"], answer["end"]) == (expected[n].start, expected[n].end)


@pytest.mark.data
def test_models_that_are_padded_on_the_left_read_the_context_first() -> None:
    [value, *_] = values = _questions("en")
    made = _random("bert", [text for pair in values for text in pair.values()])
    made.tokenizer.padding_side = "left"
    made.tokenizer.truncation_side = "left"
    task = QuestionAnswering(made.model, made.tokenizer, OPTIONS)
    parameters = QuestionAnsweringParameters(max_seq_len=64, doc_stride=16)
    prepared = task.prepare(value, parameters)
    question = task.tokenizer(value["question"], add_special_tokens=False)["input_ids"]
    for row in prepared.rows:
        ids = row.data.tokens.inputs["input_ids"]
        assert ids[-len(question) - 1 : -1] == question
        assert row.data.context == slice(1, len(ids) - len(question) - 2)
    together = task.run(prepared.rows, UNWATCHED)
    alone = [output for row in prepared.rows for output in task.run([row], UNWATCHED)]
    for one, other in zip(together, alone, strict=True):
        assert _logits(one) == pytest.approx(_logits(other), abs=1e-4)
    # From the front of the context on, whatever side texts are usually cut on.
    assert prepared.rest.text.starts[0] == 0
    assert prepared.rest.text.starts.tolist() == sorted(prepared.rest.text.starts)


def _logits(output: dict[str, Any]) -> list[float]:
    numbers: list[float] = np.frombuffer(b64decode(output["logits"]), dtype="<f4").tolist()
    return [*numbers, *output["no_answer"]]


@pytest.mark.data
def test_company_and_type_do_not_matter_much() -> None:
    values = _questions("zh")
    task = _random("roberta", [text for pair in values for text in pair.values()])
    options = {"max_seq_len": 80, "doc_stride": 8}
    together = outputs(task, QA, values, **options)
    alone = [outputs(task, QA, [value], **options)[0] for value in values]
    for one, other in zip(together, alone, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=TOLERANCE)
        assert one["answer"] == other["answer"]
    half = QuestionAnswering(
        task.model.bfloat16(), task.tokenizer, replace(OPTIONS, dtype=torch.bfloat16)
    )
    for value, answer in zip(values, outputs(half, QA, values, **options), strict=True):
        assert value["context"][answer["start"] : answer["end"]] == answer["answer"]


def test_a_context_without_tokens_is_refused() -> None:
    task = _random("bert", ["a b c d e f", "Where? How?"])
    with pytest.raises(InvalidInput, match="finds nothing to read"):
        outputs(task, QA, [{"question": "Where?", "context": "\u200b\u200b"}])
    # Nothing of the second one is a word to this tokenizer, but one is enough.
    [answer] = outputs(task, QA, [{"question": "Where?", "context": " \u200b\n a \u200b"}])
    assert answer["answer"] == "a"
    assert answer["start"] == 4
