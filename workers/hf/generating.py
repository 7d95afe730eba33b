"""One call of `generate` for the rows of a batch, which can be left between any two tokens.

Rows are padded and masked so that none changes another; sampled rows come alone, each with a seed.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from workers.hf.arguments import Arguments
from workers.hf.task import Row, Watch

# Tokens may be empty, such as special ones.
STOP_SLACK_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Source:
    """What a row of generation holds: the source text, or the prompt, in tokens."""

    ids: Sequence[int]
    arguments: Arguments
    stop: tuple[str, ...] = ()
    seed: int | None = None


def make_row(model: PreTrainedModel, source: Source, *, size: int) -> Row:
    """Rows share a batch where they are generated alike, and where no padding gets between."""
    group = source.arguments.key + "".join(f"\0{string}" for string in source.stop)
    if _looks_at_padding(model, source.arguments):
        group += f"\0{len(source.ids)}"
    if source.arguments.is_sampled:
        # The dice are thrown for a whole batch: a row's luck must not depend on its company.
        group += f"\0{secrets.token_hex(16)}"
    return Row(size=size * source.arguments.copies, data=source, group=group)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[Source],
    watch: Watch,
) -> list[list[list[int]]]:
    """The new tokens, without the end: for each row as many sequences as were asked for.

    `watch` is asked after each token; a row that it reports ends there, and what it raises ends
    all. The sources are those of rows of one group.
    """
    first = sources[0]
    settings = first.arguments.settings
    is_decoder = not model.config.is_encoder_decoder
    ids, mask = _batch(sources, settings["pad_token_id"], left=is_decoder)
    given = ids.shape[1] if is_decoder else 1
    criteria: list[StoppingCriteria] = [Watched(watch, len(sources))]
    if first.stop:
        criteria.append(StoppedByText(tokenizer, first.stop, given))
    with torch.inference_mode(), _dice(model.device, first):
        run: Any = model.generate
        found = run(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(**settings),
            stopping_criteria=StoppingCriteriaList(criteria),
        )
    ends = settings.get("eos_token_id")
    new = [_until_end(row, ends) for row in found[:, given:].tolist()]
    each = settings["num_return_sequences"]
    return [new[n * each : (n + 1) * each] for n in range(len(sources))]


def decoded(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, clean_up: bool | None = False
) -> str:
    """The text of one sequence, without special tokens. `clean_up` None: as the tokenizer's own
    configuration says."""
    text = tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=clean_up
    )
    assert isinstance(text, str)
    return text


class Watched(StoppingCriteria):
    """Ends the rows that nobody waits for. A row may stand for several of the model's: its beams,
    or the continuations of a beam."""

    def __init__(self, watch: Watch, rows: int) -> None:
        self.watch = watch
        self.rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        del scores, kwargs
        dropped = torch.zeros(self.rows, dtype=torch.bool)
        for n, is_dropped in enumerate(self.watch()):
            dropped[n] = is_dropped
        spread = dropped.repeat_interleave(input_ids.shape[0] // self.rows)
        return spread.to(input_ids.device)  # type: ignore[return-value] # It is one of booleans.


class StoppedByText(StoppingCriteria):
    """Ends rows whose new text holds one of the strings. It spares tokens, no more: who makes the
    text cuts it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], given: int
    ) -> None:
        self.tokenizer = tokenizer
        self.strings = strings
        self.given = given
        # No token is shorter than a byte.
        self.tail = max(len(string.encode()) for string in strings) + STOP_SLACK_TOKENS

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        del scores, kwargs
        ends = input_ids[:, max(self.given, input_ids.shape[1] - self.tail) :].tolist()
        texts = [decoded(self.tokenizer, end) for end in ends]
        found = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(found, device=input_ids.device)  # type: ignore[return-value] # dito


def _batch(
    sources: Sequence[Source], filler: int, *, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder goes on from the last column: its rows are padded on the left."""
    width = max(len(source.ids) for source in sources)
    ids = torch.full((len(sources), width), filler)
    mask = torch.zeros_like(ids)
    for n, source in enumerate(sources):
        size = len(source.ids)
        columns = slice(width - size, width) if left else slice(size)
        ids[n, columns] = torch.tensor(source.ids)
        mask[n, columns] = 1
    return ids, mask


def _looks_at_padding(model: PreTrainedModel, arguments: Arguments) -> bool:
    """Whether rules of generation read the source's tokens without its mask."""
    settings = arguments.settings
    if model.config.is_encoder_decoder:
        return bool(
            settings.get("encoder_no_repeat_ngram_size", 0) > 0
            or settings.get("encoder_repetition_penalty", 1) != 1
        )
    return bool(settings.get("no_repeat_ngram_size", 0) > 0)


def _until_end(row: Sequence[int], ends: int | Sequence[int] | None) -> list[int]:
    """Behind its end a row is filled, with beams by a number that is no token where nothing ends
    it."""
    known = {ends} if isinstance(ends, int) else set(ends or ())
    size = next((n for n, token in enumerate(row) if token in known or token < 0), len(row))
    return list(row[:size])


@contextmanager
def _dice(device: torch.device, source: Source) -> Iterator[None]:
    """The process's own generators of random numbers stay as they are."""
    if not source.arguments.is_sampled:
        yield
        return
    seed = secrets.randbits(63) if source.seed is None else source.seed
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
