"""Measures of searches: what one query's hits are worth, and intervals of the means.

The values are those of `ir-measures`. A document stands where its first hit does, and its later
hits keep their places: what counts is what a caller of `k` hits sees. What one hit answers at once
(two quotations in one chunk) counts as one relevant thing.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
import numpy.typing as npt

from shared.bounds import comparable
from shared.kinds.eval import DEPTH, FIRST, JudgedQuery
from shared.kinds.search import Hit

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
_MISS = "hit:"
_LATIN = re.compile(r"[0-9a-z]")


@dataclass(frozen=True, kw_only=True)
class JudgedHits:
    """One search's hits for one query. `grades` has the relevant things by a key, of those that
    a hit answers together one; `keys` has for each hit the key of what it is the first to answer.

    `has_answer` says whether one of the query's answers stands in the first hits; None where the
    query has no answers.
    """

    grades: dict[str, int]
    keys: list[str | None]
    has_answer: bool | None

    @property
    def places(self) -> list[int]:
        """Where relevant hits stand, from 1."""
        return [place for place, key in enumerate(self.keys, start=1) if key is not None]


def judge(query: JudgedQuery, hits: Sequence[Hit]) -> JudgedHits:
    """`hits` are the best first."""
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
    """Finds a text whatever its case, width and spaces are; Latin words and numbers as a whole, for
    `308` does not stand in `13085`. Words of Korean carry particles, and Chinese has no spaces."""
    folded = _folded(text)
    before = r"(?<![0-9a-z])" if _LATIN.match(folded[:1]) else ""
    after = r"(?![0-9a-z])" if _LATIN.match(folded[-1:]) else ""
    return re.compile(before + re.escape(folded) + after)


def values_of(judged: Sequence[JudgedHits], k: int) -> Floats:
    """One search's values, of the shape (len(judged), len(measure_names(k))).

    NaN where a query has no answers to look for.
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
    """Means and the ends of their intervals; NaN where no query has a value. The first axis of
    each is that of the searches, the second that of the measures."""

    value: Floats
    low: Floats
    high: Floats


def estimate(values: Floats, *, resamples: int, between: Callable[[], None]) -> tuple[Means, Means]:
    """The means of `values`, of the shape (searches, queries, measures), and their differences to
    those of the first search, with percentile bootstrap intervals (Efron and Tibshirani 1993, 13.3)
    over the queries. All searches are resampled with the same queries, so that the differences are
    paired. `between` is called now and then, and may raise. The same values give the same ends.
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
    """Resamples without a value, which only measures of few queries have, are left out."""
    out = (1 - CONFIDENCE) / 2
    low, high = mean.copy(), mean.copy()
    for at in zip(*np.nonzero(~np.isnan(mean)), strict=True):
        low[at], high[at] = np.nanquantile(drawn[:, at[0], at[1]], [out, 1 - out])
    return Means(value=mean, low=low, high=high)
