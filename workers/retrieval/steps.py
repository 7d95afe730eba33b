"""The steps `embed` (texts to vectors), `search`, and `rag.find` (the retrieval half of `rag`)."""

from collections.abc import Callable, Mapping

from shared.bounds import Metadata, nfc
from shared.documents import collections, documents
from shared.errors import Permanent
from shared.jobs.steps import NewStep
from shared.kinds.embed import EmbedInput, EmbedResult
from shared.kinds.rag import RagInput
from shared.kinds.search import Hit, SearchInput, SearchResult
from shared.providers import route_of
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.store import Match, Missing, store_of

# Retrieval: the nearest chunks of a collection that are live in Postgres.

# What a job warns of where texts are longer than the window of its embedding model.
#
# The vector of such a text stands for its beginning alone.

NAMED = 10
"""So many texts or documents are named; of the rest only the number is."""


def cut_query(embedder: Embedder, query: str, *, what: str, warn: Callable[[str], None]) -> None:
    """`what` is what the user calls it: the query, the question."""
    for tokens in embedder.overlong([query], between=_nothing).values():
        warn(
            f"The {what} has {tokens:,} tokens, of which {embedder.name} reads the first "
            f"{embedder.window:,}: what it says after these had no part in the search. Shorten it."
        )


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


def _nothing() -> None:
    """A query is one text."""


WIDEN_TIMES = 4


def find(
    process: Process,
    collection_name: str,
    query: str,
    *,
    k: int,
    where: Metadata | None,
    check: Callable[[], None] = lambda: None,
    what: str = "query",
    warn: Callable[[str], None] = lambda _: None,
) -> list[Hit]:
    """The k best hits, best first; fewer where the collection has fewer. `check` is called while a
    model is waited for, and may raise.

    `warn` is told where the model cannot read all of the query, which is called `what`.

    Chroma may know chunks that Postgres no longer counts as live, and for a moment the other way
    round. Where such chunks leave fewer than k hits, more are asked for.
    """
    with process.ledger.read() as session:
        collection = collections.get(session, collection_name)
        model, dimension, collection_id = (
            collection.embedding_model, collection.dimension, collection.id,
        )  # fmt: skip
    if dimension is None:
        return []  # nothing has been embedded yet
    embedder = embedders_of(process).get(model, check=check)
    if embedder.dimension != dimension:
        raise Permanent(
            f"Collection {collection_name!r} has {dimension} dimensions, but {model!r} now gives "
            f"{embedder.dimension}. Put the model back, or ingest into a new collection."
        )
    cut_query(embedder, query, what=what, warn=warn)
    vector = embedder.encode_queries([nfc(query)], between=lambda: None)
    limit = k
    for _ in range(WIDEN_TIMES):
        try:
            (matches,) = store_of(process).query(collection_name, vector, limit=limit, where=where)
        except Missing:
            if _is_empty(process, collection_name):
                return []
            raise
        with process.ledger.read() as session:
            live = documents.live_chunks(session, collection_id, [match.id for match in matches])
        hits = [_hit(live[match.id], match) for match in matches if match.id in live]
        if len(hits) >= k or len(matches) == len(hits):
            break
        limit *= 4
    return hits[:k]


def _is_empty(process: Process, collection_name: str) -> bool:
    """Whether there is nothing to find. Raises NotFound where the collection was just erased."""
    with process.ledger.read() as session:
        collection = collections.get(session, collection_name)
        return not documents.page(session, collection.id, limit=1, after=None)


def _hit(chunk: documents.ChunkView, match: Match) -> Hit:
    return Hit(
        chunk_id=chunk.id,
        document_id=str(chunk.document_id),
        source=chunk.source,
        text=chunk.text,
        start=chunk.start,
        score=round(match.score, 6),
        metadata=chunk.metadata,
    )


def embed(context: Context) -> Done:
    input_ = context.input(EmbedInput)
    embedder = embedders_of(context.process).get(input_.model, check=context.check)
    cut = embedder.overlong(input_.texts, between=context.check)
    vectors = embedder.encode(input_.texts, between=context.check)
    result = EmbedResult(
        model=embedder.name, dimension=embedder.dimension, embeddings=vectors.tolist()
    )
    return Done(result=result.model_dump(), warnings=cut_texts(embedder, cut))


def search(context: Context) -> Done:
    input_ = context.input(SearchInput)
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
    return Done(result=SearchResult(hits=hits).model_dump(), warnings=warnings)


def rag_find(context: Context) -> Done:
    """Keeps ids and scores only: the text is read again when the answer is made, if it is there."""
    input_ = context.input(RagInput)
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
    return Done(result={"found": matches}, children=[answer], warnings=warnings)


EMBED = Handler(run=embed)
SEARCH = Handler(run=search)
RAG_FIND = Handler(run=rag_find)
