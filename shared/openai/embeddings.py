"""Embeddings of OpenAI's API: request -> job, and the job's result -> answer."""

import base64
import struct
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from shared.bounds import ModelName, Text
from shared.config import Settings
from shared.kinds.batch import EndedJob, Endpoint, JobSpec
from shared.kinds.embed import EMBED, TEXTS_LIMIT
from shared.openai.wire import NoEffect
from shared.vocabulary import WireShape


def _as_texts(value: Any) -> Any:
    """Raises ValueError for token ids, which belong to the vocabulary of another model."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and any(isinstance(item, int | list) for item in value):
        raise ValueError(
            "holds tokens, which are those of another model; send texts. LangChain's "
            "OpenAIEmbeddings sends texts with check_embedding_ctx_length=False"
        )
    return value


class EmbeddingRequest(WireShape):
    """Texts to embed. Unknown fields are refused. `input_type` is not OpenAI's: some models embed
    queries and passages differently."""

    model: ModelName
    input: Annotated[
        list[Text],
        Field(fail_fast=True, min_length=1, max_length=TEXTS_LIMIT),
        BeforeValidator(_as_texts, json_schema_input_type=str | list[str]),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=2**16)] | None = None
    input_type: Literal["query", "passage"] = "passage"
    user: NoEffect = None


def embedding_job(request: EmbeddingRequest, _settings: Settings) -> JobSpec:
    """Raises ValidationError."""
    values = {
        "texts": request.input,
        "model": request.model,
        "input_type": request.input_type,
        "dimensions": request.dimensions,
    }
    options = {"model": request.model, "encoding_format": request.encoding_format}
    return JobSpec(kind=EMBED, input=EMBED.input.model_validate(values), options=options)


def embedding_body(job: EndedJob) -> dict[str, Any]:
    """The answer to a request whose job has succeeded."""
    vectors = job.result["embeddings"]
    as_base64 = job.options["encoding_format"] == "base64"
    tokens = job.result["tokens"]
    return {
        "object": "list",
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _packed(vector) if as_base64 else vector,
            }
            for index, vector in enumerate(vectors)
        ],
        "model": job.options["model"],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _packed(vector: list[float]) -> str:
    """The numbers as little-endian float32 in base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _read(body: Any, settings: Settings) -> JobSpec:
    return embedding_job(EmbeddingRequest.model_validate(body), settings)


EMBEDDINGS = Endpoint(url="/v1/embeddings", read=_read, answer=embedding_body)
