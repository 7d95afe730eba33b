"""The steps of an `eval` job: runs judged queries with each search of the job.

A step runs some of the queries and lets a new step continue: after SLUICE_EVAL_STEP_S, or as soon
as a step of higher priority waits, so that searches of users wait for one query at most. The result
of a step is the outcome of its queries; the last step computes the measures of all.

Times are those of the search itself, inside the worker. For each query another search goes first,
and each process runs each search once beforehand without counting it, which loads the models.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
from sqlalchemy import select

from shared import files
from shared.bounds import shown
from shared.documents import collections, documents
from shared.jobs import claims, jobs
from shared.jobs.steps import NewStep
from shared.kinds.eval import (
    RERANK_STEP,
    Estimate,
    EvalInput,
    EvalResult,
    JudgedQuery,
    SearchDifference,
    SearchFigures,
    SearchTimes,
    measure_names,
    parse_queries,
)
from shared.kinds.search import Hit, SearchOptions
from shared.tables import Step
from shared.vocabulary import Queue, State
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.models.devices import RecentlyUsed
from workers.retrieval.measures import (
    JudgedHits,
    Means,
    estimate,
    judge,
    values_of,
)
from workers.retrieval.search import Candidate, SearchRequest, candidates, passages
from workers.servers.pulls import on_demand

UNIT = "queries"
LISTED = 10
"""How many names or warnings are listed; the number of the others is given."""
NAMES_AT_ONCE = 5000


@dataclass(kw_only=True)
class Evaluation:
    """The queries of a job, kept in a process while it runs the job's steps."""

    input: EvalInput
    queries: Sequence[JudgedQuery]
    is_warm: bool = False


@dataclass(kw_only=True)
class Outcomes:
    """The outcomes of consecutive queries. Each field has a list for each search, with an entry for
    each query; an entry of `values` has the values of the measures."""

    places: list[list[list[int]]]
    times_ms: list[list[float]]
    values: list[list[list[float | None]]]
    warnings: list[str]


Rank = Callable[[Context, str, str, Sequence[Candidate]], Sequence[Candidate]]
"""Context, model, query, candidates -> the candidates in the order of the model's scores."""


def run(context: Context) -> Done:
    """The handler of `eval`. Searches that rerank need the model of a Hugging Face task, so such a
    job continues in the queue `hf`."""
    if any(options.rerank for options in _evaluation(context).input.searches):
        return Done(children=[NewStep(name=RERANK_STEP, queue=Queue.HF)])
    return run_queries(context, None)


def run_queries(context: Context, rank: Rank | None) -> Done:
    """Run queries until the time is up or a step of higher priority waits. Searches that rerank
    need `rank`."""
    claim, settings = context.claim, context.process.settings
    evaluation = _evaluation(context)
    first = int(claim.payload.get("first", 0))
    warnings = [] if first else _warn_of_names(context, evaluation)
    _report(context, evaluation, first)
    _warm_up(context, evaluation, rank)
    trials = _Trials(context, evaluation, rank)
    deadline = time.monotonic() + settings.eval_step_s
    end = first
    while end < len(evaluation.queries):
        trials.run(end)
        end += 1
        if time.monotonic() > deadline or _is_behind(context):
            break
    _report(context, evaluation, end)
    outcomes = trials.outcomes()
    if end < len(evaluation.queries):
        following = NewStep(name=claim.name, queue=Queue(claim.queue), payload={"first": end})
        return Done(result=vars(outcomes), children=[following], warnings=warnings)
    total = _concatenate([*_earlier_outcomes(context), outcomes])
    result = _result(context, evaluation, total)
    warnings += _first_warnings(total.warnings)
    return Done(result=result.model_dump(mode="json"), warnings=warnings)


def _evaluation(context: Context) -> Evaluation:
    """The queries of the job, which are read once in each process, because a job has many steps.
    Raises InvalidInput for a file that is none of queries."""
    held: RecentlyUsed[UUID, Evaluation] = context.process.held(_evaluations)
    evaluation = held.get(context.claim.job_id)
    if evaluation is None:
        job_input = context.input(EvalInput)
        queries = job_input.queries
        if queries is None:
            assert job_input.file_id is not None
            queries = _queries_of_file(context.process, job_input.file_id)
        evaluation = Evaluation(input=job_input, queries=queries)
        held.add(context.claim.job_id, evaluation)
    return evaluation


def _evaluations(_process: Process) -> RecentlyUsed[UUID, Evaluation]:
    return RecentlyUsed(1)


def _queries_of_file(process: Process, file_id: UUID) -> list[JudgedQuery]:
    with process.ledger.read() as session:
        file = files.get(session, file_id)
    limit = process.settings.eval_limit_queries
    return parse_queries(files.read(process.storage, file), name=file.name, limit=limit)


def _warn_of_names(context: Context, evaluation: Evaluation) -> list[str]:
    """A warning if judgements name documents or chunks that the collection does not have."""
    names = {
        judgement.id: None
        for query in evaluation.queries
        for judgement in query.judgements
        if judgement.id is not None and judgement.grade
    }
    missing, all_names = [], list(names)
    for start in range(0, len(all_names), NAMES_AT_ONCE):
        some = all_names[start : start + NAMES_AT_ONCE]
        context.check()
        with context.process.ledger.read() as session:
            collection = collections.get(session, evaluation.input.collection)
            known = documents.known_names(session, collection.id, some)
        missing += [name for name in some if name not in known]
    if not missing:
        return []
    listed = ", ".join(shown(name) for name in missing[:LISTED])
    more = f" and {len(missing) - LISTED:,} more" if len(missing) > LISTED else ""
    return [
        f"{len(missing):,} of {len(names):,} relevant names are no source, document or chunk of "
        f"{evaluation.input.collection}: {listed}{more}. They count as not found; ingest them, or "
        "correct the names."
    ]


def _warm_up(context: Context, evaluation: Evaluation, rank: Rank | None) -> None:
    if evaluation.is_warm:
        return
    for options in evaluation.input.searches:
        _timed(context, evaluation, evaluation.queries[0].query, options, {}, rank)
    evaluation.is_warm = True


class _Trials:
    """Runs the queries of one step, and collects their outcomes."""

    def __init__(self, context: Context, evaluation: Evaluation, rank: Rank | None) -> None:
        self._context = context
        self._evaluation = evaluation
        self._rank = rank
        count = len(evaluation.input.searches)
        self._judged: list[list[JudgedHits]] = [[] for _ in range(count)]
        self._times_ms: list[list[float]] = [[] for _ in range(count)]
        self._warnings: dict[str, None] = {}

    def run(self, n: int) -> None:
        """Run query number `n` with each search. The order rotates, so that none is always
        first."""
        query, searches = self._evaluation.queries[n], self._evaluation.input.searches
        for turn in range(len(searches)):
            at = (n + turn) % len(searches)
            hits, elapsed_ms = _timed(
                self._context,
                self._evaluation,
                query.query,
                searches[at],
                self._warnings,
                self._rank,
            )
            self._judged[at].append(judge(query, hits))
            self._times_ms[at].append(elapsed_ms)

    def outcomes(self) -> Outcomes:
        k = self._evaluation.input.k
        return Outcomes(
            places=[[one.places for one in judged] for judged in self._judged],
            times_ms=self._times_ms,
            values=[
                [
                    [None if np.isnan(value) else float(value) for value in row]
                    for row in values_of(judged, k)
                ]
                for judged in self._judged
            ],
            warnings=list(self._warnings),
        )


def _timed(
    context: Context,
    evaluation: Evaluation,
    query: str,
    options: SearchOptions,
    warnings: dict[str, None],
    rank: Rank | None,
) -> tuple[Sequence[Hit], float]:
    """Run one search as a search job does. Returns its hits and its duration in milliseconds, and
    adds to `warnings`."""
    context.check()
    process = context.process
    request = SearchRequest(
        collections=[evaluation.input.collection],
        queries=[query],
        k=evaluation.input.k,
        options=options,
    )
    count = process.settings.rerank_candidates if options.rerank else 0
    begin = time.perf_counter()
    result = candidates(process, request, count=count, check=context.check)
    row = result.rows[0]
    if options.rerank and rank is not None:
        row = rank(context, options.rerank, query, row)
    hits = [passage.hit(request, query) for passage in passages(process, request, row)]
    elapsed_ms = 1000 * (time.perf_counter() - begin)
    warnings.update(dict.fromkeys(result.warnings))
    return hits, round(elapsed_ms, 3)


def _is_behind(context: Context) -> bool:
    """Whether a step of higher priority waits in this queue."""
    with context.process.ledger.read() as session:
        return claims.is_behind(session, context.claim)


def _report(context: Context, evaluation: Evaluation, done: int) -> None:
    with context.process.ledger.begin() as session:
        jobs.report(session, context.claim, done, len(evaluation.queries), UNIT)


def _earlier_outcomes(context: Context) -> list[Outcomes]:
    """The results of the job's earlier steps, in order."""
    claim = context.claim
    with context.process.ledger.read() as session:
        results = session.scalars(
            select(Step.result)
            .where(
                Step.job_id == claim.job_id, Step.name == claim.name, Step.state == State.SUCCEEDED,
                Step.id < claim.step_id,
            )
            .order_by(Step.id)
        ).all()  # fmt: skip
    return [Outcomes(**result) for result in results]


def _concatenate(parts: Sequence[Outcomes]) -> Outcomes:
    searches = range(len(parts[0].places))
    return Outcomes(
        places=[[one for part in parts for one in part.places[n]] for n in searches],
        times_ms=[[one for part in parts for one in part.times_ms[n]] for n in searches],
        values=[[one for part in parts for one in part.values[n]] for n in searches],
        warnings=list(dict.fromkeys(text for part in parts for text in part.warnings)),
    )


def _first_warnings(warnings: Sequence[str]) -> list[str]:
    left = len(warnings) - LISTED
    more = [f"{left:,} more warnings of single queries."] if left > 0 else []
    return [*warnings[:LISTED], *more]


def _result(context: Context, evaluation: Evaluation, outcomes: Outcomes) -> EvalResult:
    job_input = evaluation.input
    with context.process.ledger.read() as session:
        _, index = collections.get_with_index(session, job_input.collection)
    values = np.array(outcomes.values, dtype=np.float64)  # None becomes NaN
    means, differences = estimate(
        values, resamples=context.process.settings.eval_resamples, between=context.check
    )
    figures = [
        SearchFigures(
            search=options,
            measures=_estimates(means, n, job_input.k),
            times=_times(outcomes.times_ms[n]),
            places=outcomes.places[n],
            times_ms=outcomes.times_ms[n],
        )
        for n, options in enumerate(job_input.searches)
    ]
    return EvalResult(
        collection=job_input.collection,
        embedding_model=index.embedding_model,
        query_count=len(evaluation.queries),
        k=job_input.k,
        searches=figures,
        differences=[
            SearchDifference(search=n, measures=_estimates(differences, n, job_input.k))
            for n in range(1, len(figures))
        ],
    )


def _estimates(means: Means, row: int, k: int) -> dict[str, Estimate]:
    """The estimates of one search, without measures for which no query has a value."""
    return {
        name: Estimate(
            value=round(float(means.value[row, n]), 6),
            low=round(float(means.low[row, n]), 6),
            high=round(float(means.high[row, n]), 6),
        )
        for n, name in enumerate(measure_names(k))
        if not np.isnan(means.value[row, n])
    }


def _times(times_ms: Sequence[float]) -> SearchTimes:
    p50, p99 = map(float, np.percentile(times_ms, [50, 99]))
    mean = sum(times_ms) / len(times_ms)
    return SearchTimes(mean_ms=round(mean, 3), p50_ms=round(p50, 3), p99_ms=round(p99, 3))


EVAL = Handler(run=on_demand(run))
