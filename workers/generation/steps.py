"""The step `rag.answer`: an answer from the passages that `rag.find` found, with citations."""

from shared import collections, documents, jobs, steps
from shared.config import EXTRACTIVE
from shared.documents import ChunkView
from shared.errors import Permanent
from shared.payloads import Citation, RagInput, RagResult, Usage
from workers.generation.extractive import answer
from workers.step import Context, Done, Handler


def rag_answer(context: Context) -> Done:
    with context.process.ledger.read() as session:
        wanted = RagInput.model_validate(jobs.get(session, context.claim.job_id).input)
        found = steps.result_of(session, context.claim.job_id, "rag.find")["found"]
        collection = collections.get(session, wanted.collection)
        live = documents.live_chunks(session, collection.id, [each["id"] for each in found])
    model = wanted.model or context.process.settings.generation_model
    if model != EXTRACTIVE:
        raise Permanent(
            f"No worker of this version runs the model {model!r}. Leave `model` out or set "
            f"SLUICE_GENERATION_MODEL={EXTRACTIVE}."
        )
    # Text that was erased or replaced since the search is not quoted.
    passages = [(live[each["id"]], each["score"]) for each in found if each["id"] in live]
    answered = answer(
        wanted.question, [chunk.text for chunk, _ in passages], [score for _, score in passages]
    )
    result = RagResult(
        answer=answered.answer,
        citations=[
            _citation(marker, *passages[index])
            for marker, index in enumerate(answered.cited, start=1)
        ],
        model=model,
        usage=Usage(prompt_tokens=0, completion_tokens=0),
    )
    return Done(result=result.model_dump())


def _citation(marker: int, chunk: ChunkView, score: float) -> Citation:
    return Citation(
        marker=f"[{marker}]",
        chunk_id=chunk.id,
        document_id=str(chunk.document_id),
        source=chunk.source,
        text=chunk.text,
        start=chunk.start,
        score=score,
        metadata=chunk.metadata,
    )


RAG_ANSWER = Handler(run=rag_answer)
