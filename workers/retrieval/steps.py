"""The steps `embed` (texts to vectors), `search`, and `rag.find` (the retrieval half of `rag`)."""

from collections.abc import Callable, Sequence

from sqlalchemy.orm import Session

from shared.jobs import jobs
from shared.jobs.steps import NewStep
from shared.kinds.embed import EmbedInput, EmbedResult
from shared.kinds.generation import route_of
from shared.kinds.rag import RagInput
from shared.kinds.search import SearchInput, SearchResult
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.retrieval.search import cut_texts, find


def embed(context: Context) -> Done:
    input_ = EmbedInput.model_validate(_input(context))
    embedder = context.process.embedders.get(input_.model, check=context.check)
    cut = embedder.overlong(input_.texts, between=context.check)
    vectors = embedder.encode(input_.texts, between=context.check)
    result = EmbedResult(
        model=embedder.name, dimension=embedder.dimension, embeddings=vectors.tolist()
    )
    return Done(result=result.model_dump(), record=_warning(context, cut_texts(embedder, cut)))


def search(context: Context) -> Done:
    input_ = SearchInput.model_validate(_input(context))
    warnings: list[str] = []
    hits = find(
        context.process,
        input_.collection,
        input_.query,
        k=input_.k,
        where=input_.search.filter,
        check=context.check,
        warn=warnings.append,
    )
    return Done(result=SearchResult(hits=hits).model_dump(), record=_warning(context, warnings))


def rag_find(context: Context) -> Done:
    """Keeps ids and scores only: the text is read again when the answer is made, if it is there."""
    input_ = RagInput.model_validate(_input(context))
    warnings: list[str] = []
    hits = find(
        context.process,
        input_.collection,
        input_.question,
        k=input_.k,
        where=input_.search.filter,
        check=context.check,
        what="question",
        warn=warnings.append,
    )
    matches = [{"id": hit.chunk_id, "score": hit.score} for hit in hits]
    model = input_.model or context.process.settings.generation_model
    answer = NewStep(name="rag.answer", queue=Queue.GENERATE, route=route_of(model))
    return Done(result={"found": matches}, children=[answer], record=_warning(context, warnings))


def _warning(context: Context, warnings: Sequence[str]) -> Callable[[Session], None] | None:
    if not warnings:
        return None
    return lambda session: jobs.warn(session, context.claim.job_id, warnings)


def _input(context: Context) -> dict[str, object]:
    with context.process.ledger.read() as session:
        return jobs.get(session, context.claim.job_id).input


EMBED = Handler(run=embed)
SEARCH = Handler(run=search)
RAG_FIND = Handler(run=rag_find)
