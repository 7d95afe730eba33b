"""Choosing tokens: the same sets as transformers' processors leave, drawn in their proportions."""

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from workers.generation.backends.interface import Sampling
from workers.generation.backends.rolling.sampling import NOT_A_NUMBER, Chooser, choose

DRAWS = 4000


def _probabilities(logits: Tensor, sampling: Sampling, seen: list[int]) -> Tensor:
    """What transformers would draw from."""
    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    ids = torch.LongTensor([seen])
    return processors(ids, logits[None].clone())[0].softmax(dim=-1)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7, seed=1),
        Sampling(temperature=1.0, top_k=5, seed=2),
        Sampling(temperature=1.3, top_p=0.6, seed=3),
        Sampling(temperature=1.0, top_k=12, top_p=0.8, seed=4),
        Sampling(temperature=1.0, repetition_penalty=1.8, seed=5),
        Sampling(temperature=0.9, top_k=20, top_p=0.9, repetition_penalty=0.7, seed=6),
    ],
)
def test_draws_follow_the_distribution_of_transformers(sampling: Sampling) -> None:
    torch.manual_seed(0)
    logits = torch.randn(40) * 2
    seen = [3, 7, 7, 30]
    expected = _probabilities(logits, sampling, seen)
    chooser = Chooser(sampling, seen)
    drawn = choose(logits.expand(DRAWS, -1), [chooser] * DRAWS, range(DRAWS))
    frequencies = torch.bincount(torch.tensor(drawn), minlength=40) / DRAWS
    assert not frequencies[expected == 0].any()
    assert (frequencies - expected).abs().max() < 0.03


def test_a_flat_distribution_needs_more_than_the_candidates() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5000) * 0.1
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=1)
    expected = _probabilities(logits, sampling, [0])
    draws = 1500
    drawn = choose(logits.expand(draws, -1), [Chooser(sampling, [])] * draws, range(draws))
    assert not any(expected[token] == 0 for token in drawn)
    assert len({token for token in drawn if token >= 2500}) > 500
    # Tokens that are beyond the first candidates are drawn as well.
    beyond = set(logits.topk(1024).indices.tolist())
    assert sum(token not in beyond for token in drawn) > draws / 2


def test_rows_of_all_kinds_are_chosen_as_if_alone() -> None:
    torch.manual_seed(1)
    logits = torch.randn(7, 3000)
    kinds = [
        Sampling(),
        Sampling(temperature=1.0, seed=1),
        Sampling(temperature=1.0, top_k=2000, seed=2),
        Sampling(temperature=1.0, top_p=0.5, seed=3),
        Sampling(repetition_penalty=5.0),
        Sampling(temperature=2.0, top_p=0.999, seed=4),
        Sampling(temperature=1.0, top_k=1, seed=5),
    ]
    best = logits.argmax(dim=-1).tolist()
    choosers = [Chooser(sampling, best) for sampling in kinds]
    together = choose(logits, choosers, range(7))
    alone = [choose(logits[n : n + 1], [choosers[n]], [n])[0] for n in range(7)]
    assert together == alone
    assert together[0] == best[0]
    assert together[4] != best[4]
    assert together[6] == best[6]


def test_logits_are_left_as_they_are() -> None:
    logits = torch.randn(2, 50)
    before = logits.clone()
    choose(logits, [Chooser(Sampling(temperature=1.0, repetition_penalty=2.0), [1])] * 2, [0, 1])
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_said_to_be_none(temperature: float, value: float) -> None:
    logits = torch.randn(2, 50)
    logits[1, 9] = value
    sampling = Sampling(temperature=temperature, seed=1)
    choices = choose(logits, [Chooser(sampling, [])] * 2, [0, 0])
    assert choices[0] != NOT_A_NUMBER
    assert choices[1] == NOT_A_NUMBER


def test_masked_tokens_are_never_drawn() -> None:
    logits = torch.full((DRAWS, 8), float("-inf"))
    logits[:, 2] = 0.0
    logits[:, 5] = -3.0
    for options in ({}, {"top_k": 8}, {"top_p": 0.9999}):
        chooser = Chooser(Sampling(temperature=1.0, seed=1, **options), [])
        assert set(choose(logits, [chooser] * DRAWS, range(DRAWS))) <= {2, 5}


def test_numbers_depend_on_seed_and_position_alone() -> None:
    one, same, other = (Chooser(Sampling(seed=seed), []) for seed in (1, 1, 2))
    assert [one.number(n) for n in range(5)] == [same.number(n) for n in range(5)]
    assert one.number(0) != other.number(0)
    assert one.number(0) != one.number(1)
