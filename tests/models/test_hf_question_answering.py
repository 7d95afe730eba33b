"""Answers are right, and lie where they are said to lie; unfit questions are refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    ByT5Tokenizer,
    RobertaForQuestionAnswering,
    T5Config,
    T5ForQuestionAnswering,
)

from shared.errors import InvalidInput, Permanent
from shared.hf.question_answering import QuestionAnsweringParameters
from shared.kinds.hf import Task
from tests.models.hf_tasks import OPTIONS, outputs, warnings
from tests.tiny import roberta_qa
from tests.tiny.roberta_qa import IMPOSSIBLE, LONG, QUESTIONS
from tests.tiny_models import one_thread
from workers.hf.task import UNWATCHED
from workers.hf.tasks import question_answering
from workers.hf.tasks.question_answering import QuestionAnswering

QA = Task("question-answering")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As workers have it; more of them only wait for each other over models this small."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def trained() -> QuestionAnswering:
    return question_answering.load_question_answering(roberta_qa.folder(), OPTIONS)


def _value(example: roberta_qa.Question) -> dict[str, str]:
    return {"question": example.question, "context": example.context}


VALUES = [_value(example) for example in QUESTIONS]
ANSWERED = [example for example in QUESTIONS if example.answer]


def test_answers_are_right_in_english_and_korean(trained: QuestionAnswering) -> None:
    answers = outputs(trained, QA, [_value(example) for example in ANSWERED], align_to_words=False)
    assert [answer["answer"] for answer in answers] == [example.answer for example in ANSWERED]
    for answer, example in zip(answers, ANSWERED, strict=True):
        assert answer["start"] == example.context.index(example.answer)
        assert answer["end"] == answer["start"] + len(example.answer)
        assert 0.5 < answer["score"] <= 1
        assert list(answer) == ["score", "start", "end", "answer"]


def test_an_answer_may_lie_in_a_late_one_of_many_windows(trained: QuestionAnswering) -> None:
    prepared = trained.prepare(_value(LONG), QuestionAnsweringParameters())
    assert len(prepared.rows) > 3
    early = prepared.rows[-3].data
    last = early.first + early.context.stop - early.context.start - 1
    assert LONG.context.index(LONG.answer) > prepared.rest.text.ends[last]
    [answer] = outputs(trained, QA, [_value(LONG)])
    assert answer["answer"] == LONG.answer
    assert answer["score"] > 0.9


def test_only_a_question_without_an_answer_is_said_to_have_none(
    trained: QuestionAnswering,
) -> None:
    answers = outputs(trained, QA, VALUES, handle_impossible_answer=True)
    for example, answer in zip(QUESTIONS, answers, strict=True):
        if example is IMPOSSIBLE:
            assert answer | {"score": 1} == {"score": 1, "start": 0, "end": 0, "answer": ""}
            assert 0.9 < answer["score"] <= 1
        else:
            assert answer["answer"]
    [unasked] = outputs(trained, QA, [_value(IMPOSSIBLE)])
    assert unasked["answer"]
    assert unasked["score"] < 0.01


def test_answers_are_whole_words_by_default(trained: QuestionAnswering) -> None:
    capital = QUESTIONS[4]
    [word] = outputs(trained, QA, [_value(capital)])
    assert word["answer"] == "서울은"
    assert capital.context[word["start"] : word["end"]] == "서울은"


def test_several_answers_come_best_first_and_differ(trained: QuestionAnswering) -> None:
    for answers in outputs(trained, QA, VALUES, top_k=5, handle_impossible_answer=True):
        assert len(answers) == 5
        scores = [answer["score"] for answer in answers]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) <= 1
        assert len({answer["answer"].lower() for answer in answers}) == 5
    # The only span there is, and still a list.
    short = {"question": "Where?", "context": "London"}
    [[only]] = outputs(trained, QA, [short], top_k=5)
    assert only["answer"] == "London"


def test_what_rows_give_is_json_and_small(trained: QuestionAnswering) -> None:
    """A job that goes on in another step keeps it."""
    parameters = QuestionAnsweringParameters()
    prepared = trained.prepare(_value(LONG), parameters)
    rows = trained.run(prepared.rows, UNWATCHED)
    kept = [json.dumps(row) for row in rows]
    assert max(len(text) for text in kept) < 12 * roberta_qa.WINDOW_TOKENS + 100
    stored = [json.loads(text) for text in kept]
    assert trained.finish(prepared, stored, parameters) == trained.finish(
        prepared, rows, parameters
    )


def test_what_is_cut_off_or_changed_is_reported(trained: QuestionAnswering) -> None:
    value = _value(LONG) | {"question": "Who, " * 50 + LONG.question}
    [warning] = warnings(trained, QA, value, max_question_len=20)
    size = len(trained.tokenizer(value["question"], add_special_tokens=False)["input_ids"])
    assert warning == (
        f"has a question of {size} tokens, which was cut to 20; max_question_len can be raised."
    )
    [warning] = warnings(trained, QA, _value(LONG), max_seq_len=512)
    assert "in windows of 64 tokens and not of 512" in warning
    assert warnings(trained, QA, _value(QUESTIONS[0]), max_seq_len=512) == []
    assert warnings(trained, QA, _value(LONG)) == []


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ({}, {"doc_stride": 60}, r"cannot overlap by 60\. Lower doc_stride"),
        ({"question": "Who? " * 40}, {}, "leaves no room for the context in windows of 64"),
        ({"question": "Who? " * 40}, {"max_seq_len": 32}, "Raise max_seq_len, or lower"),
    ],
)
def test_windows_without_room_are_refused(
    trained: QuestionAnswering, value: dict[str, str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        outputs(trained, QA, [_value(LONG) | value], **options)


def test_scores_that_are_no_numbers_are_reported(trained: QuestionAnswering) -> None:
    parameters = QuestionAnsweringParameters()
    prepared = trained.prepare(_value(LONG), parameters)
    config: Any = trained.model.config
    broken: Any = RobertaForQuestionAnswering(config)
    broken.qa_outputs.bias.data.fill_(float("nan"))
    rows = QuestionAnswering(broken.eval(), trained.tokenizer, OPTIONS).run(
        prepared.rows, UNWATCHED
    )
    with pytest.raises(Permanent, match="SLUICE_HF_DTYPE=float32"):
        trained.finish(prepared, rows, parameters)


def test_a_tokenizer_that_knows_no_places_is_refused(tmp_path: Path) -> None:
    config = T5Config(d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2, vocab_size=384)
    T5ForQuestionAnswering(config).save_pretrained(tmp_path)
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(Permanent, match="needs a fast one"):
        question_answering.load_question_answering(tmp_path, OPTIONS)
