"""The steps `embed` (texts to vectors), `search`, and `rag.find` (the retrieval half of `rag`)."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from operator import attrgetter
from typing import Any, Self, TypeVar

import numpy as np
import orjson
from billiard.exceptions import SoftTimeLimitExceeded
from pydantic import ValidationError

from shared.bounds import EncodedJson
from shared.documents import collections, documents
from shared.documents.documents import ChunkView
from shared.errors import Cancelled, InvalidInput, Permanent, Retryable, SluiceError
from shared.jobs.steps import NewStep
from shared.kinds.embed import EmbedInput
from shared.kinds.rag import RagInput
from shared.kinds.search import (
    RERANK_STEPS,
    HitDebug,
    QueryHits,
    SearchInput,
    SearchResult,
    rerank_key,
)
from shared.models.providers import route_of
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler, Settle, fetch_inputs
from workers.attempts.process import Process
from workers.models.devices import Vectors, require_finite, unit
from workers.retrieval import search as searching
from workers.retrieval.embed import Embedder, embedders_of, load_coming
from workers.retrieval.search import Candidate, SearchRequest, passages
from workers.retrieval.tuning import measure_due
from workers.servers.pulls import or_pull
from workers.servers.server import ModelMissing

Rows = Sequence[Sequence[Candidate]]
"""The candidates of each query, best first."""

WARNED_TEXTS = 10
"""How many texts a warning names; it says how many more there are."""


def _cut_warnings(embedder: Embedder, cut: Mapping[int, int]) -> list[str]:
    """The warning of an embed job about texts that are longer than the model's window: their
    vectors stand for their beginnings only. `cut` has their numbers of tokens by index; the warning
    counts texts from 1."""
    if not cut:
        return []
    listed = [f"text {n + 1:,} has {tokens:,}" for n, tokens in list(cut.items())[:WARNED_TEXTS]]
    left = len(cut) - WARNED_TEXTS
    more = f" and {left:,} more are too long" if left > 0 else ""
    return [
        f"{embedder.name} reads the first {embedder.window:,} tokens of a text; "
        f"{', '.join(listed)}{more}. Their vectors stand for what was read: divide them, or choose "
        "a model that reads more."
    ]


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
        vector=input_.vector,
    )


def search_done(context: Context, input_: SearchInput, rows: Rows) -> Done:
    """The result of a search job, from the candidates of each query."""
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


def rag_find_done(context: Context, input_: RagInput, rows: Rows) -> Done:
    """The result of `rag.find`: ids and scores. `rag.answer` reads the text again, so that text
    which was erased meanwhile is not in the answer."""
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


# Candidates as JSON, from the step that finds them to the step that reranks them. The text is not
# in it: the other step reads it again.


def candidates_to_json(rows: Rows) -> list[list[dict[str, Any]]]:
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


def candidates_from_json(process: Process, rows: Any) -> list[list[Candidate | None]]:
    """The candidates, with a score of 0; None for those that are not live any more, so that the
    others keep their places."""
    ids: dict[str, list[str]] = {}
    for row in rows:
        for one in row:
            ids.setdefault(one["collection"], []).append(one["id"])
    live: dict[str, ChunkView] = {}
    with process.ledger.read_single() as session:
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


# Steps that share a batch: small `embed` jobs of one model, short queries of one collection.
#
# They run in rounds of one lane each, and a round is recorded before the next one begins, so that
# interactive jobs do not wait for bulk ones. Steps that have not begun after
# SLUICE_EMBEDDING_BATCH_S go back to the queue.

ROUND_SEARCHES = 8
BYTES_PER_TOKEN = 3


@dataclass(frozen=True, kw_only=True)
class EmbedWork:
    """The work of a step `embed`; `tokens` is an estimate of the tokens of its texts."""

    context: Context
    input: EmbedInput
    tokens: int

    @classmethod
    def of(cls, context: Context) -> Self:
        input_ = context.input(EmbedInput)
        tokens = sum(len(text.encode()) // BYTES_PER_TOKEN + 2 for text in input_.texts)
        return cls(context=context, input=input_, tokens=tokens)

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Works with the same key can be encoded together."""
        return self.context.claim.lane, self.input.model or "", self.input.input_type


@dataclass(frozen=True, kw_only=True)
class SearchWork:
    """The work of a step `search` or `rag.find`."""

    context: Context
    input: SearchInput | RagInput
    request: SearchRequest

    @classmethod
    def of(cls, context: Context) -> Self:
        is_rag = context.claim.name == "rag.find"
        input_ = context.input(RagInput) if is_rag else context.input(SearchInput)
        return cls(context=context, input=input_, request=request_of(input_))

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Works with the same key can be searched by one request."""
        request = self.request
        options = request.options.model_dump_json()
        return self.context.claim.lane, *request.collections, request.k, options

    def done(self, rows: Rows) -> Done:
        """What comes of the candidates of each query: hits, unless they are to be reranked."""
        model, name = self.request.options.rerank, self.context.claim.name
        if model is not None:
            step = NewStep(
                name=RERANK_STEPS[name], queue=Queue.HF, batch_key=rerank_key(name, model)
            )
            return Done(result={"candidates": candidates_to_json(rows)}, children=[step])
        if isinstance(self.input, RagInput):
            return rag_find_done(self.context, self.input, rows)
        return search_done(self.context, self.input, rows)


WorkT = TypeVar("WorkT", EmbedWork, SearchWork)
RunRound = Callable[[Sequence[WorkT]], Sequence[Done | Exception]]


def embed(contexts: Sequence[Context], settle: Settle) -> None:
    """Steps of one model."""
    settings = contexts[0].process.settings
    works = _works(contexts, EmbedWork.of, settle)
    rounds = _embed_rounds(works, settings.embedding_batch_tokens)
    _run_rounds(rounds, _embed_round, settle, batch_s=settings.embedding_batch_s)


def search(contexts: Sequence[Context], settle: Settle) -> None:
    """Steps `search`, or `rag.find`, of one collection."""
    works = _works(contexts, SearchWork.of, settle)
    rounds = (
        group[first : first + ROUND_SEARCHES]
        for group in _grouped(works)
        for first in range(0, len(group), ROUND_SEARCHES)
    )
    process = contexts[0].process
    if _run_rounds(rounds, _search_round, settle, batch_s=process.settings.embedding_batch_s):
        measure_due(process)
        load_coming(process)


def _works(
    contexts: Sequence[Context], of: Callable[[Context], WorkT], settle: Settle
) -> list[WorkT]:
    """The works of the steps. Steps whose input cannot be used are settled with the error."""
    fetch_inputs(contexts)
    works = []
    for context in contexts:
        try:
            works.append(of(context))
        except (SluiceError, ValidationError) as error:
            settle(context, error)
    return works


def _grouped(works: Sequence[WorkT]) -> Iterator[list[WorkT]]:
    """Works that can run together, the better lanes first."""
    key = attrgetter("batch_key")
    for _, group in groupby(sorted(works, key=key), key):
        yield list(group)


def _run_rounds(
    rounds: Iterable[Sequence[WorkT]], run: RunRound[WorkT], settle: Settle, *, batch_s: float
) -> bool:
    """Run and record one round after the other, at least one, for about `batch_s` seconds. Returns
    whether all of them were run."""
    deadline = time.monotonic() + batch_s
    for members in rounds:
        works = []
        for work in members:
            if work.context.stop.is_set():
                settle(work.context, Cancelled(work.context.stop_reason))
            else:
                works.append(work)
        if works:
            for work, outcome in zip(works, _outcomes(works, run), strict=True):
                if isinstance(outcome, ModelMissing):
                    outcome = or_pull(work.context, outcome)
                settle(work.context, outcome)
            settle.flush()
        if time.monotonic() > deadline:
            return False
    return True


def _outcomes(works: Sequence[WorkT], run: RunRound[WorkT]) -> Sequence[Done | Exception]:
    """The outcome of each work. If a round fails, its works are run one by one, so that none fails
    because of another; but not if the reason would stop every one: all are cancelled, the time is
    up, or a server does not answer.
    """
    try:
        return run(works)
    except (Cancelled, Retryable) as error:
        return [error] * len(works)
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:
        if len(works) == 1:
            return [error]
    return [outcome for work in works for outcome in _outcomes([work], run)]


def _check_all(works: Sequence[EmbedWork] | Sequence[SearchWork]) -> Callable[[], None]:
    """A function to be called between units of work. It raises Cancelled once all are cancelled."""

    def check() -> None:
        for work in works:
            work.context.progress()
        if all(work.context.stop.is_set() for work in works):
            raise Cancelled(works[0].context.stop_reason)

    return check


def _embed_rounds(works: Sequence[EmbedWork], budget: int) -> Iterator[list[EmbedWork]]:
    """Rounds of works that can be encoded together, of at most `budget` tokens or one work; the
    shortest come first."""
    for group in _grouped(works):
        members: list[EmbedWork] = []
        left = budget
        for work in sorted(group, key=attrgetter("tokens")):
            if members and work.tokens > left:
                yield members
                members, left = [], budget
            members.append(work)
            left -= work.tokens
        yield members


def _embed_round(works: Sequence[EmbedWork]) -> list[Done | Exception]:
    check = _check_all(works)
    input_ = works[0].input
    try:
        embedder = embedders_of(works[0].context.process).get(input_.model, check=check)
    except Permanent as error:
        return [error] * len(works)
    is_query = input_.input_type == "query"
    encode = embedder.encode_queries if is_query else embedder.encode
    texts = [text for work in works for text in work.input.texts]
    sizes = embedder.sizes(texts, is_query=is_query, between=check)
    vectors = encode(texts, between=check)
    outcomes: list[Done | Exception] = []
    first = 0
    for work in works:
        end = first + len(work.input.texts)
        own = sizes[first:end]
        window = embedder.window or max(own)
        cut = {n: tokens for n, tokens in enumerate(own) if tokens > window}
        tokens = sum(min(size, window) for size in own)
        try:
            shortened = _shortened(embedder, vectors[first:end], work.input.dimensions)
            result = _embeddings(embedder, shortened, tokens)
            outcomes.append(Done(result=result, warnings=_cut_warnings(embedder, cut)))
        except (Permanent, InvalidInput) as error:
            outcomes.append(error)
        first = end
    return outcomes


def _shortened(embedder: Embedder, vectors: Vectors, dimensions: int | None) -> Vectors:
    """The first `dimensions` numbers of each vector, scaled to length 1. Raises InvalidInput if the
    model was not trained for that."""
    if dimensions is None or dimensions == embedder.dimension:
        return vectors
    if dimensions > embedder.dimension or not embedder.can_shorten:
        raise InvalidInput(
            f"dimensions is {dimensions}, and vectors of {embedder.name} have "
            f"{embedder.dimension}; leave it out. Shorter ones are for models that were trained "
            "for it (Matryoshka): name those whose files do not say so in "
            "SLUICE_EMBEDDING_MATRYOSHKA_MODELS."
        )
    return unit(vectors[:, :dimensions])


def _embeddings(embedder: Embedder, vectors: Vectors, tokens: int) -> EncodedJson:
    """The JSON of an `EmbedResult`; numbers have as many digits as a float32 needs.

    Raises Permanent for NaN and infinity, which not every embedder looks for.
    """
    require_finite(vectors, embedder.name)
    result = {
        "model": embedder.name,
        "dimension": vectors.shape[1],
        "embeddings": np.ascontiguousarray(vectors),
        "tokens": tokens,
    }
    return EncodedJson(result, orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY).decode())


def _search_round(works: Sequence[SearchWork]) -> Sequence[Done | Exception]:
    process, request = works[0].context.process, works[0].request
    candidates = searching.candidates(
        process,
        replace(request, queries=[query for work in works for query in work.request.queries]),
        count=process.settings.rerank_candidates if request.options.rerank else 0,
        check=_check_all(works),
    )
    if candidates.warnings and len(works) > 1:
        # Warnings name queries by their number in the request: each work needs a request of its
        # own.
        return [outcome for work in works for outcome in _outcomes([work], _search_round)]
    rows = iter(candidates.rows)
    done = [work.done(list(islice(rows, len(work.request.queries)))) for work in works]
    return [replace(one, warnings=candidates.warnings) for one in done]


EMBED = Handler(run_batch=embed)
SEARCH = Handler(run_batch=search)
RAG_FIND = Handler(run_batch=search)
