"""What the requests of OpenAI's API share: ids, contents, and parameters that are not supported.

Follows the published description, version 2.3.0 (github.com/openai/openai-openapi).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.bounds import ToolArguments
from shared.errors import InvalidInput

NoEffect = Any
"""The type of a parameter that cannot change an answer: any value is accepted."""


@dataclass(frozen=True)
class Unsupported:
    """A validator of a parameter that is not supported. It accepts null and the `neutral` value,
    which change nothing; the error for others says what to do instead (`remedy`)."""

    remedy: str
    neutral: Any = None

    def __call__(self, value: Any) -> Any:
        if value in (None, self.neutral):
            return value
        raise ValueError(f"is not supported here: {self.remedy}")


def id_of(prefix: str, id_: UUID) -> str:
    """An id such as `chatcmpl-<hex>`, of a prefix that includes its separator."""
    return f"{prefix}{id_.hex}"


def without_stream(body: Any) -> None:
    """Raises InvalidInput if the line of a batch asks for a stream."""
    if isinstance(body, Mapping) and body.get("stream"):
        raise InvalidInput("stream must be false in a batch: its answers are lines of a file.")


# The content of a message is text: a string, or a list of parts.

TEXT_CHARS = 1_000_000
PART_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""Type of a part that is text -> the field with the text."""
REFUSED_PARTS = {
    "image_url": "images are not supported here: send text, or the text that the image shows",
    "input_image": "images are not supported here: send text, or the text that the image shows",
    "input_audio": "audio is not supported here: transcribe it first (audio/transcriptions)",
    "file": "files are not supported here: ingest them, and name the model rag/<collection>",
    "input_file": "files are not supported here: put them into a vector store and let the model "
    "search it with the tool file_search, or send their text",
}


def _text_of(content: Any) -> str:
    """Raises ValueError."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError("must be a string, or a list of parts of the type text")
    return "".join(_text_of_part(number, part) for number, part in enumerate(content))


def _text_of_part(number: int, part: Any) -> str:
    type_ = part.get("type") if isinstance(part, dict) else None
    if isinstance(type_, str) and type_ in REFUSED_PARTS:
        raise ValueError(f"part {number}: {REFUSED_PARTS[type_]}")
    name = PART_TEXTS.get(type_) if isinstance(type_, str) else None
    text = part.get(name) if name is not None else None
    if not isinstance(text, str):
        raise ValueError(f'part {number} is no text; send {{"type": "text", "text": "..."}}')
    return text


class TextPart(BaseModel):
    """A part of a content. Other fields, such as the annotations of an answer, are accepted."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["refusal"]
    refusal: str


WireContent = Annotated[
    str,
    Field(max_length=TEXT_CHARS),
    BeforeValidator(_text_of, json_schema_input_type=str | list[TextPart | RefusalPart]),
]


def _arguments_of(value: Any) -> Any:
    """Raises ValueError."""
    try:
        arguments = json.loads(value or "{}") if isinstance(value, str) else value
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise ValueError("must be a JSON object in a string, as the model wrote it")
    return arguments


WireArguments = Annotated[
    ToolArguments,
    BeforeValidator(_arguments_of, json_schema_input_type=str | dict[str, Any]),
]
"""The arguments of a tool call: JSON in a string; some programs send the object itself."""
