"""The steps `search.rerank` and `rag.rerank`: what a search has found, ranked by a cross-encoder.

They run as text ranking does (`workers/hf/steps.py`): pairs of all jobs that wait for one model
share batches, and a step that takes too long goes on in another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared.errors import SluiceError
from shared.hf.sentences import TEXT_RANKING
from shared.jobs import steps
from shared.kinds.hf import HfInput
from shared.kinds.rag import RagInput
from shared.kinds.search import SearchInput
from workers.attempts.context import Context, Done, Handler, Settle
from workers.hf.steps import StepInput, run_local
from workers.retrieval.search import Candidate
from workers.retrieval.steps import candidates_from_json, rag_find_done, request_of, search_done

Recorded = tuple[SearchInput | RagInput, Sequence[Sequence[Candidate | None]]]
"""The input of a job, and the candidates of each of its queries."""


class _Reranked:
    """Makes hits of what text ranking gives, and settles the rest as it is."""

    def __init__(
        self, settle: Settle, jobs: Mapping[int, Recorded], finish: Callable[..., Done]
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
    """Those that are still live, best first."""
    ranked = [(row[place["index"]], float(place["score"])) for place in ranking]
    return [replace(one, score=score) for one, score in ranked if one is not None]


def _run(
    contexts: Sequence[Context],
    settle: Settle,
    *,
    shape: type[SearchInput] | type[RagInput],
    before: str,
    finish: Callable[..., Done],
) -> None:
    jobs: dict[int, Recorded] = {}
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
                HfInput(task=TEXT_RANKING.name, model=input_.search.rerank, inputs=inputs),
            )
        )
    if requests:
        run_local(requests, _Reranked(settle, jobs, finish))


def _text(candidate: Candidate | None) -> str:
    """Pairs keep their places, those of erased text too: a step may go on where one has ended."""
    return candidate.chunk.text if candidate else "-"


def rerank_search(contexts: Sequence[Context], settle: Settle) -> None:
    _run(contexts, settle, shape=SearchInput, before="search", finish=search_done)


def rerank_rag(contexts: Sequence[Context], settle: Settle) -> None:
    _run(contexts, settle, shape=RagInput, before="rag.find", finish=rag_find_done)


SEARCH_RERANK = Handler(run_batch=rerank_search)
RAG_RERANK = Handler(run_batch=rerank_rag)
