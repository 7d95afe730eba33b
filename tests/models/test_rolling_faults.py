"""What goes wrong stays with the requests that it belongs to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from shared.errors import Permanent, Retryable
from tests.models import tiny
from tests.models.tiny import TEXTS, Reference, asks, ids_of, rolling
from workers.generation.backends.interface import Generation
from workers.generation.backends.rolling.generator import RollingGenerator

BAD = "<|system|>"
BAD_TOKEN = tiny.control_id(tiny.tokenizer(), BAD)


class Faulty(LlamaForCausalLM):
    """Works until it is `armed`."""

    armed = False

    def forward(self, *args: Any, **options: Any) -> Any:
        out = super().forward(*args, **options)
        return self.spoil(out, options["input_ids"]) if self.armed else out

    def spoil(self, out: Any, ids: torch.Tensor) -> Any:
        raise NotImplementedError


class Cramped(Faulty):
    """Runs out of memory above so many rows, or so many tokens of prompts."""

    rows = 10**6
    tokens = 10**6
    error: type[RuntimeError] = torch.OutOfMemoryError

    def spoil(self, out: Any, ids: torch.Tensor) -> Any:
        if ids.shape[0] > self.rows or ids.shape[1] > self.tokens:
            raise self.error("DefaultCPUAllocator: can't allocate memory")
        return out


class Touchy(Faulty):
    """Fails where a prompt has a certain token."""

    error: Exception = ValueError("a bad token")

    def spoil(self, out: Any, ids: torch.Tensor) -> Any:
        if ids.shape[1] > 1 and bool((ids == BAD_TOKEN).any()):
            raise self.error
        return out


class Damaged(Faulty):
    """Computes no numbers where a prompt has a certain token."""

    def spoil(self, out: Any, ids: torch.Tensor) -> Any:
        if bool((ids == BAD_TOKEN).any()):
            out.logits[:] = float("nan")
        return out


@contextmanager
def _running(model: Faulty, **options: Any) -> Iterator[RollingGenerator]:
    with rolling(model, **options) as generator:
        model.armed = True
        yield generator


def _made(kind: type[Faulty], **marks: Any) -> Faulty:
    model = tiny.model(tiny.llama(), kind)
    assert isinstance(model, Faulty)
    for name, value in marks.items():
        setattr(model, name, value)
    return model


def _expected(prompt: str, tokens: int) -> list[int]:
    ids = tiny.tokenizer()(prompt).input_ids
    return Reference(tiny.tiny_llama()).greedy(ids, tokens)


def _outcome(generation: Generation) -> list[int] | type[BaseException]:
    try:
        return ids_of(generation)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_out_of_memory_makes_the_batch_smaller_and_fails_nobody(error: type[RuntimeError]) -> None:
    prompts = [TEXTS[n % 2][: 20 + n] for n in range(12)]
    with _running(_made(Cramped, rows=3, error=error)) as generator:
        started = [generator.start(asks(prompt, 20)) for prompt in prompts]
        answers = [ids_of(generation) for generation in started]
        counters = generator.counters
    assert answers == [_expected(prompt, 20) for prompt in prompts]
    assert counters.out_of_memory >= 1
    assert counters.preemptions >= 1


def test_a_prompt_too_large_for_memory_is_read_in_smaller_pieces() -> None:
    prompt = TEXTS[0] * 6
    with _running(_made(Cramped, tokens=20)) as generator:
        assert ids_of(generator.start(asks(prompt, 9))) == _expected(prompt, 9)
        assert generator.counters.out_of_memory > 0


def test_alone_and_still_out_of_memory_fails_and_the_next_is_served() -> None:
    model = _made(Cramped, tokens=12)
    with _running(model) as generator:
        with pytest.raises(Permanent, match="even alone") as caught:
            generator.start(asks(TEXTS[0] * 6, 9)).result()
        assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
        short = TEXTS[0][:20]
        assert ids_of(generator.start(asks(short, 9))) == _expected(short, 9)


def test_an_error_of_the_model_fails_its_batch_and_spares_the_others() -> None:
    with _running(_made(Touchy), generation_prefix_fraction=0) as generator:
        running = generator.start(asks(TEXTS[1], 60))
        assert running.read(10) is not None
        bad = generator.start(asks(f"{BAD} hello", 20))
        with pytest.raises(Retryable, match="a bad token") as caught:
            bad.result()
        assert isinstance(caught.value.__cause__, ValueError)
        # What ran beside it was read again and goes on.
        assert len(ids_of(running)) == 59
        assert running.result().completion_tokens == 60
        assert ids_of(generator.start(asks(TEXTS[1], 9))) == _expected(TEXTS[1], 9)


@pytest.mark.parametrize(
    "error",
    [torch.AcceleratorError("unspecified launch failure"), RuntimeError("CUDA error: assert")],
)
def test_a_broken_device_hands_everything_back_and_then_says_so(error: Exception) -> None:
    calls: list[bool] = []
    ended = threading.Event()

    def on_fatal() -> None:
        calls.append(True)
        ended.set()

    model = _made(Touchy, error=error)
    with _running(model, on_fatal=on_fatal, generation_batch_requests=2) as one:
        started = [one.start(asks(TEXTS[1], 200)) for _ in range(4)]
        assert started[0].read(10) is not None
        # In the better lane, it joins before the two that wait.
        started.append(one.start(asks(f"{BAD} hello", lane=0)))
        started[0].cancel()
        assert ended.wait(120)
        with pytest.raises(Retryable, match="broke down"):
            started[-1].result()
        with pytest.raises(Retryable):
            one.start(asks(TEXTS[1]))
        outcomes = [_outcome(generation) for generation in started[1:-1]]
    assert outcomes == [Retryable] * 3
    assert len(calls) == 1


def test_logits_that_are_no_numbers_fail_that_request_alone() -> None:
    with _running(_made(Damaged), generation_batch_requests=1) as generator:
        fine = generator.start(asks(TEXTS[1][:30], 5))
        bad = generator.start(asks(f"{BAD} hello", 5))
        assert ids_of(fine) == _expected(TEXTS[1][:30], 5)
        with pytest.raises(Permanent, match="NaN"):
            bad.result()
        assert ids_of(generator.start(asks(TEXTS[0], 5))) == _expected(TEXTS[0], 5)
