"""Summaries: right word for word, in any company, of the lengths of the parameters, and left in
the middle when nobody waits for them."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from transformers import (
    BartForConditionalGeneration,
)

from shared.errors import Cancelled, InvalidInput
from shared.kinds.hf import TASKS, Task, parse_parameters
from tests.models.hf_generation import make_t5, rows, unlimited_tokenizer
from tests.models.hf_tasks import OPTIONS, outputs, warnings
from tests.tiny import bart
from tests.tiny_models import one_thread
from workers.hf.task import UNWATCHED
from workers.hf.tasks import generation
from workers.hf.tasks.generation import Seq2Seq, Summarization

SUMMARIZE = Task("summarization")
TEXTS = [*bart.SUMMARIES, "Rain.", "The museum closed two bridges, and " * 9]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def summarizer() -> Summarization:
    return generation.load_summarization(bart.folder(), OPTIONS)


def texts(task: Seq2Seq, generated: Sequence[list[list[int]]]) -> list[Any]:
    return [
        str(task.tokenizer.decode(beams[0], skip_special_tokens=True)).strip()
        for beams in generated
    ]


def test_summaries_are_right(summarizer: Summarization) -> None:
    answers = outputs(summarizer, SUMMARIZE, list(bart.SUMMARIES))
    assert answers == [{"summary_text": summary} for summary in bart.SUMMARIES.values()]
    # As the API answers a single text.
    assert TASKS[SUMMARIZE].alone(answers[0]) == [answers[0]]


def test_summaries_are_those_of_generate(summarizer: Summarization) -> None:
    """With the configuration that the model comes with: beams, lengths, what must not repeat."""
    model = BartForConditionalGeneration.from_pretrained(bart.folder()).eval()
    tokenizer = summarizer.tokenizer
    answers = outputs(summarizer, SUMMARIZE, TEXTS, max_length=40)
    for text, output in zip(TEXTS, answers, strict=True):
        tokens = tokenizer(bart.PREFIX + text, return_tensors="pt")
        [ids] = model.generate(**tokens, max_length=40)
        reference = str(tokenizer.decode(ids, skip_special_tokens=True))
        assert output == {"summary_text": reference.strip()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 1},
        {"num_beams": 2, "early_stopping": False, "length_penalty": 0.5},
        {"num_beams": 3, "early_stopping": "never", "repetition_penalty": 1.5},
        {"generate_parameters": {"num_beams": 1}, "min_length": 12},
    ],
)
def test_company_does_not_change_a_summary(
    summarizer: Summarization, options: dict[str, Any]
) -> None:
    options = {"max_length": 24, **options}
    together = outputs(summarizer, SUMMARIZE, TEXTS, **options)
    assert together == [outputs(summarizer, SUMMARIZE, [text], **options)[0] for text in TEXTS]
    # They did share a batch.
    assert len({row.group for row in rows(summarizer, SUMMARIZE, TEXTS, **options)}) == 1


def test_only_rows_that_are_generated_alike_share_a_batch(summarizer: Summarization) -> None:
    alike: list[dict[str, Any]] = [
        {}, {"seed": 5}, {"num_beams": 4}, {"temperature": 0}, {"generate_parameters": {}},
        {"do_sample": False, "top_p": 0.5}, {"max_length": 142}, {"max_new_tokens": 141},
    ]  # fmt: skip
    other: list[dict[str, Any]] = [
        {"num_beams": 1},
        {"max_length": 9},
        {"repetition_penalty": 2.0},
        {"min_length": 7},
    ]
    groups = [
        rows(summarizer, SUMMARIZE, ["A"], **options)[0].group for options in [*alike, *other]
    ]
    assert len(set(groups[: len(alike)])) == 1
    assert len(set(groups)) == 1 + len(other)
    # The budget counts what a row becomes in the model.
    [four], [one] = (rows(summarizer, SUMMARIZE, ["A"], num_beams=n) for n in (4, 1))
    assert four.size == 4 * one.size


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({"max_length": 7}, 1, 6),  # `generate` counts the token that begins every text.
        ({"max_length": 7, "min_length": 7}, 6, 6),
        ({"max_new_tokens": 3, "max_length": 50}, 1, 3),
        ({"max_new_tokens": 50, "generate_parameters": {"max_new_tokens": 2}}, 1, 2),
        ({"min_new_tokens": 40, "max_new_tokens": 40}, 40, 40),
    ],
)
def test_lengths_are_kept(
    summarizer: Summarization, options: dict[str, Any], least: int, most: int
) -> None:
    generated = summarizer.run(rows(summarizer, SUMMARIZE, TEXTS, **options), UNWATCHED)
    # The end is one of the tokens that are counted, and no part of the output.
    assert all(least - 1 <= len(tokens) <= most for [tokens] in generated)


def test_lengths_that_cannot_be_kept_are_errors(summarizer: Summarization) -> None:
    with pytest.raises(InvalidInput, match="at least 19 tokens, and at most 9"):
        outputs(summarizer, SUMMARIZE, TEXTS, min_length=20, max_length=10)
    with pytest.raises(InvalidInput, match="max_length is 1,"):
        outputs(summarizer, SUMMARIZE, TEXTS, max_length=1)
    # More than the model has positions for.
    [warning] = warnings(summarizer, SUMMARIZE, "A", max_new_tokens=3000)
    assert warning.startswith("gets at most 1,023 new tokens rather than 3,000")


def test_a_long_text_is_cut_and_said_to_be(summarizer: Summarization) -> None:
    long = "Heavy rain fell on the valley. " * 3000
    [warning] = warnings(summarizer, SUMMARIZE, long)
    count = len(summarizer.tokenizer(bart.PREFIX + long, verbose=False)["input_ids"])
    assert warning.startswith(f"was cut from {count:,} to 1,024 tokens")
    assert outputs(summarizer, SUMMARIZE, [long])[0]["summary_text"]
    with pytest.raises(InvalidInput, match=f"has {count:,} tokens, and the model takes 1,024"):
        outputs(summarizer, SUMMARIZE, [long], truncation="do_not_truncate")
    assert not warnings(summarizer, SUMMARIZE, TEXTS[0], truncation="do_not_truncate")


def test_what_is_sampled_depends_on_the_seed_alone(summarizer: Summarization) -> None:
    options = {"do_sample": True, "temperature": 5.0, "num_beams": 1, "seed": 7}
    state = torch.get_rng_state()
    together = outputs(summarizer, SUMMARIZE, TEXTS[:3], **options)
    assert together == [outputs(summarizer, SUMMARIZE, [text], **options)[0] for text in TEXTS[:3]]
    assert together != outputs(summarizer, SUMMARIZE, TEXTS[:3], **options | {"seed": 8})
    without = {**options, "seed": None}
    assert outputs(summarizer, SUMMARIZE, TEXTS[:1], **without) != outputs(
        summarizer, SUMMARIZE, TEXTS[:1], **without
    )
    # Nobody else's dice have moved.
    assert torch.equal(torch.get_rng_state(), state)


def test_the_time_for_a_text_is_kept(summarizer: Summarization) -> None:
    """No time at all is enough for one token: the clock is looked at behind each."""
    for options in ({"max_time": 0}, {"generate_parameters": {"max_time": 0}}):
        parameters = parse_parameters(
            SUMMARIZE, {"min_new_tokens": 9, "max_new_tokens": 9, "num_beams": 1, **options}
        )
        [[tokens]] = summarizer.run(summarizer.prepare(TEXTS[0], parameters).rows, UNWATCHED)
        assert len(tokens) == 1


def test_temperature_zero_is_greedy(summarizer: Summarization) -> None:
    short = TEXTS[:3]
    greedy = outputs(summarizer, SUMMARIZE, short)
    assert outputs(summarizer, SUMMARIZE, short, do_sample=True, temperature=0) == greedy


def test_a_temperature_alone_does_not_sample(summarizer: Summarization) -> None:
    """As `generate` has it, whom the API asked; but it is said."""
    short = TEXTS[:3]
    assert outputs(summarizer, SUMMARIZE, short, temperature=9.0, top_k=5) == outputs(
        summarizer, SUMMARIZE, short
    )
    [warning] = warnings(summarizer, SUMMARIZE, "A", temperature=9.0, top_k=5)
    assert warning.startswith("is not sampled, so temperature, top_k had no effect")
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "typical_p": 1.0}
    for options in (
        {"temperature": 0}, {"do_sample": False, "top_k": 5}, {"do_sample": True}, neutral,
        {"generate_parameters": neutral},
    ):  # fmt: skip
        assert not warnings(summarizer, SUMMARIZE, "A", **options)


@pytest.mark.parametrize("beams", [1, 4])
def test_a_row_that_nobody_waits_for_leaves_the_others_as_they_are(
    summarizer: Summarization, beams: int
) -> None:
    batch = rows(summarizer, SUMMARIZE, list(bart.SUMMARIES), num_beams=beams)
    calls = itertools.count()

    def watch() -> list[bool]:
        return [next(calls) >= 3, *[False] * (len(batch) - 1)]

    summaries = texts(summarizer, summarizer.run(batch, watch))
    assert summaries[1:] == list(bart.SUMMARIES.values())[1:]
    assert summaries[0] not in bart.SUMMARIES.values()


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("early", [True, False])
def test_a_batch_that_nobody_waits_for_ends_within_a_token(
    summarizer: Summarization, beams: int, early: bool
) -> None:
    options = {"min_new_tokens": 900, "max_new_tokens": 1000, "num_beams": beams}
    batch = rows(summarizer, SUMMARIZE, TEXTS[:3], early_stopping=early, **options)
    calls: list[int] = []

    def watch() -> list[bool]:
        calls.append(len(calls))
        # One after another: the batch ends with the last.
        return [len(calls) > n for n in (2, 5, 8)]

    summarizer.run(batch, watch)
    assert len(calls) == 9


def test_what_watch_raises_ends_the_batch_and_not_the_model(summarizer: Summarization) -> None:
    def watch() -> list[bool]:
        raise Cancelled

    with pytest.raises(Cancelled):
        summarizer.run(rows(summarizer, SUMMARIZE, TEXTS, min_length=100), watch)
    test_summaries_are_right(summarizer)


def test_nothing_is_logged(summarizer: Summarization, caplog: pytest.LogCaptureFixture) -> None:
    """Where transformers would warn: parameters that contradict the configuration or each other."""
    log = logging.getLogger("transformers")
    log.addHandler(caplog.handler)
    for options in (
        {"max_new_tokens": 5, "max_length": 9, "min_length": 2, "min_new_tokens": 3},
        {"do_sample": False, "temperature": 0.3, "top_k": 3, "typical_p": 0.5},
        {"num_beams": 1, "length_penalty": 3.0, "early_stopping": True},
        {"max_length": 3},
    ):
        outputs(summarizer, SUMMARIZE, [*TEXTS, "rain " * 3000], **options)
    log.removeHandler(caplog.handler)
    assert not caplog.records


def test_t5_gets_its_task_in_the_prompt() -> None:
    tokenizer = unlimited_tokenizer()
    task = Summarization(make_t5(), tokenizer, OPTIONS)
    for text in ("It rained.", "summarize: It rained."):
        [row] = rows(task, SUMMARIZE, [text])
        assert tokenizer.decode(row.data.ids) == "<s>summarize: It rained.</s>"
        assert row.data.arguments.settings["num_beams"] == 3
        assert row.data.arguments.new_tokens == 8
    # Nothing but `n_positions` says how long its texts may be.
    [warning] = warnings(task, SUMMARIZE, "rain " * 100)
    assert " to 64 tokens" in warning
