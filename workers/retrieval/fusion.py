"""Hybrid search: one score of a chunk from its cosine similarity and its BM25 score.

Both scores are converted to evidence, in nats: the logarithm of how much more likely the score is
for a chunk that answers the query than for another chunk. Evidence adds up. So a half without
evidence adds nothing, while in reciprocal rank fusion its ranks would outvote the other half.

The evidence of BM25 is linear in the score: its term weights are log odds (Robertson, Zaragoza: The
probabilistic relevance framework, 2009, section 3), but too large by a factor, because terms that
occur together are counted as independent. The evidence of a cosine is linear in its distance from
the mean of random pairs, as for two normal distributions of equal deviation; for cosines higher
than chance explains, it is the rarity of such a cosine between random directions.
`workers.retrieval.tuning` measures the slopes for each collection.

The result can be written as a convex combination: `weight` x dense + (1 - `weight`) x lexical. Here
`lexical` is BM25 divided by the best score that the query can have, `dense` is the evidence divided
by that of the best in the list, and `weight` is the dense half's share of both. Pure functions: no
I/O, no model, no store.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEXICAL_PRIOR = 1.25
"""Nats for each unit of BM25 if nothing was measured."""

DENSE_LEAST = 0.001
"""Nats for each standard deviation of cosines: just enough to order chunks that are otherwise
equal."""

STD_LEAST = 1e-3
"""The least standard deviation of cosines: in a collection of equal chunks it would be 0."""

BEYOND_CHANCE = 1.0
"""How many standard deviations a cosine has to be above the highest of random pairs before it is
taken for more than chance."""

NEARNESS_MOST = 0.995
"""Higher cosines give no more evidence: vectors of few dimensions may be as near by chance, and so
may texts that the model cannot read."""

TUNING_MOST = 2**40
"""No number of a tuning is larger, and none but two is negative: scores would not be finite."""

COVERAGE_LEAST = 0.1
"""Added to both sides where two coverages are divided, so that small ones differ little."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was measured in a collection; stored as JSON."""

    mean: float
    """The mean cosine of random pairs of a query and a chunk."""
    std: float
    """The standard deviation of these cosines."""
    chance: float
    """How many deviations the nearest wrong chunk is above the mean, divided by
    `highest_by_chance`."""
    dense: float
    """Nats for each standard deviation of the cosine, if the model knows the words of the query as
    well as `coverage`."""
    lexical: float
    """Nats for each unit of BM25."""
    coverage: float
    """The 90th percentile of `QueryFacts.coverage` of queries in the collection's words."""
    pairs: int
    """How many pseudo-queries were measured."""
    chunks: int
    """How many chunks the collection had then."""

    def dump(self) -> dict[str, float | int]:
        return asdict(self)

    @classmethod
    def load(cls, stored: Any) -> Self | None:
        """The opposite of `dump`; None for anything else, for example of an older version, and for
        what no measurement gives, for a bundle may bring it. Such a collection is measured
        again."""
        names = {field.name for field in fields(cls)}
        if not isinstance(stored, Mapping) or set(stored) != names:
            return None
        if not all(_is_measured(name, stored[name]) for name in names):
            return None
        return cls(**stored)


UNMEASURED = Tuning(
    mean=0.0, std=0.1, chance=1.0, dense=DENSE_LEAST, lexical=LEXICAL_PRIOR,
    coverage=1.0, pairs=0, chunks=0,
)  # fmt: skip
"""The tuning of a collection that is too small to be measured."""


@dataclass(frozen=True, kw_only=True)
class QueryFacts:
    coverage: float = 1.0
    """How well the embedding model's tokenizer knows the query's words, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class FusedScores:
    """The scores of n candidates, in their order."""

    scores: Floats
    """Shape (n,); higher is better. 1 for a chunk that has all words of the query and is the
    nearest one; 0 or a little less for an average chunk."""
    weight: float
    """The weight of the dense half, from 0 to 1."""


def fuse(
    cosines: npt.ArrayLike,
    lexical: npt.ArrayLike,
    *,
    best_possible: float,
    facts: QueryFacts,
    tuning: Tuning,
    chunk_count: int,
) -> FusedScores:
    """Combine the `cosines` and the BM25 scores (`lexical`) of n candidates, both of the shape
    (n,). A chunk without a vector has the cosine NaN, and no evidence from the dense half.

    `best_possible` is the upper bound of BM25: the score of a chunk that has every query term of
    the index very often. Scores can be compared within one query and one collection only.
    """
    cosines = np.asarray(cosines, dtype=np.float64)
    matches = np.nan_to_num(np.asarray(lexical, dtype=np.float64))
    std = max(tuning.std, STD_LEAST)
    deviations = np.where(np.isnan(cosines), 0.0, (cosines - tuning.mean) / std)
    chance = BEYOND_CHANCE + max(tuning.chance, 1.0) * highest_by_chance(chunk_count)
    slope = max(DENSE_LEAST, tuning.dense * coverage_ratio(facts.coverage, tuning.coverage))
    highest = max(1.0 - tuning.mean, STD_LEAST) / std
    dense = slope * deviations + _beyond_chance(deviations, chance, highest)
    # At least what chance explains: in a list where no chunk stands out, none has a high score.
    dense_best = max(dense.max(initial=0.0), slope * chance)
    lexical_best = tuning.lexical * max(best_possible, matches.max(initial=0.0))
    total = float(dense_best + lexical_best)
    return FusedScores(
        scores=(dense + tuning.lexical * matches) / total, weight=float(dense_best) / total
    )


def highest_by_chance(count: int) -> float:
    """About the highest of `count` values of a normal distribution, in standard deviations."""
    return math.sqrt(2 * math.log(max(count, 2)))


def coverage_ratio(query: float, collection: float) -> float:
    """The share of the dense half's evidence that counts if the model knows the words of the query
    less well (coverage `query`) than the collection's (coverage `collection`). At most 1: a query
    of well-known words does not make the collection's words better known."""
    return min(1.0, (query + COVERAGE_LEAST) / (collection + COVERAGE_LEAST))


def _beyond_chance(deviations: Floats, chance: float, highest: float) -> Floats:
    """The evidence of cosines that are higher than chance explains; 0 up to `chance` deviations.

    The cosine r of random directions in d dimensions has a density in proportion to (1 - r^2)^((d -
    3) / 2). Near 0 it falls like a normal density; at r = 1, which is `highest` deviations above
    the mean, it is 0. So one standard deviation is 1 / `highest` on the scale of r.
    """
    least = np.full_like(deviations, chance)

    def rarity(values: Floats) -> Floats:
        nearness = np.clip(values / highest, 0.0, NEARNESS_MOST)
        rare: Floats = -np.log1p(-(nearness**2)) * (highest**2 / 2)
        return rare

    return rarity(np.maximum(deviations, least)) - rarity(least)


def _is_measured(name: str, value: Any) -> bool:
    least = -TUNING_MOST if name in ("mean", "chance") else 0
    return isinstance(value, int | float) and least <= value <= TUNING_MOST
