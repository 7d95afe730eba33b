"""Hybrid search: one score of a chunk from its cosine similarity and its BM25 score.

Both are turned into evidence, in nats: how much likelier such a score is of a chunk that answers
than of another one. Evidence adds. So a half that sees nothing adds nothing, instead of outvoting
the other one as ranks do (reciprocal rank fusion).

The evidence of BM25 is linear in it: its term weights are log odds already (Robertson, Zaragoza:
The probabilistic relevance framework, 2009, section 3), too large by a factor, as terms that occur
together are counted as independent. The evidence of a cosine is linear in its distance from the
mean of random pairs, as it is for two normal distributions of equal deviation; beyond all that
chance gives, it is how rare such a cosine is of random directions. `workers.retrieval.tuning`
measures these slopes for each collection.

Written as a convex combination: `weight` x dense + (1 - `weight`) x lexical, where lexical is BM25
divided by the best that the query can have, dense the evidence divided by that of the list's best,
and `weight` the dense half's share of both. No I/O in here, no model, no store.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEXICAL_PRIOR = 1.25
"""Nats for each unit of BM25, where nothing was measured."""

DENSE_LEAST = 0.001
"""Nats for each standard deviation of cosines: orders chunks that are equal in all else."""

STD_LEAST = 1e-3
"""Of cosines: a collection of equal chunks has no deviation at all."""

BEYOND_CHANCE = 1.0
"""Standard deviations between the highest cosine of a random pair and one that is none."""

NEARNESS_MOST = 0.995
"""Of what is nearer than this, nothing more is told: vectors of few dimensions may be as near, and
so may texts of which a model can read nothing."""

COVERAGE_LEAST = 0.1
"""Added to both sides where coverages are compared, so that little and less are alike."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What is measured of a collection; kept as JSON."""

    mean: float
    """Of the cosines of random pairs of a query and a chunk."""
    std: float
    chance: float
    """How high the nearest of the wrong chunks is, divided by `highest_by_chance`."""
    dense: float
    """Nats for each standard deviation of the cosine, of a query whose words the model knows as
    well as `coverage`."""
    lexical: float
    """Nats for each unit of BM25."""
    coverage: float
    """`QueryFacts.coverage` that nine of ten queries in the collection's words do not exceed."""
    pairs: int
    """Pseudo-queries that were measured."""
    chunks: int
    """Of the collection, at that time."""

    def dump(self) -> dict[str, float | int]:
        return asdict(self)

    @classmethod
    def load(cls, stored: Any) -> Self | None:
        """None where it is not what `dump` made: such a collection is measured again."""
        names = {field.name for field in fields(cls)}
        if not isinstance(stored, Mapping) or set(stored) != names:
            return None
        if not all(_is_finite(stored[name]) for name in names):
            return None
        return cls(**stored)


UNMEASURED = Tuning(
    mean=0.0, std=0.1, chance=1.0, dense=DENSE_LEAST, lexical=LEXICAL_PRIOR,
    coverage=1.0, pairs=0, chunks=0,
)  # fmt: skip
"""Of a collection too small to be measured."""


@dataclass(frozen=True, kw_only=True)
class QueryFacts:
    coverage: float = 1.0
    """How well the embedding model's tokenizer knows the query's words, from 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Fused:
    """Of n candidates, in their order."""

    scores: Floats
    """Shape (n,); higher is better. 1 for a chunk that has all words of the query and is the
    nearest one, 0 or a little less for one that is like any other."""
    weight: float
    """Of the dense half, from 0 to 1."""


def fuse(
    cosines: npt.ArrayLike,
    lexical: npt.ArrayLike,
    *,
    best_possible: float,
    facts: QueryFacts,
    tuning: Tuning,
    chunk_count: int,
) -> Fused:
    """The scores of candidates, of which each has both scores: `cosines` and `lexical` (BM25) have
    the shape (n,). A cosine that is not a number is that of a chunk without a vector, of which the
    dense half says nothing.

    `best_possible` bounds BM25 from above: what a chunk scores that has all those words of the
    query which the index has, ever so often. Only chunks of one query and one collection compare.
    """
    cosines = np.asarray(cosines, dtype=np.float64)
    matches = np.nan_to_num(np.asarray(lexical, dtype=np.float64))
    std = max(tuning.std, STD_LEAST)
    deviations = np.where(np.isnan(cosines), 0.0, (cosines - tuning.mean) / std)
    chance = BEYOND_CHANCE + max(tuning.chance, 1.0) * highest_by_chance(chunk_count)
    slope = max(DENSE_LEAST, tuning.dense * covered(facts.coverage, tuning.coverage))
    highest = max(1.0 - tuning.mean, STD_LEAST) / std
    dense = slope * deviations + _beyond_chance(deviations, chance, highest)
    # The nearest chunk's, or what chance may give where that is more: a list of which none stands
    # out has no best.
    dense_best = max(dense.max(initial=0.0), slope * chance)
    lexical_best = tuning.lexical * max(best_possible, matches.max(initial=0.0))
    total = float(dense_best + lexical_best)
    return Fused(
        scores=(dense + tuning.lexical * matches) / total, weight=float(dense_best) / total
    )


def highest_by_chance(count: int) -> float:
    """Of so many normal values, in standard deviations: about the highest."""
    return math.sqrt(2 * math.log(max(count, 2)))


def covered(query: float, collection: float) -> float:
    """What is left of the dense half's evidence where a model knows a query's words less well than
    those of the collection that it knows best. Never more than all: of how well it knows the
    collection, a query of well-known words says nothing."""
    return min(1.0, (query + COVERAGE_LEAST) / (collection + COVERAGE_LEAST))


def _beyond_chance(deviations: Floats, chance: float, highest: float) -> Floats:
    """The evidence of cosines that chance does not give: 0 up to `chance` deviations.

    The cosine r of random directions in d dimensions has a density in proportion to
    (1 - r^2)^((d - 3) / 2), which falls as the normal one at first, and to 0 at 1, which lies
    `highest` deviations above the mean: a distance of 1 / `highest` is what a deviation is of it.
    """
    least = np.full_like(deviations, chance)

    def rarity(values: Floats) -> Floats:
        nearness = np.clip(values / highest, 0.0, NEARNESS_MOST)
        rare: Floats = -np.log1p(-(nearness**2)) * (highest**2 / 2)
        return rare

    return rarity(np.maximum(deviations, least)) - rarity(least)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
