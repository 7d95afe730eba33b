"""What every text generator has to do, as tests: `workers/generation/backends/interface.py` says it
in words.

A subclass gives the fixture `generator`, and requests that its model answers at some length; what
a back end cannot promise, it says with the flags. No test waits without an end: `ended` gives up.
"""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar

import pytest

from shared.errors import InvalidInput
from workers.generation.backends.interface import (
    Completion,
    Delta,
    FinishReason,
    Generation,
    Message,
    Request,
    Resume,
    Role,
    TextGenerator,
)

PATIENCE_S = 120


def said(text: str) -> tuple[Message, ...]:
    return (Message(role=Role.USER, content=text),)


def limited(request: Request, **sampling: object) -> Request:
    """The request with other sampling."""
    return replace(request, sampling=replace(request.sampling, **sampling))  # type: ignore[arg-type]  # by name


def ended(generation: Generation, within_s: float = PATIENCE_S) -> tuple[Completion, list[Delta]]:
    """The end of it, and the deltas until then."""
    deltas, limit = [], time.monotonic() + within_s
    while not generation.is_over:
        assert time.monotonic() < limit, "the generation hangs"
        delta = generation.read(timeout_s=0.5)
        if delta is not None:
            deltas.append(delta)
    assert generation.completion is not None
    return generation.completion, deltas


def first_text(generation: Generation) -> Delta:
    """The first delta that shows something."""
    limit = time.monotonic() + PATIENCE_S
    while time.monotonic() < limit:
        delta = generation.read(timeout_s=0.5)
        if delta is not None and delta.text:
            return delta
        assert not generation.is_over, "it ended without a text"
    raise AssertionError("the generation hangs")


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


class GeneratorContract:
    repeats_itself: ClassVar[bool] = True
    """The same request gets the same text, and a resumed one goes on to the same end."""

    counts_exactly: ClassVar[bool] = True
    """`completion_tokens` is `max_tokens` where that cut the text off."""

    takes_prompts: ClassVar[bool] = True
    """A bare prompt is taken, not only messages."""

    can_be_interrupted: ClassVar[bool] = True
    """A text takes long enough to be stopped in its middle."""

    can_be_too_long: ClassVar[bool] = True
    """There are prompts that do not fit."""

    requests_at_once: ClassVar[int] = 12

    @pytest.fixture
    def generator(self) -> Iterator[TextGenerator]:
        raise NotImplementedError

    def request(self) -> Request:
        """Its answer has 10 to 100 tokens and ends by itself, or by `max_tokens`."""
        raise NotImplementedError

    def long_request(self) -> Request:
        """Its answer takes a second at least."""
        raise NotImplementedError

    def prompt(self) -> Request:
        """As `request`, with a bare prompt."""
        raise NotImplementedError

    def test_deltas_add_up_to_the_text(self, generator: TextGenerator) -> None:
        completion, deltas = ended(generator.start(self.request()))
        assert completion.text
        assert text_of(deltas) == completion.text
        assert completion.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)

    def test_text_comes_in_pieces(self, generator: TextGenerator) -> None:
        _, deltas = ended(generator.start(self.request()))
        assert sum(bool(delta.text) for delta in deltas) > 1

    def test_a_bare_prompt_is_gone_on_with(self, generator: TextGenerator) -> None:
        if not self.takes_prompts:
            with pytest.raises(InvalidInput):
                ended(generator.start(self.prompt()))
            return
        completion, deltas = ended(generator.start(self.prompt()))
        assert completion.text
        assert text_of(deltas) == completion.text

    def test_usage_counts_prompt_and_answer(self, generator: TextGenerator) -> None:
        completion, _ = ended(generator.start(self.request()))
        assert completion.prompt_tokens > 0
        assert completion.completion_tokens > 0

    def test_a_longer_prompt_counts_more(self, generator: TextGenerator) -> None:
        request = self.request()
        longer = (Message(role=Role.SYSTEM, content="Be brief, and be kind. " * 5),)
        assert generator.count_tokens(longer + request.messages) > generator.count_tokens(
            request.messages
        )

    def test_max_tokens_cuts_the_text_off(self, generator: TextGenerator) -> None:
        whole, _ = ended(generator.start(self.request()))
        completion, deltas = ended(generator.start(limited(self.request(), max_tokens=4)))
        assert completion.finish_reason is FinishReason.LENGTH
        assert text_of(deltas) == completion.text
        assert len(completion.text) < len(whole.text)
        if self.counts_exactly:
            assert completion.completion_tokens == 4
        if self.repeats_itself:
            assert whole.text.startswith(completion.text)

    def test_a_single_token(self, generator: TextGenerator) -> None:
        completion, _ = ended(generator.start(limited(self.request(), max_tokens=1)))
        assert completion.finish_reason is FinishReason.LENGTH

    def test_a_stop_string_ends_the_text_and_is_not_part_of_it(
        self, generator: TextGenerator
    ) -> None:
        whole, _ = ended(generator.start(self.request()))
        middle = len(whole.text) // 2
        stop = whole.text[middle : middle + 3]
        completion, deltas = ended(generator.start(limited(self.request(), stop=(stop,))))
        assert stop not in completion.text
        assert text_of(deltas) == completion.text
        if self.repeats_itself:
            assert completion.text == whole.text[: whole.text.index(stop)]
            assert completion.finish_reason is FinishReason.STOP

    def test_the_first_of_many_stop_strings_counts(self, generator: TextGenerator) -> None:
        whole, _ = ended(generator.start(self.request()))
        middle = len(whole.text) // 2
        stop = whole.text[middle : middle + 3]
        others = tuple(f"never said {number}" for number in range(15))
        completion, _ = ended(generator.start(limited(self.request(), stop=(*others, stop))))
        assert stop not in completion.text

    def test_cancelling_keeps_the_text_so_far(self, generator: TextGenerator) -> None:
        if not self.can_be_interrupted:
            pytest.skip("its texts are there at once")
        generation = generator.start(self.long_request())
        first = first_text(generation)
        generation.cancel()
        completion, rest = ended(generation)
        assert completion.finish_reason is FinishReason.CANCELLED
        assert completion.text == first.text + text_of(rest)
        assert generation.is_cancelled

    def test_cancelling_at_once(self, generator: TextGenerator) -> None:
        if not self.can_be_interrupted:
            pytest.skip("its texts are there at once")
        generation = generator.start(self.long_request())
        generation.cancel()
        completion, deltas = ended(generation)
        assert completion.finish_reason is FinishReason.CANCELLED
        assert completion.text == text_of(deltas)

    def test_cancelling_what_has_ended_changes_nothing(self, generator: TextGenerator) -> None:
        generation = generator.start(self.request())
        before, _ = ended(generation)
        generation.cancel()
        generation.cancel()
        assert generation.result() is before
        assert ended(generator.start(self.request()))[0].text

    def test_a_deadline_ends_a_text_and_keeps_it(self, generator: TextGenerator) -> None:
        if not self.can_be_interrupted:
            pytest.skip("its texts are there at once")
        request = replace(self.long_request(), deadline=time.monotonic() + 0.4)
        completion, deltas = ended(generator.start(request))
        assert completion.finish_reason is FinishReason.DEADLINE
        assert completion.text == text_of(deltas)

    def test_a_deadline_that_is_past(self, generator: TextGenerator) -> None:
        request = replace(self.request(), deadline=time.monotonic() - 1)
        completion, _ = ended(generator.start(request))
        assert completion.finish_reason is FinishReason.DEADLINE

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
    def test_a_resumed_text_goes_on_where_it_stopped(
        self, generator: TextGenerator, share: float
    ) -> None:
        whole, deltas = ended(generator.start(self.request()))
        shown = deltas[: round(len(deltas) * share)]
        ids = tuple(token for delta in shown for token in delta.token_ids)
        resume = Resume(text=text_of(shown), token_ids=ids)
        completion, new = ended(generator.start(replace(self.request(), resume=resume)))
        assert resume.text + text_of(new) == completion.text
        if self.repeats_itself:
            assert completion.text == whole.text
            assert completion.finish_reason is whole.finish_reason

    def test_many_at_once_do_not_mix(self, generator: TextGenerator) -> None:
        alone, _ = ended(generator.start(self.request()))
        under_way = [generator.start(self.request()) for _ in range(self.requests_at_once)]
        for generation in under_way:
            completion, deltas = ended(generation)
            assert text_of(deltas) == completion.text
            if self.repeats_itself:
                assert completion.text == alone.text

    def test_threads_start_and_read(self, generator: TextGenerator) -> None:
        def one(_: int) -> Completion:
            return ended(generator.start(self.request()))[0]

        with ThreadPoolExecutor(4) as threads:
            for completion in threads.map(one, range(8)):
                assert completion.text

    def test_a_text_is_read_from_another_thread(self, generator: TextGenerator) -> None:
        generation = generator.start(self.request())
        completions: list[Completion] = []
        thread = threading.Thread(target=lambda: completions.append(ended(generation)[0]))
        thread.start()
        thread.join(PATIENCE_S)
        assert completions
        assert completions[0].text

    def test_some_are_cancelled_while_others_go_on(self, generator: TextGenerator) -> None:
        if not self.can_be_interrupted:
            pytest.skip("its texts are there at once")
        stopped = [generator.start(self.long_request()) for _ in range(3)]
        kept = [generator.start(self.request()) for _ in range(3)]
        for generation in stopped:
            generation.cancel()
        assert {ended(generation)[0].finish_reason for generation in stopped} == {
            FinishReason.CANCELLED
        }
        assert all(ended(generation)[0].text for generation in kept)

    def test_a_prompt_longer_than_the_window_is_refused(self, generator: TextGenerator) -> None:
        if not self.can_be_too_long:
            pytest.skip("there is no window")
        words = "word " * (generator.window_tokens * 4)
        with pytest.raises(InvalidInput, match="window"):
            ended(generator.start(replace(self.request(), messages=said(words))))
        assert ended(generator.start(self.request()))[0].text

    def test_an_empty_prompt_is_refused(self) -> None:
        with pytest.raises(InvalidInput, match="empty"):
            Request(prompt="")
