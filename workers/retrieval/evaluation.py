"""The steps of an `eval` job: judged queries, each asked with each search of the job.

A step asks some queries and goes on in a new one: after SLUICE_EVAL_STEP_S, or as soon as a step
waits that goes before it, so that searches of users wait for one query at most. Each keeps what
came of its queries as its result; the last one computes the measures of all.

A time is that of the search alone, within the worker. The searches take turns in who is asked a
query first, and a process asks each one once beforehand, uncounted, which loads its models.
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
from workers.models.devices import Kept
from workers.retrieval.measures import (
    JudgedHits,
    Means,
    estimate,
    judge,
    values_of,
)
from workers.retrieval.search import Candidate, SearchRequest, candidates, passages

UNIT = "queries"
NAMED = 10
"""So many names or warnings are told; of the rest only the number is."""
NAMES_AT_ONCE = 5000


@dataclass(kw_only=True)
class Evaluation:
    """What a process holds of a job while it runs the job's steps."""

    input: EvalInput
    queries: Sequence[JudgedQuery]
    is_warm: bool = False


@dataclass(kw_only=True)
class Outcomes:
    """What came of some queries in a row. Each list has one list for each search, and in that an
    entry for each query; `values` have those of the measures."""

    places: list[list[list[int]]]
    times_ms: list[list[float]]
    values: list[list[list[float | None]]]
    warnings: list[str]


Rank = Callable[[Context, str, str, Sequence[Candidate]], Sequence[Candidate]]
"""Context, model, query, candidates -> the candidates by what the model thinks of them."""


def run(context: Context) -> Done:
    """A search that reranks needs the model of a Hugging Face task, which other steps run."""
    if any(options.rerank for options in _evaluation(context).input.searches):
        return Done(children=[NewStep(name=RERANK_STEP, queue=Queue.HF)])
    return ask_some(context, None)


def ask_some(context: Context, rank: Rank | None) -> Done:
    """Ask queries until others are to go first. With `rank`, searches may rerank."""
    claim, settings = context.claim, context.process.settings
    evaluation = _evaluation(context)
    first = int(claim.payload.get("first", 0))
    warnings = [] if first else _unknown(context, evaluation)
    _report(context, evaluation, first)
    _warm_up(context, evaluation, rank)
    trials = _Trials(context, evaluation, rank)
    deadline = time.monotonic() + settings.eval_step_s
    end = first
    while end < len(evaluation.queries):
        trials.ask_all(end)
        end += 1
        if time.monotonic() > deadline or _is_waited_for(context):
            break
    _report(context, evaluation, end)
    outcomes = trials.outcomes()
    if end < len(evaluation.queries):
        following = NewStep(name=claim.name, queue=Queue(claim.queue), payload={"first": end})
        return Done(result=vars(outcomes), children=[following], warnings=warnings)
    whole = _joined([*_recorded(context), outcomes])
    result = _result(context, evaluation, whole)
    return Done(result=result.model_dump(mode="json"), warnings=warnings + _few(whole.warnings))


def _evaluation(context: Context) -> Evaluation:
    """Read once in a process, for a job has many steps. Raises InvalidInput for a bad file."""
    held: Kept[UUID, Evaluation] = context.process.held(_evaluations)
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


def _evaluations(_process: Process) -> Kept[UUID, Evaluation]:
    return Kept(1)


def _queries_of_file(process: Process, file_id: UUID) -> list[JudgedQuery]:
    with process.ledger.read() as session:
        file = files.get(session, file_id)
    limit = process.settings.eval_limit_queries
    return parse_queries(files.read(process.storage, file), name=file.name, limit=limit)


def _unknown(context: Context, evaluation: Evaluation) -> list[str]:
    """A warning of names that the collection does not have: what they name cannot be found."""
    names = {
        judgement.id: None
        for query in evaluation.queries
        for judgement in query.judgements
        if judgement.id is not None and judgement.grade
    }
    missing, listed = [], list(names)
    for start in range(0, len(listed), NAMES_AT_ONCE):
        some = listed[start : start + NAMES_AT_ONCE]
        context.check()
        with context.process.ledger.read() as session:
            collection = collections.get(session, evaluation.input.collection)
            known = documents.known_names(session, collection.id, some)
        missing += [name for name in some if name not in known]
    if not missing:
        return []
    named = ", ".join(shown(name) for name in missing[:NAMED])
    more = f" and {len(missing) - NAMED:,} more" if len(missing) > NAMED else ""
    return [
        f"{len(missing):,} of {len(names):,} relevant names are no source, document or chunk of "
        f"{evaluation.input.collection}: {named}{more}. They count as not found; ingest them, or "
        "correct the names."
    ]


def _warm_up(context: Context, evaluation: Evaluation, rank: Rank | None) -> None:
    if evaluation.is_warm:
        return
    for options in evaluation.input.searches:
        _timed(context, evaluation, evaluation.queries[0].query, options, {}, rank)
    evaluation.is_warm = True


class _Trials:
    """The queries of one step, and what came of them."""

    def __init__(self, context: Context, evaluation: Evaluation, rank: Rank | None) -> None:
        self._context = context
        self._evaluation = evaluation
        self._rank = rank
        count = len(evaluation.input.searches)
        self._judged: list[list[JudgedHits]] = [[] for _ in range(count)]
        self._times_ms: list[list[float]] = [[] for _ in range(count)]
        self._warnings: dict[str, None] = {}

    def ask_all(self, n: int) -> None:
        """Query number `n` with each of the searches, the first of which is another each time."""
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
    """The hits of a search job of these options, and how many milliseconds the search took."""
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


def _is_waited_for(context: Context) -> bool:
    with context.process.ledger.read() as session:
        return claims.is_behind(session, context.claim)


def _report(context: Context, evaluation: Evaluation, done: int) -> None:
    with context.process.ledger.begin() as session:
        jobs.report(session, context.claim, done, len(evaluation.queries), UNIT)


def _recorded(context: Context) -> list[Outcomes]:
    """What came of the queries of the job's earlier steps, in order."""
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


def _joined(parts: Sequence[Outcomes]) -> Outcomes:
    searches = range(len(parts[0].places))
    return Outcomes(
        places=[[one for part in parts for one in part.places[n]] for n in searches],
        times_ms=[[one for part in parts for one in part.times_ms[n]] for n in searches],
        values=[[one for part in parts for one in part.values[n]] for n in searches],
        warnings=list(dict.fromkeys(text for part in parts for text in part.warnings)),
    )


def _few(warnings: Sequence[str]) -> list[str]:
    left = len(warnings) - NAMED
    more = [f"{left:,} more warnings of single queries."] if left > 0 else []
    return [*warnings[:NAMED], *more]


def _result(context: Context, evaluation: Evaluation, outcomes: Outcomes) -> EvalResult:
    job_input = evaluation.input
    with context.process.ledger.read() as session:
        model = collections.get(session, job_input.collection).embedding_model
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
        embedding_model=model,
        query_count=len(evaluation.queries),
        k=job_input.k,
        searches=figures,
        differences=[
            SearchDifference(search=n, measures=_estimates(differences, n, job_input.k))
            for n in range(1, len(figures))
        ],
    )


def _estimates(means: Means, row: int, k: int) -> dict[str, Estimate]:
    """Those of one search, without the measures that no query has a value of."""
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


EVAL = Handler(run=run)
