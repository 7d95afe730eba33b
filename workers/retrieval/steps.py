"""The steps `embed` (texts to vectors), `search`, and `rag.find` (the retrieval half of `rag`)."""

from collections.abc import Mapping

from shared.jobs.steps import NewStep
from shared.kinds.embed import EmbedInput, EmbedResult
from shared.kinds.rag import RagInput
from shared.kinds.search import QueryHits, SearchInput, SearchResult
from shared.providers import route_of
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.retrieval import search as searching
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.search import SearchRequest

# What a job warns of where texts are longer than the window of its embedding model.
#
# The vector of such a text stands for its beginning alone.

NAMED = 10
"""So many texts or documents are named; of the rest only the number is."""


def cut_texts(embedder: Embedder, cut: Mapping[int, int]) -> list[str]:
    """Of an embed job, whose texts are counted from 1."""
    if not cut:
        return []
    named = [f"text {n + 1:,} has {tokens:,}" for n, tokens in list(cut.items())[:NAMED]]
    more = f" and {len(cut) - NAMED:,} more are too long" if len(cut) > NAMED else ""
    return [
        f"{embedder.name} reads the first {embedder.window:,} tokens of a text; "
        f"{', '.join(named)}{more}. Their vectors stand for what was read: divide them, or choose "
        "a model that reads more."
    ]


def embed(context: Context) -> Done:
    input_ = context.input(EmbedInput)
    embedder = embedders_of(context.process).get(input_.model, check=context.check)
    is_query = input_.input_type == "query"
    overlong = embedder.overlong_queries if is_query else embedder.overlong
    encode = embedder.encode_queries if is_query else embedder.encode
    cut = overlong(input_.texts, between=context.check)
    vectors = encode(input_.texts, between=context.check)
    result = EmbedResult(
        model=embedder.name, dimension=embedder.dimension, embeddings=vectors.tolist()
    )
    return Done(result=result.model_dump(), warnings=cut_texts(embedder, cut))


def search(context: Context) -> Done:
    input_ = context.input(SearchInput)
    answer = searching.search(
        context.process,
        SearchRequest(
            collections=input_.collection_names,
            queries=input_.query_texts,
            k=input_.k,
            options=input_.search,
        ),
        check=context.check,
    )
    if input_.queries is None:
        result = SearchResult(hits=list(answer.hits[0]))
    else:
        result = SearchResult(
            results=[
                QueryHits(query=query, hits=list(hits))
                for query, hits in zip(input_.queries, answer.hits, strict=True)
            ]
        )
    return Done(result=result.model_dump(exclude_none=True), warnings=answer.warnings)


def rag_find(context: Context) -> Done:
    """Keeps ids and scores only: the text is read again when the answer is made, if it is there."""
    input_ = context.input(RagInput)
    answer = searching.search(
        context.process,
        SearchRequest(
            collections=[input_.collection],
            queries=[input_.question],
            k=input_.k,
            options=input_.search,
            noun="question",
        ),
        check=context.check,
    )
    matches = [{"id": hit.chunk_id, "score": hit.score} for hit in answer.hits[0]]
    model = input_.model or context.process.settings.generation_model
    step = NewStep(name="rag.answer", queue=Queue.GENERATE, route=route_of(model))
    return Done(result={"found": matches}, children=[step], warnings=answer.warnings)


EMBED = Handler(run=embed)
SEARCH = Handler(run=search)
RAG_FIND = Handler(run=rag_find)
