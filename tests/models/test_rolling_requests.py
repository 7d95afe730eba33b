"""What one request may expect of the rolling batch: its own sampling, stops, limits and ends."""

import random
import threading
import time
from typing import Any

import pytest

from shared.errors import InvalidInput, Retryable
from tests.models import tiny
from tests.models.tiny import TEXTS, Reference, asks, ids_of, rolling
from workers.generation.backends.interface import (
    Completion,
    FinishReason,
    Generation,
    Message,
    Request,
    Resume,
    Role,
    Sampling,
)
from workers.generation.backends.rolling.generator import RollingGenerator

WARM = {"temperature": 1.5, "seed": 7}
VARIANTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "warm": WARM,
    "top-k": {**WARM, "top_k": 9},
    "top-p": {**WARM, "top_p": 0.7},
    "penalty": {**WARM, "repetition_penalty": 1.4},
    "greedy-penalty": {"repetition_penalty": 1.4},
}


def _text(generation: Generation) -> str:
    return "".join(delta.text for delta in generation)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_request_is_answered_the_same_in_any_company(variant: str) -> None:
    options = VARIANTS[variant]
    chooser = random.Random(variant)
    with rolling(generation_prefix_fraction=0) as generator:
        alone = ids_of(generator.start(asks(TEXTS[0], **options)))
    with rolling(generation_batch_requests=6, generation_prefill_tokens=9) as generator:
        crowd = [
            generator.start(asks(TEXTS[n % 2] * chooser.randint(1, 3), temperature=2.0, seed=n))
            for n in range(9)
        ]
        beside = ids_of(generator.start(asks(TEXTS[0], **options)))
        for generation in crowd:
            generation.result()
        assert generator.counters.largest_batch == 6
    assert beside == alone
    assert len(set(alone)) > 3


def test_seeds_differ_and_repeat() -> None:
    with rolling() as generator:
        answers = [
            tuple(ids_of(generator.start(asks(TEXTS[0], temperature=1.0, seed=seed))))
            for seed in (1, 2, 1, None, None)
        ]
    assert answers[0] == answers[2]
    assert len(set(answers)) == 4


@pytest.mark.parametrize("variant", ["greedy", "penalty", "top-p"])
def test_resumed_anywhere_the_text_goes_on_as_if_never_interrupted(variant: str) -> None:
    options = {**VARIANTS[variant], "stop": ("xyz", "dog")}
    with rolling() as generator:
        deltas = list(generator.start(asks(TEXTS[1], 30, **options)))
        whole = generator.start(asks(TEXTS[1], 30, **options)).result()
        started = []
        for cut in range(len(deltas)):
            shown = Resume(
                text="".join(delta.text for delta in deltas[:cut]),
                token_ids=tuple(t for delta in deltas[:cut] for t in delta.token_ids),
            )
            started.append((shown, generator.start(asks(TEXTS[1], 30, resume=shown, **options))))
        for shown, generation in started:
            assert shown.text + _text(generation) == whole.text
            assert generation.result() == whole


def test_a_resume_without_ids_goes_on_behind_the_text() -> None:
    with rolling() as generator:
        resume = Resume(text="hello world")
        generation = generator.start(asks(TEXTS[0], 20, resume=resume))
        more = _text(generation)
        completion = generation.result()
    assert completion.text == "hello world" + more
    assert completion.completion_tokens == 20


def test_a_resume_that_is_complete_ends_at_once() -> None:
    with rolling() as generator:
        full = list(generator.start(asks(TEXTS[0], 5)))
        ids = tuple(token for delta in full for token in delta.token_ids)
        done = generator.start(asks(TEXTS[0], 5, resume=Resume(token_ids=ids))).result()
        assert done.finish_reason == FinishReason.LENGTH
        assert done.completion_tokens == 5
        assert generator.counters.decode_steps == 4


def test_what_was_shown_at_the_end_is_not_shown_again() -> None:
    """Text that was held back for a stop string is shown once the text has ended without it."""
    with rolling() as generator:
        whole = generator.start(asks(TEXTS[0], 6)).result().text
        stop = (whole[-3:] + "never",)
        deltas = list(generator.start(asks(TEXTS[0], 6, stop=stop)))
        assert "".join(delta.text for delta in deltas) == whole
        ids = tuple(token for delta in deltas for token in delta.token_ids)
        resume = Resume(text=whole, token_ids=ids)
        generation = generator.start(asks(TEXTS[0], 6, stop=stop, resume=resume))
        assert _text(generation) == ""
        assert generation.result().text == whole


def test_every_position_is_drawn_anew() -> None:
    with rolling(tiny.model(tiny.llama(), tiny.Flat)) as generator:
        ids = ids_of(generator.start(asks(TEXTS[0], 24, temperature=1.0, seed=3)))
    assert len(set(ids)) > 15


def test_stop_strings_end_the_text_across_tokens() -> None:
    with rolling() as generator:
        whole = generator.start(asks(TEXTS[0], 40)).result().text
        for start in range(0, len(whole) - 6, 3):
            stop = whole[start : start + 5]
            generation = generator.start(asks(TEXTS[0], 40, stop=("never", stop)))
            shown = _text(generation)
            completion = generation.result()
            assert completion.finish_reason == FinishReason.STOP
            assert shown == completion.text == whole[: whole.index(stop)]


def test_an_end_token_ends_the_text_and_is_not_part_of_it() -> None:
    reference = Reference(tiny.tiny_llama())
    ids = tiny.tokenizer()(TEXTS[0]).input_ids
    greedy = reference.greedy(ids, 12)
    end = greedy[8]
    before = greedy[: greedy.index(end)]
    with rolling(ends=frozenset({end})) as generator:
        generation = generator.start(asks(TEXTS[0]))
        assert ids_of(generation) == before
        completion = generation.result()
    assert completion.finish_reason == FinishReason.STOP
    assert completion.completion_tokens == len(before)
    assert completion.prompt_tokens == len(ids)


def test_korean_is_never_cut_within_a_character() -> None:
    said = "안녕하세요, 뷁쉛 세계! 👋🏽 끝"
    ids = tiny.tokenizer()(said).input_ids
    assert len(ids) > len(said) / 2
    with rolling(tiny.scripted(ids)) as generator:
        pieces = [delta.text for delta in generator.start(asks("hello", len(ids)))]
        cut = [generator.start(asks("hello", count)).result().text for count in range(1, len(ids))]
    assert "".join(pieces) == said
    assert "" in pieces
    assert all(said.startswith(text) for text in [*cut, *pieces[:1]])
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_cancelled_while_running_and_while_waiting() -> None:
    with rolling(generation_batch_requests=1) as generator:
        running = generator.start(asks(TEXTS[0], 200))
        waiting = generator.start(asks(TEXTS[1], 200))
        first = running.read(10)
        assert first is not None
        waiting.cancel()
        assert waiting.result() == Completion(
            text="",
            finish_reason=FinishReason.CANCELLED,
            prompt_tokens=len(tiny.tokenizer()(TEXTS[1]).input_ids),
            completion_tokens=0,
        )
        running.cancel()
        rest = _text(running)
        completion = running.result()
        assert completion.finish_reason == FinishReason.CANCELLED
        assert completion.text == first.text + rest
        assert completion.completion_tokens < 200
        assert generator.start(asks(TEXTS[0], 3)).result().completion_tokens == 3


def test_a_deadline_ends_with_what_there_is() -> None:
    with rolling() as generator:
        late = generator.start(asks(TEXTS[0], 10, deadline=time.monotonic() - 1)).result()
        assert (late.finish_reason, late.completion_tokens) == (FinishReason.DEADLINE, 0)
        soon = time.monotonic() + 0.05
        generation = generator.start(asks(TEXTS[0], 200, deadline=soon))
        beside = generator.start(asks(TEXTS[0], 8)).result()
        completion = generation.result()
    assert beside.finish_reason == FinishReason.LENGTH
    # On a fast machine the text may be complete by then.
    if completion.completion_tokens < 200:
        assert completion.finish_reason == FinishReason.DEADLINE


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(temperature=-1), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(top_p=0), "top_p"),
        (Sampling(top_k=-1), "top_k"),
        (Sampling(repetition_penalty=0), "repetition_penalty"),
        (Sampling(stop=("",)), "stop"),
    ],
)
def test_wrong_parameters_are_named(sampling: Sampling, named: str) -> None:
    with rolling() as generator, pytest.raises(InvalidInput, match=named):
        generator.start(Request(prompt="hello", sampling=sampling))


def test_extreme_parameters_are_served() -> None:
    with rolling() as generator:
        for options in (
            {"temperature": 100.0, "seed": 1},
            {"temperature": 1e-30, "seed": 1},
            {"temperature": 1.0, "top_k": 10**6, "seed": 1},
            {"temperature": 1.0, "top_p": 1e-9, "seed": 1},
            {"stop": tuple(f"stop {number}" for number in range(100))},
            {"repetition_penalty": 10.0},
        ):
            assert generator.start(asks(TEXTS[0], 5, **options)).result().completion_tokens == 5
        greedy = ids_of(generator.start(asks(TEXTS[0], 5)))
        cold = ids_of(generator.start(asks(TEXTS[0], 5, temperature=1e-30, seed=1)))
        assert cold == greedy


def test_prompts_that_no_model_gets() -> None:
    with rolling() as generator:
        with pytest.raises(InvalidInput, match=r"has \d{3} tokens.*window is 256"):
            generator.start(asks(TEXTS[0] * 40))
        with pytest.raises(InvalidInput, match="empty"):
            generator.start(Request(prompt=""))
        almost = TEXTS[0] * 9
        full = generator.start(asks(almost, 5000)).result()
        assert full.finish_reason == FinishReason.LENGTH
        assert full.prompt_tokens + full.completion_tokens == 256


def test_a_template_that_makes_no_tokens_is_not_run() -> None:
    request = Request(messages=(Message(role=Role.USER, content="hello"),))
    with (
        rolling(chat_template="{{ '' }}") as generator,
        pytest.raises(InvalidInput, match="empty"),
    ):
        generator.start(request)


def test_tokens_that_the_model_lacks_are_refused() -> None:
    small = tiny.model(tiny.llama(vocab_size=260))
    with rolling(small) as generator, pytest.raises(InvalidInput, match="another model"):
        generator.start(asks(TEXTS[0]))


def test_many_threads_start_at_once() -> None:
    reference = Reference(tiny.tiny_llama())
    expected = reference.greedy(tiny.tokenizer()(TEXTS[0]).input_ids, 10)
    answers: list[list[int]] = []

    def one(generator: RollingGenerator) -> None:
        answers.append(ids_of(generator.start(asks(TEXTS[0], 10))))

    with rolling() as generator:
        threads = [threading.Thread(target=one, args=(generator,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [expected] * 16


def test_closing_hands_requests_back() -> None:
    with rolling() as generator:
        running = generator.start(asks(TEXTS[0], 200))
        assert running.read(10) is not None
        generator.close()
        with pytest.raises(Retryable, match="ending"):
            running.result()
        with pytest.raises(Retryable, match="ending"):
            generator.start(asks(TEXTS[0]))
