"""The kind `rag`: an answer from the passages of a collection, with citations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import AfterValidator, Field, model_validator
from sqlalchemy.orm import Session

from shared import named_models, prompts
from shared.bounds import CollectionName, Text, nfc
from shared.config import EXTRACTIVE, Settings
from shared.errors import InvalidInput
from shared.kinds import chat
from shared.kinds.chat import (
    ChatMessage,
    Parameters,
    Rendered,
    ResponseFormat,
    Usage,
    check_variables,
)
from shared.kinds.kind import Kind, StepType
from shared.kinds.search import RERANK_STEPS, SMALL_CHARS, Hit, PassageCount, SearchOptions
from shared.models.providers import ModelReference
from shared.named_models import Preset
from shared.prompts import TEMPLATE_LIMIT_CHARS, VariableValues
from shared.vocabulary import Queue, Shape

PLACEHOLDERS = ("context", "question")
"""What `rag` fills in a prompt: the passages, and the question."""


def _template_or_reference(text: str) -> str:
    """A text with braces is a template, one without is the name of a stored prompt."""
    if "{" not in text and "}" not in text:
        if prompts.reference_of(text) is None:
            raise ValueError(
                "is neither a template, which has the placeholders {context} and {question}, nor "
                "the name of a stored prompt, such as 'answer' or 'answer@3'"
            )
        return text
    try:
        names = prompts.parse(text).names
    except InvalidInput as error:
        raise ValueError(error.message) from error
    if set(names) != set(PLACEHOLDERS):
        raise ValueError(
            "a template has the placeholders {context} and {question}, and no others; store it "
            "(PUT /v1/prompts/{name}) for variables of your own"
        )
    return text


class RagInput(Shape):
    """`prompt` is a template with `{context}` and `{question}`, or names a stored one."""

    collection: CollectionName
    question: Annotated[Text, AfterValidator(nfc)]
    k: PassageCount = 6
    search: SearchOptions = SearchOptions()
    model: ModelReference | None = None
    preset: Preset | None = None
    """What the server notes of a named model when a job is submitted; clients leave it out."""
    prompt: (
        Annotated[
            str, Field(max_length=TEMPLATE_LIMIT_CHARS), AfterValidator(_template_or_reference)
        ]
        | None
    ) = None
    variables: VariableValues = {}
    rendered: Rendered | None = None
    conversation_id: UUID | None = None
    previous_job_id: UUID | None = None
    """A `chat` or `rag` that this one continues; several may continue the same one."""
    earlier: Annotated[list[ChatMessage], Field(fail_fast=True, max_length=1000)] = []
    """What was said before, without system prompts and tools. It goes to the model as far as there
    is room for it, the newest first, and not into the search."""
    instructions: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    """What the model reads before the rules of answering from passages."""
    parameters: Parameters = Parameters()
    response_format: ResponseFormat = ResponseFormat()

    @model_validator(mode="after")
    def _variables_have_a_prompt(self) -> Self:
        check_variables(self.prompt, self.variables)
        return self

    @model_validator(mode="after")
    def _has_one_history(self) -> Self:
        histories = [self.earlier or None, self.conversation_id, self.previous_job_id]
        if len(histories) - histories.count(None) > 1:
            raise ValueError("give one of earlier, conversation_id and previous_job_id")
        for n, message in enumerate(self.earlier):
            if message.role in ("system", "tool") or message.tool_calls:
                raise ValueError(f"earlier.{n} must be of the user or an answer, without tools")
        return self

    @property
    def template(self) -> str | None:
        """The text of the prompt, with the two placeholders."""
        return self.prompt if self.rendered is None else self.rendered


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
            name
            for name in (
                "prompt", "variables", "parameters", "response_format", "earlier", "instructions",
            )
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


def _resolve(session: Session, inputs: Sequence[dict[str, Any]]) -> None:
    prompts.use(session, inputs, left=PLACEHOLDERS)
    named_models.use(session, inputs)


RAG = Kind(
    name="rag",
    summary="an answer with citations",
    input=RagInput,
    result=RagResult,
    steps=[
        StepType(
            name="rag.find",
            queue=Queue.QUERY,
            handler="workers.retrieval.steps:RAG_FIND",
            only_computes=True,
        ),
        StepType(
            name=RERANK_STEPS["rag.find"], queue=Queue.HF, handler="workers.hf.rerank:RAG_RERANK"
        ),
        StepType(
            name="rag.answer", queue=Queue.GENERATE, handler="workers.generation.rag:RAG_ANSWER"
        ),
    ],
    example={"collection": "handbook", "question": "When do you open?"},
    check=_check,
    defaults=chat.defaults,
    resolve=_resolve,
    batch_key=batch_key_of,
    is_generated=True,
)


# How APIs of others name a collection to answer from: as a model.

RAG_PREFIX = "rag/"


@dataclass(frozen=True, kw_only=True)
class RagModel:
    """A collection to answer from, and the model that answers: None is the server's default."""

    collection: str
    model: str | None = None


def rag_of(model: str) -> RagModel | None:
    """What a model `rag/<collection>` or `rag/<collection>/<model>` means; None for all others."""
    if not model.startswith(RAG_PREFIX):
        return None
    collection, _, answering = model.removeprefix(RAG_PREFIX).partition("/")
    return RagModel(collection=collection, model=answering or None)
