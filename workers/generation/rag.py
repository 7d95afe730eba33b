"""The step `rag.answer`: an answer from the passages that `rag.find` returned, with citations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from sqlalchemy.orm import Session

from shared import conversations
from shared.config import EXTRACTIVE
from shared.database.transaction import Transaction
from shared.documents import collections, documents
from shared.documents.documents import ChunkView
from shared.jobs import jobs, steps
from shared.jobs.steps import Record
from shared.kinds.generation import Usage
from shared.kinds.rag import Citation, RagInput, RagResult
from shared.tables import Job
from workers.attempts.context import Context, Done, Handler
from workers.generation.answers.citations import MarkerFilter, says_not_found
from workers.generation.answers.structured import instructed, read_json
from workers.generation.backends import extractive
from workers.generation.backends.interface import Completion, Request, TextGenerator, generators_of
from workers.generation.ollama_models import on_demand
from workers.generation.prompts import conversation
from workers.generation.prompts.prompt import Passage, RagPrompt, build, wording_for
from workers.generation.transcripts import (
    deadline,
    prompt_budget,
    sampling,
    show_at_once,
    write,
    write_quietly,
)

HISTORY_SHARE = 3
"""A conversation may take a third of the prompt; the passages have the rest."""


@dataclass(frozen=True, kw_only=True)
class ScoredChunk:
    """A passage that `rag.find` returned, and its score."""

    chunk: ChunkView
    score: float


def rag_answer(context: Context) -> Done:
    with context.process.ledger.read() as session:
        job = jobs.get(session, context.claim.job_id)
        input_ = RagInput.model_validate(job.input)
        hits = _live_hits(session, job.id, input_.collection)
    model = input_.model or context.process.settings.generation_model
    if model == EXTRACTIVE:
        return _quote(context, job, input_, hits)
    if not hits:
        # Nothing to rest an answer on: no model runs.
        return _done(context, job, _nothing(input_, model))
    return _generate(context, job, input_, model, hits)


def _live_hits(session: Session, job_id: UUID, collection_name: str) -> list[ScoredChunk]:
    """The passages that are still there: text erased or replaced since is not quoted."""
    matches = steps.result_of(session, job_id, "rag.find")["found"]
    collection = collections.get(session, collection_name)
    live = documents.live_chunks(session, collection.id, [match["id"] for match in matches])
    return [
        ScoredChunk(chunk=live[match["id"]], score=match["score"])
        for match in matches
        if match["id"] in live
    ]


def _quote(context: Context, job: Job, input_: RagInput, hits: Sequence[ScoredChunk]) -> Done:
    quotes = extractive.answer(
        input_.question, [hit.chunk.text for hit in hits], [hit.score for hit in hits]
    )
    result = RagResult(
        answer=quotes.answer,
        citations=[
            _citation(number, hits[index]) for number, index in enumerate(quotes.cited, start=1)
        ],
        model=EXTRACTIVE,
        usage=Usage(prompt_tokens=0, completion_tokens=0),
    )
    return _done(context, job, result)


def _nothing(input_: RagInput, model: str) -> RagResult:
    return RagResult(
        answer=wording_for(input_.question).not_found,
        citations=[],
        model=model,
        usage=Usage(prompt_tokens=0, completion_tokens=0),
    )


def _generate(
    context: Context, job: Job, input_: RagInput, model: str, hits: Sequence[ScoredChunk]
) -> Done:
    process = context.process
    generator = generators_of(process).get(model)
    chosen = sampling(input_.parameters, process.settings, step_id=context.claim.step_id)
    generator.learn(context.check)
    budget = prompt_budget(generator, chosen.max_tokens)
    with process.ledger.read() as session:
        before = conversation.load(session, job.conversation_id).spoken
    prompt = build(
        input_.question,
        [Passage(text=hit.chunk.text, source=hit.chunk.source) for hit in hits],
        template=input_.prompt,
        budget_tokens=budget,
        count=generator.count_tokens,
        history=conversation.newest(
            before, budget_tokens=budget // HISTORY_SHARE, count=generator.count_tokens
        ),
    )
    markers = MarkerFilter(prompt.used)
    request = Request(
        messages=prompt.messages,
        sampling=chosen,
        deadline=deadline(context),
        lane=context.claim.lane,
        fair_key=context.claim.fair_key,
    )
    if input_.response_format.type == "json":
        return _generate_json(context, job, input_, generator, request, prompt, hits)
    written = write(context, generator, request, markers)
    result = _result(prompt, markers, hits, written.completion, written.shown, model)
    return _done(context, job, result, record=written.record)


def _generate_json(
    context: Context,
    job: Job,
    input_: RagInput,
    generator: TextGenerator,
    request: Request,
    prompt: RagPrompt,
    hits: Sequence[ScoredChunk],
) -> Done:
    """Markers in strings of the JSON count as citations; the JSON itself is left as it is."""
    format_ = input_.response_format
    request = replace(request, messages=instructed(context, request.messages, format_))
    first = write_quietly(context, generator, request)
    answer = read_json(context, generator, request, first, format_)
    markers = MarkerFilter(prompt.used)
    markers.feed(answer.text)
    markers.close()
    result = _result(prompt, markers, hits, answer.completion, answer.text, generator.reference)
    return _done(context, job, result.model_copy(update={"parsed": answer.value}))


def _result(
    prompt: RagPrompt,
    markers: MarkerFilter,
    hits: Sequence[ScoredChunk],
    completion: Completion,
    answer: str,
    model: str,
) -> RagResult:
    cited = () if says_not_found(answer) else markers.cited
    return RagResult(
        answer=answer,
        citations=[_citation(number, hits[number - 1]) for number in cited],
        model=model,
        usage=Usage(
            prompt_tokens=completion.prompt_tokens, completion_tokens=completion.completion_tokens
        ),
        finish_reason=completion.finish_reason.value,
        passages_dropped=prompt.dropped,
        markers_removed=markers.removed,
    )


def _done(context: Context, job: Job, result: RagResult, record: Record | None = None) -> Done:
    record_text = record or show_at_once(context, result.answer)
    turn = [
        {"role": "user", "content": job.input["question"]},
        {"role": "assistant", "content": result.answer},
    ]

    def record_all(transaction: Transaction) -> None:
        record_text(transaction)
        if job.conversation_id is not None:
            conversations.append(transaction, job.conversation_id, turn, job.id)

    return Done(result=result.model_dump(mode="json"), record=record_all)


def _citation(number: int, hit: ScoredChunk) -> Citation:
    chunk = hit.chunk
    return Citation(
        marker=f"[{number}]",
        chunk_id=chunk.id,
        document_id=str(chunk.document_id),
        source=chunk.source,
        text=chunk.text,
        start=chunk.start,
        score=hit.score,
        metadata=chunk.metadata,
    )


RAG_ANSWER = Handler(run=on_demand(rag_answer))
