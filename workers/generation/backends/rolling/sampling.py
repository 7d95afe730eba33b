"""Logits -> the next token of every row, each by its request's own parameters.

All greedy rows together cost one argmax. Other rows draw by the inverse of the cumulative
distribution, at a number that depends only on the request's seed and the token's position: so the
text of a request depends neither on the other rows nor on interruptions. Repetition penalty,
temperature, top-k and top-p mean what they mean in transformers, in that order; frequency and
presence penalty are applied before them, and mean what they mean at OpenAI.
"""

import math
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

import torch
from torch import Tensor

from shared.errors import InvalidInput
from workers.generation.backends.interface import Sampling

NOT_A_NUMBER: Final = -1
"""Stands for the token of a row whose logits are not numbers."""

# How many of the likeliest tokens are sorted; all of them only if a row needs more.
CANDIDATES: Final = 1024
COLDEST: Final = 1e-6


class Chooser:
    """How one request chooses its tokens, and the state of its penalties.

    `tokens` are the `prompt_tokens` of the prompt, then those generated. The repetition penalty
    counts all of them, as in transformers; the others count those generated, as at OpenAI.
    """

    def __init__(
        self, sampling: Sampling, tokens: Sequence[int], prompt_tokens: int | None = None
    ) -> None:
        _validate(sampling)
        self.sampling = sampling
        self._has_counts = bool(sampling.frequency_penalty or sampling.presence_penalty)
        self.is_greedy = (
            sampling.temperature == 0 and sampling.repetition_penalty == 1 and not self._has_counts
        )
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self._seen = set(tokens) if sampling.repetition_penalty != 1 else None
        generated = tokens[len(tokens) if prompt_tokens is None else prompt_tokens :]
        self._counts = Counter(generated if self._has_counts else ())

    def saw(self, token: int) -> None:
        if self._seen is not None:
            self._seen.add(token)
        if self._has_counts:
            self._counts[token] += 1

    def number(self, position: int) -> float:
        """The place in the cumulative distribution, in [0, 1), for the token at a position."""
        return Random(f"{self._seed}:{position}").random()

    def penalise(self, logits: Tensor) -> None:
        """Change the logits `[vocabulary]` in place: subtract the penalties of generated tokens,
        then divide the logits of seen tokens by the repetition penalty, or multiply negative
        ones."""
        if self._counts:
            self._take_off(logits)
        if self._seen is not None:
            seen = torch.tensor(list(self._seen), device=logits.device)
            scores = logits[seen]
            penalty = self.sampling.repetition_penalty
            logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)

    def _take_off(self, logits: Tensor) -> None:
        sampling = self.sampling
        written = torch.tensor(list(self._counts), device=logits.device)
        costs = [
            sampling.frequency_penalty * count + sampling.presence_penalty
            for count in self._counts.values()
        ]
        logits[written] -= torch.tensor(costs, device=logits.device, dtype=logits.dtype)


@torch.inference_mode()
def choose(logits: Tensor, choosers: Sequence[Chooser], positions: Sequence[int]) -> list[int]:
    """A token for each row of `[rows, vocabulary]`, or NOT_A_NUMBER. `positions` are the numbers of
    tokens that each request has generated so far."""
    best, tokens = logits.max(dim=-1)
    drawing = [row for row, chooser in enumerate(choosers) if not chooser.is_greedy]
    if drawing:
        tokens[drawing] = _draw(
            logits[drawing].float(),
            [choosers[row] for row in drawing],
            [positions[row] for row in drawing],
        )
    chosen: list[int] = tokens.where(best.isfinite(), NOT_A_NUMBER).tolist()
    return chosen


@dataclass(frozen=True, kw_only=True)
class TokenScores:
    """The log-probability of a chosen token, and the likeliest ones, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@torch.inference_mode()
def score(
    logits: Tensor, choosers: Sequence[Chooser], tokens: Sequence[int]
) -> list[TokenScores | None]:
    """The log-probabilities of the chosen tokens in the model's own logits `[rows, vocabulary]`;
    None for rows that did not ask for them."""
    scored: list[TokenScores | None] = [None] * len(tokens)
    rows = [
        row
        for row, chooser in enumerate(choosers)
        if chooser.sampling.logprobs is not None and tokens[row] != NOT_A_NUMBER
    ]
    if not rows:
        return scored
    logprobs = logits[rows].float().log_softmax(dim=-1)
    chosen = torch.tensor([[tokens[row]] for row in rows], device=logits.device)
    own = logprobs.gather(1, chosen)[:, 0].tolist()
    most = max(choosers[row].sampling.logprobs or 0 for row in rows)
    top = logprobs.topk(min(most, logprobs.shape[-1]), dim=-1)
    ids, values = top.indices.tolist(), top.values.tolist()
    for at, row in enumerate(rows):
        count = choosers[row].sampling.logprobs or 0
        pairs = tuple(zip(ids[at][:count], values[at][:count], strict=True))
        scored[row] = TokenScores(logprob=own[at], top=pairs)
    return scored


def _draw(logits: Tensor, choosers: Sequence[Chooser], positions: Sequence[int]) -> Tensor:
    for row, chooser in zip(logits, choosers, strict=True):
        chooser.penalise(row)
    device = logits.device
    samplings = [chooser.sampling for chooser in choosers]
    # Relative to the best one, so that no low temperature makes them overflow.
    logits -= logits.max(dim=-1, keepdim=True).values
    logits /= torch.tensor(
        [[max(sampling.temperature, COLDEST)] for sampling in samplings], device=device
    )
    numbers = torch.tensor(
        [[chooser.number(at)] for chooser, at in zip(choosers, positions, strict=True)],
        device=device,
    )
    tokens = logits.argmax(dim=-1)
    warm = [row for row, sampling in enumerate(samplings) if sampling.temperature > 0]
    limited = [row for row in warm if samplings[row].top_k or samplings[row].top_p < 1]
    free = [row for row in warm if row not in limited]
    if free:
        tokens[free] = _at(logits[free].softmax(dim=-1), numbers[free])
    if limited:
        tokens[limited] = _among_likeliest(
            logits[limited], [samplings[row] for row in limited], numbers[limited]
        )
    return tokens


def _among_likeliest(
    logits: Tensor, samplings: Sequence[Sampling], numbers: Tensor, candidates: int = CANDIDATES
) -> Tensor:
    vocabulary = logits.shape[-1]
    candidates = min(vocabulary, max(candidates, *(sampling.top_k for sampling in samplings)))
    device = logits.device
    top_k = torch.tensor([[sampling.top_k or vocabulary] for sampling in samplings], device=device)
    top_p = torch.tensor([[sampling.top_p] for sampling in samplings], device=device)
    scores, tokens = logits.topk(candidates, dim=-1)
    scores = scores.masked_fill(torch.arange(candidates, device=device) >= top_k, -math.inf)
    # Without top-k, all tokens have a share of the probability, not only the candidates.
    shared = torch.where(
        top_k < vocabulary,
        scores.logsumexp(dim=-1, keepdim=True),
        logits.logsumexp(dim=-1, keepdim=True),
    )
    likely = (scores - shared).exp()
    before = likely.cumsum(dim=-1) - likely
    if candidates < vocabulary and bool(
        (before[:, -1:] < top_p).logical_and(top_k > candidates).any()
    ):
        return _among_likeliest(logits, samplings, numbers, vocabulary)
    return tokens.gather(1, _at(likely.where(before < top_p, 0), numbers)[:, None])[:, 0]


def _at(likely: Tensor, numbers: Tensor) -> Tensor:
    """The first index of `[rows, n]` at which the cumulative sum exceeds that part of the total.

    An index without probability is never taken, however the sums are rounded.
    """
    reached = likely.cumsum(dim=-1)
    whole = reached[:, -1:]
    targets = torch.minimum(numbers * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(reached, targets, right=True)[:, 0].clamp(max=likely.shape[-1] - 1)


def _validate(sampling: Sampling) -> None:
    """Raises InvalidInput, which names the parameter and its allowed values."""
    for name, is_right, allowed in (
        ("max_tokens", sampling.max_tokens >= 1, "at least 1"),
        ("temperature", 0 <= sampling.temperature < math.inf, "0 or more"),
        ("top_p", 0 < sampling.top_p <= 1, "above 0 and at most 1"),
        ("top_k", sampling.top_k >= 0, "0 or more"),
        ("repetition_penalty", 0 < sampling.repetition_penalty < math.inf, "above 0"),
        ("frequency_penalty", math.isfinite(sampling.frequency_penalty), "a number"),
        ("presence_penalty", math.isfinite(sampling.presence_penalty), "a number"),
        ("logprobs", (sampling.logprobs or 0) >= 0, "0 or more"),
        ("stop", all(sampling.stop), "strings that are not empty"),
    ):
        if not is_right:
            raise InvalidInput(f"{name} must be {allowed}, not {getattr(sampling, name)!r}.")
