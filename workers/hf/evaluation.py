"""The step `eval.rerank`: an `eval` job of which a search reranks.

It asks as `eval.run` does (`workers/retrieval/evaluation.py`). The candidates of one query are
ranked at a time, so that a time is that of one search.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shared.hf.sentences import TEXT_RANKING
from shared.kinds.hf import parse_parameters
from workers.attempts.context import Context, Done, Handler
from workers.hf.steps import Budget, batches, run_rows
from workers.hf.task import UNWATCHED, models_of
from workers.retrieval.evaluation import run_queries
from workers.retrieval.search import Candidate

TASK = TEXT_RANKING.name


def run(context: Context) -> Done:
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
    return [replace(candidates[place["index"]], score=float(place["score"])) for place in ranking]


EVAL_RERANK = Handler(run=run)
