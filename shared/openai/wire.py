"""What requests of OpenAI's API share: ids, contents, and parameters that are not supported.

After the published description, version 2.3.0 (github.com/openai/openai-openapi).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from shared.bounds import ToolArguments
from shared.errors import InvalidInput

Taken = Any
"""Of a parameter that cannot change an answer: whatever it is, it is passed over."""


@dataclass(frozen=True)
class Unsupported:
    """A validator of a parameter that is not supported: what changes nothing is let through."""

    remedy: str
    neutral: Any = None

    def __call__(self, value: Any) -> Any:
        if value in (None, self.neutral):
            return value
        raise ValueError(f"is not supported here: {self.remedy}")


def id_of(prefix: str, id_: UUID) -> str:
    """As `chatcmpl-<hex>`; the prefix ends with its own sign."""
    return f"{prefix}{id_.hex}"


def without_stream(body: Any) -> None:
    """Raises InvalidInput for a body that is to be answered by a stream, where there is none."""
    if isinstance(body, Mapping) and body.get("stream"):
        raise InvalidInput("stream must be false in a batch: its answers are lines of a file.")


# Contents are texts, as strings or in parts.

TEXT_CHARS = 1_000_000
PART_TEXTS = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
"""The types of parts that are text, and where they have it."""
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
    """What else it has, as annotations of an answer, is passed over."""

    model_config = ConfigDict(extra="allow")

    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: Literal["refusal"]
    refusal: str


Content = Annotated[
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


Arguments = Annotated[
    ToolArguments,
    BeforeValidator(_arguments_of, json_schema_input_type=str | dict[str, Any]),
]
"""Of a call of a tool: JSON in a string; some programs send the object itself."""
