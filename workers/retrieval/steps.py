"""The steps `embed` (texts to vectors), `search`, and `rag.find` (the retrieval half of `rag`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared.documents import collections, documents
from shared.documents.documents import ChunkView
from shared.jobs.steps import NewStep
from shared.kinds.embed import EmbedInput, EmbedResult
from shared.kinds.rag import RagInput
from shared.kinds.search import (
    RERANK_STEPS,
    HitDebug,
    QueryHits,
    SearchInput,
    SearchResult,
    rerank_key,
)
from shared.providers import route_of
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.retrieval import search as searching
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.search import Candidate, SearchRequest, passages

Rows = Sequence[Sequence[Candidate]]
"""Of each query, best first."""

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
    request = request_of(input_)
    return _begin(context, request, then=lambda rows: search_done(context, input_, rows))


def rag_find(context: Context) -> Done:
    input_ = context.input(RagInput)
    request = request_of(input_)
    return _begin(context, request, then=lambda rows: rag_found(context, input_, rows))


def _begin(context: Context, request: SearchRequest, *, then: Callable[[Rows], Done]) -> Done:
    """The candidates: those of a search that is not to be reranked become hits at once."""
    model = request.options.rerank
    settings = context.process.settings
    count = settings.rerank_candidates if model else 0
    candidates = searching.candidates(context.process, request, count=count, check=context.check)
    if model is None:
        done = then(candidates.rows)
    else:
        step = NewStep(
            name=RERANK_STEPS[context.claim.name],
            queue=Queue.HF,
            batch_key=rerank_key(context.claim.name, model),
        )
        done = Done(result={"candidates": to_json(candidates.rows)}, children=[step])
    return replace(done, warnings=candidates.warnings)


def request_of(input_: SearchInput | RagInput) -> SearchRequest:
    if isinstance(input_, RagInput):
        return SearchRequest(
            collections=[input_.collection],
            queries=[input_.question],
            k=input_.k,
            options=input_.search,
            noun="question",
        )
    return SearchRequest(
        collections=input_.collection_names,
        queries=input_.query_texts,
        k=input_.k,
        options=input_.search,
    )


def search_done(context: Context, input_: SearchInput, rows: Rows) -> Done:
    """The end of a search job, of the candidates of each query."""
    request = request_of(input_)
    hits = [
        [passage.hit(request, query) for passage in passages(context.process, request, row)]
        for query, row in zip(request.queries, rows, strict=True)
    ]
    if input_.queries is None:
        result = SearchResult(hits=hits[0])
    else:
        pairs = zip(input_.queries, hits, strict=True)
        result = SearchResult(results=[QueryHits(query=query, hits=row) for query, row in pairs])
    return Done(result=result.model_dump(exclude_none=True))


def rag_found(context: Context, input_: RagInput, rows: Rows) -> Done:
    """Keeps ids and scores only: the text is read again when the answer is made, if it is there."""
    matches = [
        {
            "id": passage.candidate.chunk.id,
            "score": round(passage.candidate.score, 6),
            "ordinals": passage.ordinals,
        }
        for passage in passages(context.process, request_of(input_), rows[0])
    ]
    model = input_.model or context.process.settings.generation_model
    step = NewStep(name="rag.answer", queue=Queue.GENERATE, route=route_of(model))
    return Done(result={"found": matches}, children=[step])


# Candidates between the step that looks for them and the one that ranks them again. What is kept
# of each is what the other cannot read anew.


def to_json(rows: Rows) -> list[list[dict[str, Any]]]:
    return [
        [
            {
                "id": one.chunk.id,
                "collection": one.collection,
                "debug": one.debug.model_dump(exclude_none=True),
            }
            for one in row
        ]
        for row in rows
    ]


def from_json(process: Process, rows: Any) -> list[list[Candidate | None]]:
    """Without a score; None for those that are live no longer, so that all keep their places."""
    ids: dict[str, list[str]] = {}
    for row in rows:
        for one in row:
            ids.setdefault(one["collection"], []).append(one["id"])
    live: dict[str, ChunkView] = {}
    with process.ledger.read() as session:
        for name, of_collection in ids.items():
            collection = collections.get(session, name)
            live |= documents.live_chunks(session, collection.id, of_collection)

    def candidate(one: dict[str, Any]) -> Candidate | None:
        chunk = live.get(one["id"])
        debug = HitDebug.model_validate(one["debug"])
        if chunk is None:
            return None
        return Candidate(chunk=chunk, collection=one["collection"], score=0.0, debug=debug)

    return [[candidate(one) for one in row] for row in rows]


EMBED = Handler(run=embed)
SEARCH = Handler(run=search)
RAG_FIND = Handler(run=rag_find)
