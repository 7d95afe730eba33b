"""What requests of OpenAI's API have in common: ids, and parameters that are not supported.

After the published description, version 2.3.0 (github.com/openai/openai-openapi).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

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
