"""Measures of searches: the value of one query's hits, and confidence intervals of the means.

The values are computed by `ir-measures`. A document has the rank of its first hit, and its later
hits keep their ranks, so that the measures describe the `k` hits that a caller sees. If one hit
matches several judgements (two quotations in one chunk), they count as one relevant item.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np

from shared.bounds import comparable
from shared.kinds.eval import DEPTH, FIRST, JudgedQuery
from shared.kinds.search import Hit
from workers.retrieval.fusion import Floats

CONFIDENCE = 0.95
_MISS = "hit:"
_LATIN = re.compile(r"[0-9a-z]")


@dataclass(frozen=True, kw_only=True)
class JudgedHits:
    """The hits of one search for one query.

    `grades` has a key and a grade for each relevant item. `keys` has an entry for each hit: the key
    of the item of which it is the first hit, or None. `has_answer` says whether one of the query's
    answers is in the first hits; None if the query has no answers.
    """

    grades: dict[str, int]
    keys: list[str | None]
    has_answer: bool | None

    @property
    def places(self) -> list[int]:
        """The ranks of relevant hits, from 1."""
        return [place for place, key in enumerate(self.keys, start=1) if key is not None]


def judge(query: JudgedQuery, hits: Sequence[Hit]) -> JudgedHits:
    """Compare hits, best first, with the judgements of their query."""
    left = {str(n): judgement for n, judgement in enumerate(query.judgements)}
    grades = {key: judgement.grade for key, judgement in left.items()}
    quotations = {
        key: _quotation(judgement.text)
        for key, judgement in left.items()
        if judgement.text is not None
    }
    answers = [_quotation(answer) for answer in query.answers]
    keys: list[str | None] = []
    has_answer = False
    for place, hit in enumerate(hits, start=1):
        looked_at = bool(quotations) or (bool(answers) and place <= FIRST)
        text = _folded(hit.text) if looked_at else ""
        names = {hit.source, hit.document_id, hit.chunk_id}
        matches = [
            key
            for key, judgement in left.items()
            if (quotations[key].search(text) if key in quotations else judgement.id in names)
        ]
        best = max(matches, key=lambda key: grades[key], default=None)
        for key in matches:
            del left[key]
            if key != best:
                del grades[key]
        keys.append(best if best is not None and grades[best] else None)
        if place <= FIRST:
            has_answer = has_answer or any(answer.search(text) for answer in answers)
    return JudgedHits(grades=grades, keys=keys, has_answer=has_answer if answers else None)


def _folded(text: str) -> str:
    return " ".join(comparable(text).split())


def _quotation(text: str) -> re.Pattern[str]:
    """A pattern that finds a quotation in folded text. Latin words and numbers must match whole, so
    that `308` is not found in `13085`; Korean words carry particles, and Chinese has no spaces, so
    theirs need not."""
    folded = _folded(text)
    before = r"(?<![0-9a-z])" if _LATIN.match(folded[:1]) else ""
    after = r"(?![0-9a-z])" if _LATIN.match(folded[-1:]) else ""
    return re.compile(before + re.escape(folded) + after)


def values_of(judged: Sequence[JudgedHits], k: int) -> Floats:
    """The values of one search, of the shape (len(judged), len(measure_names(k))).

    The last column is NaN for queries without answers.
    """
    deeper = [ir_measures.R @ k] if k > DEPTH else []
    columns = [
        ir_measures.R @ 1, ir_measures.R @ FIRST, *deeper,
        ir_measures.RR @ DEPTH, ir_measures.nDCG @ DEPTH,
    ]  # fmt: skip
    relevant = {str(n): one.grades for n, one in enumerate(judged)}
    run = {
        str(n): {
            key if key is not None else f"{_MISS}{place}": float(-place)
            for place, key in enumerate(one.keys)
        }
        for n, one in enumerate(judged)
    }
    values = np.zeros((len(judged), len(columns) + 1))
    at = {column: n for n, column in enumerate(columns)}
    for metric in ir_measures.iter_calc(columns, relevant, run):
        values[int(metric.query_id), at[metric.measure]] = metric.value
    values[:, -1] = [np.nan if one.has_answer is None else one.has_answer for one in judged]
    return values


@dataclass(frozen=True, kw_only=True)
class Means:
    """Means and the ends of their confidence intervals, of the shape (searches, measures); NaN
    where no query has a value."""

    value: Floats
    low: Floats
    high: Floats


def estimate(values: Floats, *, resamples: int, between: Callable[[], None]) -> tuple[Means, Means]:
    """The means of `values` over the queries, and their differences to those of the first search.

    `values` has the shape (searches, queries, measures). The intervals are percentile bootstrap
    intervals over the queries (Efron and Tibshirani 1993, 13.3). All searches are resampled with
    the same queries, so the differences are paired. The random numbers are always the same ones.
    `between` is called for each resample and may raise.
    """
    searches, queries, measures = values.shape
    table = np.moveaxis(values, 1, 0).reshape(queries, searches * measures)
    is_there = ~np.isnan(table)
    filled, counted = np.where(is_there, table, 0.0), is_there.astype(np.float64)

    def means(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            mean: Floats = (weights @ filled) / (weights @ counted)
        return mean.reshape(searches, measures)

    generator = np.random.default_rng(0)
    drawn = np.empty((resamples, searches, measures))
    for n in range(resamples):
        between()
        indexes = generator.integers(queries, size=queries)
        drawn[n] = means(np.bincount(indexes, minlength=queries).astype(np.float64))
    mean = means(np.ones(queries))
    return _with_ends(mean, drawn), _with_ends(mean - mean[:1], drawn - drawn[:, :1])


def _with_ends(mean: Floats, drawn: Floats) -> Means:
    """Intervals from the resampled means. Resamples without a value, which occur for measures that
    few queries have, are left out."""
    out = (1 - CONFIDENCE) / 2
    low, high = mean.copy(), mean.copy()
    for at in zip(*np.nonzero(~np.isnan(mean)), strict=True):
        low[at], high[at] = np.nanquantile(drawn[:, at[0], at[1]], [out, 1 - out])
    return Means(value=mean, low=low, high=high)
