"""The kind `rag`: an answer from the passages of a collection, with citations."""

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator

from shared.bounds import CollectionName, Text, nfc
from shared.config import EXTRACTIVE, Settings
from shared.errors import InvalidInput
from shared.kinds import chat
from shared.kinds.chat import Parameters, PromptTemplate, ResponseFormat, Usage
from shared.kinds.kind import Kind, StepType
from shared.kinds.search import RERANK_STEPS, SMALL_CHARS, Hit, PassageCount, SearchOptions
from shared.providers import ModelReference
from shared.vocabulary import Queue, Shape


class RagInput(Shape):
    collection: CollectionName
    question: Annotated[Text, AfterValidator(nfc)]
    k: PassageCount = 6
    search: SearchOptions = SearchOptions()
    model: ModelReference | None = None
    prompt: PromptTemplate | None = None
    conversation_id: UUID | None = None
    parameters: Parameters = Parameters()
    response_format: ResponseFormat = ResponseFormat()


class Citation(Hit):
    marker: str


class RagResult(Shape):
    """`passages_dropped` found no room in the model's window; `markers_removed` cited nothing."""

    answer: str
    citations: list[Citation]
    model: str
    usage: Usage
    finish_reason: str = "stop"
    passages_dropped: int = 0
    markers_removed: int = 0
    parsed: Any = None
    """The answer as JSON, where `response_format` is JSON."""


def _check(job_input: RagInput, settings: Settings) -> None:
    model, where = chat.model_of(job_input.model, settings)
    if model == EXTRACTIVE:
        ignored = [
            name for name in ("prompt", "parameters", "response_format")
            if name in job_input.model_fields_set
        ]  # fmt: skip
        if ignored:
            raise InvalidInput(
                f"input.{ignored[0]} is for models that generate text; {where} is {EXTRACTIVE!r}, "
                "which quotes passages. Name another model or leave it out."
            )
    chat.check(job_input.model, job_input.parameters, settings)


def batch_key_of(input_: Mapping[str, Any]) -> str | None:
    """Short questions to one collection may be looked up in one batch."""
    question, collection = input_.get("question"), input_.get("collection")
    if not isinstance(question, str) or len(question) > SMALL_CHARS:
        return None
    return f"rag.find:{collection}"


RAG = Kind(
    name="rag",
    summary="an answer with citations",
    input=RagInput,
    result=RagResult,
    steps=[
        StepType(name="rag.find", queue=Queue.QUERY, handler="workers.retrieval.steps:RAG_FIND"),
        StepType(
            name=RERANK_STEPS["rag.find"], queue=Queue.HF, handler="workers.hf.rerank:RAG_RERANK"
        ),
        StepType(
            name="rag.answer", queue=Queue.GENERATE, handler="workers.generation.rag:RAG_ANSWER"
        ),
    ],
    example={"collection": "handbook", "question": "When do you open?"},
    check=_check,
    defaults=lambda job_input, settings: {"model": chat.model_of(job_input.model, settings)[0]},
    batch_key=batch_key_of,
    is_generated=True,
)
