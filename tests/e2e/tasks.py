"""What the tiny models of the stack are right about, one example of each task: inputs, and whether
an answer is right."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from shared.kinds.hf import Task
from tests.tiny import bart, crossencoder, distilbert, marian, mlm, ner, nli, roberta_qa, voice

SPOKEN = "HELLO ALICE"
SUMMARIZED = next(iter(bart.SUMMARIES))
TRANSLATED = next(iter(marian.ENGLISH))
FELT = next(iter(distilbert.SENTIMENTS))
QUESTION = roberta_qa.QUESTIONS[0]
NAMED = next(iter(ner.ENTITIES))
FILLED = next(iter(mlm.FILLED))
ABOUT = next(iter(nli.ABOUT))
QUERY = list(crossencoder.ANSWERS)[2]


def sound(text: str = SPOKEN, *, format_: str = "FLAC", rate: int = 16_000) -> bytes:
    return voice.recorded(text, format_=format_, rate=rate)


@dataclass(frozen=True, kw_only=True)
class Example:
    """`inputs` as the API takes them, and the right answer of a single input."""

    task: Task
    inputs: Any
    is_right: Callable[[Any], bool]
    parameters: dict[str, Any] | None = None


EXAMPLES = [
    Example(
        task=Task("summarization"),
        inputs=SUMMARIZED,
        is_right=lambda a: a == [{"summary_text": bart.SUMMARIES[SUMMARIZED]}],
    ),
    Example(
        task=Task("translation"),
        inputs=TRANSLATED,
        is_right=lambda a: a == [{"translation_text": marian.ENGLISH[TRANSLATED]}],
    ),
    Example(
        task=Task("text-classification"),
        inputs=FELT,
        is_right=lambda a: a[0][0]["label"] == distilbert.SENTIMENTS[FELT],
    ),
    Example(
        task=Task("question-answering"),
        inputs={"question": QUESTION.question, "context": QUESTION.context},
        is_right=lambda a: (
            a["answer"] == QUESTION.answer == QUESTION.context[a["start"] : a["end"]]
            and 0 < a["score"] <= 1
        ),
    ),
    Example(
        task=Task("sentence-similarity"),
        inputs={
            "source_sentence": "A cat sits outside.",
            "sentences": ["A cat is outdoors.", "Tax"],
        },
        is_right=lambda a: a[0] > 0.6 > a[1],
    ),
    Example(
        task=Task("token-classification"),
        inputs=NAMED,
        is_right=lambda a: (
            [(entity["entity_group"], NAMED[entity["start"] : entity["end"]]) for entity in a]
            == ner.ENTITIES[NAMED]
        ),
    ),
    Example(
        task=Task("fill-mask"),
        inputs=FILLED,
        is_right=lambda a: a[0]["token_str"] == mlm.FILLED[FILLED][0],
    ),
    Example(
        task=Task("zero-shot-classification"),
        inputs=ABOUT,
        parameters={"candidate_labels": ["sports", "cooking", "politics"]},
        is_right=lambda a: a[0]["label"] in nli.ABOUT[ABOUT],
    ),
    Example(
        task=Task("text-ranking"),
        inputs={"query": QUERY, "texts": list(crossencoder.ANSWERS.values())},
        is_right=lambda a: a[0]["index"] == list(crossencoder.ANSWERS).index(QUERY),
    ),
    Example(
        task=Task("feature-extraction"),
        inputs="A cat sits outside.",
        is_right=lambda a: len(a) == 384 and abs(sum(x * x for x in a) - 1) < 1e-3,
    ),
]
