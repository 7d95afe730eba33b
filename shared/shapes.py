"""What all payloads have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(min_length=1, max_length=1_000_000)]


class Shape(BaseModel):
    """Base of all payloads: unknown fields are errors, so that a typing mistake is seen."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)
