"""What all payloads have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from shared.bounds import FIELDS_LIMIT
from shared.bounds import Text as Text


class Shape(BaseModel):
    """Base of all payloads: unknown fields are errors, so that a typing mistake is seen.

    Errors do not repeat what was sent, and an object of very many fields is one error.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, serialize_by_alias=True, hide_input_in_errors=True
    )

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > FIELDS_LIMIT:
            raise ValueError(f"has {len(value):,} fields; {FIELDS_LIMIT} are more than it knows")
        return value
