"""The steps `embed` (texts to vectors), `search`, and `rag.find` (the retrieval half of `rag`)."""

from shared import jobs
from shared.generation import door_of
from shared.payloads import (
    EmbedInput,
    EmbedResult,
    Hit,
    RagInput,
    SearchInput,
    SearchOptions,
    SearchResult,
)
from shared.queue import Queue
from shared.steps import NewStep
from workers.retrieval.search import find
from workers.step import Context, Done, Handler


def embed(context: Context) -> Done:
    wanted = EmbedInput.model_validate(_input(context))
    embedder = context.process.embedders.get(wanted.model, check=context.check)
    vectors = embedder.encode(wanted.texts, between=context.check)
    result = EmbedResult(
        model=embedder.name, dimension=embedder.dimension, embeddings=vectors.tolist()
    )
    return Done(result=result.model_dump())


def search(context: Context) -> Done:
    wanted = SearchInput.model_validate(_input(context))
    hits = _find(context, wanted.collection, wanted.query, wanted.k, wanted.search)
    return Done(result=SearchResult(hits=hits).model_dump())


def rag_find(context: Context) -> Done:
    """Keeps ids and scores only: the text is read again when the answer is made, if it is there."""
    wanted = RagInput.model_validate(_input(context))
    hits = _find(context, wanted.collection, wanted.question, wanted.k, wanted.search)
    found = [{"id": hit.chunk_id, "score": hit.score} for hit in hits]
    model = wanted.model or context.process.settings.generation_model
    answer = NewStep(name="rag.answer", queue=Queue.GENERATE, door=door_of(model))
    return Done(result={"found": found}, children=[answer])


def _find(
    context: Context, collection: str, query: str, k: int, options: SearchOptions
) -> list[Hit]:
    return find(context.process, collection, query, k=k, where=options.filter, check=context.check)


def _input(context: Context) -> dict[str, object]:
    with context.process.ledger.read() as session:
        return jobs.get(session, context.claim.job_id).input


EMBED = Handler(run=embed)
SEARCH = Handler(run=search)
RAG_FIND = Handler(run=rag_find)
