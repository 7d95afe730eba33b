"""The shapes that clients send; the inputs of kinds are those of `shared/payloads.py`."""

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from shared.bounds import (
    BATCH_LIMIT_JOBS,
    YEAR_S,
    FreeMetadata,
    ModelName,
    RunAfter,
    WebUrl,
)
from shared.generation import ChatInput
from shared.hf import HfInput
from shared.payloads import (
    EmbedInput,
    EraseInput,
    IngestInput,
    Kind,
    ModelInput,
    RagInput,
    SearchInput,
)
from shared.queue import Lane
from shared.shapes import Shape

SHA256 = r"^[0-9a-fA-F]{64}$"
PRINTABLE = r"^[\x21-\x7e]+$"


class Webhook(Shape):
    """Where to POST when the job has ended; with a secret, signed as Standard Webhooks are."""

    url: WebUrl
    secret: Annotated[str, Field(min_length=1, max_length=1024)] | None = None


class NewJobBase(Shape):
    lane: Lane | None = None
    """`normal` unless set; `interactive` with `Prefer: wait`."""
    metadata: FreeMetadata = Field(default_factory=dict)
    webhook: Webhook | None = None
    timeout_s: Annotated[float, Field(gt=0, le=YEAR_S)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=20)] | None = None
    run_after: RunAfter | None = None


class NewIngest(NewJobBase):
    kind: Literal[Kind.INGEST]
    input: IngestInput


class NewEmbed(NewJobBase):
    kind: Literal[Kind.EMBED]
    input: EmbedInput


class NewSearch(NewJobBase):
    kind: Literal[Kind.SEARCH]
    input: SearchInput


class NewRag(NewJobBase):
    kind: Literal[Kind.RAG]
    input: RagInput


class NewChat(NewJobBase):
    kind: Literal[Kind.CHAT]
    input: ChatInput


class NewHf(NewJobBase):
    kind: Literal[Kind.HF]
    input: HfInput


class NewModel(NewJobBase):
    kind: Literal[Kind.MODEL]
    input: ModelInput


class NewErase(NewJobBase):
    kind: Literal[Kind.ERASE]
    input: EraseInput


JobRequest = Annotated[
    NewIngest | NewEmbed | NewSearch | NewRag | NewChat | NewHf | NewErase | NewModel,
    Field(discriminator="kind"),
]


class BatchRequest(Shape):
    jobs: Annotated[
        list[JobRequest], Field(fail_fast=True, min_length=1, max_length=BATCH_LIMIT_JOBS)
    ]


class NewConversation(Shape):
    """`summarize`: what of a long conversation finds no room in the model's window is summed up."""

    metadata: FreeMetadata = Field(default_factory=dict)
    summarize: StrictBool = False


class CollectionSpec(Shape):
    """What a new collection is to be; the server's embedding model unless one is named."""

    embedding_model: ModelName | None = None
    dimension: Annotated[int, Field(ge=1, le=65_535)] | None = None
    distance: Literal["cosine", "l2", "ip"] = "cosine"


EXAMPLES: dict[str, dict[str, Any]] = {
    Kind.INGEST: {
        "summary": "ingest: put documents into a collection",
        "value": {
            "kind": "ingest",
            "input": {
                "collection": "handbook",
                "sources": [
                    {"type": "text", "name": "opening-hours.md", "text": "We open at nine."}
                ],
            },
        },
    },
    Kind.EMBED: {
        "summary": "embed: vectors of texts",
        "value": {"kind": "embed", "input": {"texts": ["We open at nine.", "아홉 시에 엽니다."]}},
    },
    Kind.SEARCH: {
        "summary": "search: the passages nearest to a query",
        "value": {
            "kind": "search",
            "input": {"collection": "handbook", "query": "When do you open?", "k": 3},
        },
    },
    Kind.RAG: {
        "summary": "rag: an answer with citations",
        "value": {
            "kind": "rag",
            "input": {"collection": "handbook", "question": "When do you open?"},
        },
    },
    Kind.CHAT: {
        "summary": "chat: an answer of a model",
        "value": {
            "kind": "chat",
            "input": {
                "model": "ollama/llama3.2",
                "messages": [{"role": "user", "content": "Say good morning in Korean."}],
                "parameters": {"max_tokens": 64, "temperature": 0.7},
            },
        },
    },
    Kind.HF: {
        "summary": "hf: a Hugging Face task",
        "value": {
            "kind": "hf",
            "input": {
                "task": "sentence-similarity",
                "inputs": {
                    "source_sentence": "We open at nine.",
                    "sentences": ["The shop opens at 9 o'clock.", "아홉 시에 엽니다."],
                },
            },
        },
    },
    Kind.MODEL: {
        "summary": "model: pull, create or delete a model of Ollama",
        "value": {
            "kind": "model",
            "input": {
                "action": "create",
                "name": "ollama/helpdesk",
                "from": "llama3.2",
                "system": "You answer for the helpdesk, in two sentences at most.",
                "parameters": {"temperature": 0.2},
            },
        },
    },
    Kind.ERASE: {
        "summary": "erase: remove documents or a whole collection, verified",
        "value": {"kind": "erase", "input": {"collection": "handbook"}},
    },
}
