"""The steps `search.rerank`, `rag.rerank` and `eval.rerank`: a cross-encoder ranks passages.

The first two run like jobs of text ranking (`workers/hf/steps.py`): the pairs of all jobs that wait
for a model share batches, and a step that takes too long continues in another. `eval.rerank` is
`eval.run` (`workers/retrieval/evaluation.py`) for searches that rerank. It ranks the candidates of
one query at a time, so that the measured time is that of one search.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from shared.errors import SluiceError
from shared.hf.sentences import TEXT_RANKING
from shared.jobs import steps
from shared.kinds.hf import HfInput, parse_parameters
from shared.kinds.rag import RagInput
from shared.kinds.search import SearchInput
from workers.attempts.context import Context, Done, Handler, Settle
from workers.hf.steps import Budget, StepInput, batches, run_local, run_rows
from workers.hf.task import UNWATCHED, models_of
from workers.retrieval.evaluation import run_queries
from workers.retrieval.search import Candidate
from workers.retrieval.steps import candidates_from_json, rag_find_done, request_of, search_done

TASK: Final = TEXT_RANKING.name

JobCandidates = tuple[SearchInput | RagInput, Sequence[Sequence[Candidate | None]]]
"""The input of a job, and the candidates of each of its queries; None if a candidate was erased."""


class _SettleReranked:
    """Settles steps: makes hits of rankings, and passes on errors and continued steps."""

    def __init__(
        self, settle: Settle, jobs: Mapping[int, JobCandidates], finish: Callable[..., Done]
    ) -> None:
        self._settle = settle
        self._jobs = jobs
        self._finish = finish

    def __call__(self, context: Context, outcome: Done | Exception, /) -> None:
        if isinstance(outcome, Done) and not outcome.children:
            try:
                outcome = self._hits(context, outcome)
            except SluiceError as error:
                outcome = error
        self._settle(context, outcome)

    def flush(self) -> None:
        self._settle.flush()

    def _hits(self, context: Context, done: Done) -> Done:
        input_, rows = self._jobs[context.claim.step_id]
        rankings = iter(done.result.value)
        ranked = [_ranked(row, next(rankings)) if row else [] for row in rows]
        return replace(self._finish(context, input_, ranked), warnings=done.warnings)


def _ranked(row: Sequence[Candidate | None], ranking: Sequence[dict[str, Any]]) -> list[Candidate]:
    """The candidates that are still live, best first."""
    ranked = [(row[entry["index"]], float(entry["score"])) for entry in ranking]
    return [replace(one, score=score) for one, score in ranked if one is not None]


def _run(
    contexts: Sequence[Context],
    settle: Settle,
    *,
    shape: type[SearchInput] | type[RagInput],
    before: str,
    finish: Callable[..., Done],
) -> None:
    jobs: dict[int, JobCandidates] = {}
    requests: list[StepInput] = []
    for context in contexts:
        try:
            input_ = context.input(shape)
            with context.process.ledger.read_single() as session:
                recorded = steps.result_of(session, context.claim.job_id, before)
            rows = candidates_from_json(context.process, recorded["candidates"])
        except SluiceError as error:
            settle(context, error)
            continue
        queries = request_of(input_).queries
        inputs = [
            {"query": query, "texts": [_text(one) for one in row]}
            for query, row in zip(queries, rows, strict=True)
            if row
        ]
        if not inputs:
            settle(context, finish(context, input_, [[] for _ in rows]))
            continue
        jobs[context.claim.step_id] = input_, rows
        requests.append(
            (
                context,
                HfInput(task=TASK, model=input_.search.rerank, inputs=inputs),
            )
        )
    if requests:
        run_local(requests, _SettleReranked(settle, jobs, finish))


def _text(candidate: Candidate | None) -> str:
    """The text of a pair. Erased ones keep their index, for a step may continue another one."""
    return candidate.chunk.text if candidate else "-"


def rerank_search(contexts: Sequence[Context], settle: Settle) -> None:
    _run(contexts, settle, shape=SearchInput, before="search", finish=search_done)


def rerank_rag(contexts: Sequence[Context], settle: Settle) -> None:
    _run(contexts, settle, shape=RagInput, before="rag.find", finish=rag_find_done)


def rerank_eval(context: Context) -> Done:
    return run_queries(context, rank)


def rank(
    context: Context, name: str, query: str, candidates: Sequence[Candidate]
) -> Sequence[Candidate]:
    """The candidates with the scores of the model of this name, best first."""
    if not candidates:
        return []
    value = {"query": query, "texts": [one.chunk.text for one in candidates]}
    model = models_of(context.process).ready(name, TASK, check=context.check)
    parameters = parse_parameters(TASK, {})
    prepared = model.prepare(value, parameters)
    outputs: list[Any] = [None] * len(prepared.rows)
    budget = Budget(context.process.settings.hf_batch_tokens)
    for batch in batches(prepared.rows, budget, model.row_limit):
        context.check()
        rows = [prepared.rows[n] for n in batch]
        for n, output in zip(batch, run_rows(model, rows, UNWATCHED, budget), strict=True):
            if isinstance(output, Exception):
                raise output
            outputs[n] = output
    ranking = model.finish(prepared, outputs, parameters)
    return [replace(candidates[entry["index"]], score=float(entry["score"])) for entry in ranking]


SEARCH_RERANK = Handler(run_batch=rerank_search)
RAG_RERANK = Handler(run_batch=rerank_rag)
EVAL_RERANK = Handler(run=rerank_eval)
