"""Text classification and zero-shot classification give what transformers' pipelines give, in
batches of any company, and say what they cut off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    GPT2Config,
    GPT2ForSequenceClassification,
    XLNetConfig,
)

from shared.errors import InvalidInput, WrongTask
from shared.kinds.hf import TASKS, Task
from tests.models.hf_tasks import HALF, OPTIONS, assert_same, outputs, reference_pipeline, warnings
from tests.tiny import crossencoder, distilbert, nli
from tests.tiny_models import one_thread
from workers.hf.tasks import classification, sentences, tokens
from workers.hf.tasks.classification import TextClassification, ZeroShotClassification

CLASSIFY = Task("text-classification")
ZERO_SHOT = Task("zero-shot-classification")
RANK = Task("text-ranking")
TEXTS = [*distilbert.SENTIMENTS, "Neither here nor there", "?", "the film was " * 90]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As workers have it; more of them only wait for each other over models this small."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def classifier() -> TextClassification:
    return classification.load_text_classification(distilbert.folder(), OPTIONS)


@pytest.fixture(scope="module")
def zero_shot_classifier() -> ZeroShotClassification:
    return classification.load_zero_shot_classification(nli.folder(), OPTIONS)


@pytest.fixture(scope="module")
def classify(classifier: TextClassification) -> Any:
    return reference_pipeline(
        "text-classification", model=classifier.model, tokenizer=classifier.tokenizer
    )


def test_sentiments_are_right(classifier: TextClassification) -> None:
    answers = outputs(classifier, CLASSIFY, list(distilbert.SENTIMENTS))
    assert [answer[0]["label"] for answer in answers] == list(distilbert.SENTIMENTS.values())
    assert all(best["score"] > 0.99 and {best["label"], other["label"]} == {"POSITIVE", "NEGATIVE"}
               for best, other in answers)  # fmt: skip
    # As the API nests the labels of a single text.
    assert TASKS[CLASSIFY].alone(answers[0]) == [answers[0]]


def test_answers_stay_right_in_half_precision() -> None:
    answers = outputs(
        classification.load_text_classification(distilbert.folder(), HALF),
        CLASSIFY,
        list(distilbert.SENTIMENTS),
    )
    assert [answer[0]["label"] for answer in answers] == list(distilbert.SENTIMENTS.values())
    answers = outputs(
        classification.load_zero_shot_classification(nli.folder(), HALF),
        ZERO_SHOT,
        list(nli.ABOUT),
        candidate_labels=nli.TOPICS,
    )
    for topics, answer in zip(nli.ABOUT.values(), answers, strict=True):
        assert answer[0]["label"] in topics
    texts = list(crossencoder.ANSWERS.values())
    values = [{"query": query, "texts": texts} for query in crossencoder.ANSWERS]
    answers = outputs(sentences.load_text_ranking(crossencoder.folder(), HALF), RANK, values)
    assert [answer[0]["index"] for answer in answers] == list(range(len(texts)))


@pytest.mark.parametrize("function", [None, "softmax", "sigmoid", "none"])
@pytest.mark.parametrize("top_k", [None, 1, 2, 9])
def test_scores_are_those_of_the_pipeline(
    classifier: TextClassification, classify: Any, function: str | None, top_k: int | None
) -> None:
    answers = outputs(classifier, CLASSIFY, TEXTS, top_k=top_k, function_to_apply=function)
    assert_same(answers, classify(TEXTS, top_k=top_k, function_to_apply=function))


@pytest.mark.parametrize(
    "problem", ["regression", "single_label_classification", "multi_label_classification"]
)
def test_the_usual_function_is_that_of_the_models_problem(
    classifier: TextClassification,
    classify: Any,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(classifier.model.config, "problem_type", problem)
    assert_same(outputs(classifier, CLASSIFY, TEXTS[:2]), classify(TEXTS[:2], top_k=None))


def test_a_long_text_is_judged_by_its_beginning_and_says_so(
    classifier: TextClassification, classify: Any
) -> None:
    text = "I hate this film. " * 3000
    assert warnings(classifier, CLASSIFY, text) == [
        "was cut from 15,002 to 512 tokens, which is all that the model takes at once."
    ]
    assert warnings(classifier, CLASSIFY, TEXTS[-1]) == []
    expected = classify([text], top_k=None, truncation=True)
    assert_same(outputs(classifier, CLASSIFY, [text]), expected)


def test_a_decoder_without_padding_judges_each_text_alone(tmp_path: Path) -> None:
    """It would take another text's padding for the end of this one."""
    torch.manual_seed(0)
    words = distilbert.folder()
    tokenizer = classification.load_text_classification(words, OPTIONS).tokenizer
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=64,
        num_labels=3,  # type: ignore[call-arg]  # a property, which mypy takes for no field
        initializer_range=0.5,
    )  # fmt: skip
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task = classification.load_text_classification(tmp_path, OPTIONS)
    expected = reference_pipeline("text-classification", model=task.model, tokenizer=task.tokenizer)
    texts = TEXTS[:5]
    assert_same(outputs(task, CLASSIFY, texts), expected(texts, top_k=None))
    assert "to 64 tokens" in warnings(task, CLASSIFY, TEXTS[-1])[0]


@pytest.mark.parametrize("architecture", ["bert", "xlnet"])
def test_padding_moves_nothing_on_either_side(tmp_path: Path, architecture: str) -> None:
    """BERT counts positions from the left, whatever its tokenizer was saved with; XLNet reads its
    verdict at the right end."""
    tokenizer = classification.load_text_classification(distilbert.folder(), OPTIONS).tokenizer
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    rest: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "num_labels": 3,
        "initializer_range": 0.5,
    }
    config: Any = {
        "bert": BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, **rest),
        "xlnet": XLNetConfig(d_model=32, n_layer=1, n_head=2, d_inner=32, **rest),
    }[architecture]
    torch.manual_seed(0)
    architectures: list[tuple[Any, Task]] = [
        (AutoModelForSequenceClassification, CLASSIFY),
        (AutoModelForTokenClassification, Task("token-classification")),
    ]
    for auto, name in architectures:
        auto.from_config(config).save_pretrained(tmp_path)
        load = (
            classification.load_text_classification
            if name is CLASSIFY
            else tokens.load_token_classification
        )
        task: Any = load(tmp_path, OPTIONS)
        together = outputs(task, name, TEXTS[:5])
        assert_same(together, [outputs(task, name, [text])[0] for text in TEXTS[:5]])


@pytest.mark.parametrize("text", nli.ABOUT)
def test_topics_are_right(zero_shot_classifier: ZeroShotClassification, text: str) -> None:
    [answer] = outputs(
        zero_shot_classifier, ZERO_SHOT, [text], candidate_labels=nli.TOPICS, multi_label=True
    )
    assert {entry["label"] for entry in answer if entry["score"] > 0.9} == nli.ABOUT[text]
    assert [entry["label"] for entry in answer if entry["score"] > 0.1] == [
        entry["label"] for entry in answer[: len(nli.ABOUT[text])]
    ]


@pytest.mark.parametrize(
    "options",
    [
        {"candidate_labels": nli.TOPICS},
        {"candidate_labels": nli.TOPICS, "multi_label": True},
        {"candidate_labels": ["cooking"]},
        {"candidate_labels": "sports, cooking", "hypothesis_template": "주제: {}"},
    ],
)
def test_zero_shot_scores_are_those_of_the_pipeline(
    zero_shot_classifier: ZeroShotClassification, options: dict[str, Any]
) -> None:
    task = zero_shot_classifier
    expected = reference_pipeline(
        "zero-shot-classification", model=task.model, tokenizer=task.tokenizer
    )
    # The second text has an end token of its own, which BART counts.
    texts = [*nli.ABOUT, "The striker </s> scored twice.", "x " * 300]
    answers = outputs(task, ZERO_SHOT, texts, **options)
    reference = [
        [
            {"label": label, "score": score}
            for label, score in zip(answer["labels"], answer["scores"], strict=True)
        ]
        for answer in expected(texts, **options)
    ]
    assert_same(answers, reference)


def test_zero_shot_cuts_the_text_and_never_the_label(
    zero_shot_classifier: ZeroShotClassification,
) -> None:
    task = zero_shot_classifier
    text = "x " * 30_000
    pairs = [task.tokenizer(text, nli.TEMPLATE.format(topic)) for topic in nli.TOPICS]
    longest = max(len(pair["input_ids"]) for pair in pairs)
    assert warnings(task, ZERO_SHOT, text, candidate_labels=nli.TOPICS) == [
        f"was cut from {longest:,} to 256 tokens, which is all that the model takes at once."
    ]
    with pytest.raises(InvalidInput, match=r"have 6\d\d tokens; the model takes 256"):
        warnings(task, ZERO_SHOT, "short", candidate_labels=["sports", "y " * 300])


def test_braces_of_a_template_are_text(zero_shot_classifier: ZeroShotClassification) -> None:
    options = {"candidate_labels": ["a", "b"], "hypothesis_template": "{} {0} {x}"}
    assert len(outputs(zero_shot_classifier, ZERO_SHOT, ["text"], **options)[0]) == 2


def test_a_model_of_sentiments_is_none_for_zero_shot() -> None:
    with pytest.raises(WrongTask, match="zero-shot-classification"):
        classification.load_zero_shot_classification(distilbert.folder(), OPTIONS)
