"""Queues, lanes, states, and what all payloads have in common."""

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from shared.bounds import FIELDS_LIMIT
from shared.bounds import Text as Text


class Queue(StrEnum):
    """A named Celery queue; on Redis, a list of the same name."""

    INGEST = "ingest"
    EMBED = "embed"
    QUERY = "query"
    HF = "hf"
    GENERATE = "generate"
    WEBHOOK = "webhook"
    CONTROL = "control"


class KeyScope(StrEnum):
    """What an API key may do. Each may read; `admin` may do all."""

    READ = "read"
    ASK = "ask"
    """Jobs that change no documents: search, rag, chat, tasks, embeddings, batches of these."""
    WRITE = "write"
    """Documents, collections, files: what ingests, changes and erases them."""
    ADMIN = "admin"


class Lane(StrEnum):
    """Priority inside a queue."""

    INTERACTIVE = "interactive"
    NORMAL = "normal"
    BULK = "bulk"

    @property
    def rank(self) -> int:
        return LaneRank[self.name].value


class LaneRank(IntEnum):
    """How lanes are stored: lower is served first."""

    INTERACTIVE = 0
    NORMAL = 1
    BULK = 2

    @property
    def lane(self) -> Lane:
        return Lane[self.name]


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = (State.QUEUED, State.RUNNING)
ENDED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
"""A row whose state is neither, which nobody writes, counts as open: it can be cancelled."""


def known(value: str) -> State:
    """The state of a row; one that is none is taken for `queued`."""
    return State(value) if value in set(State) else State.QUEUED


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


class WireShape(Shape):
    """Base of requests of APIs that others defined: a null is a field that is left out, as programs
    may send it for any that is not required. The schema says so."""

    @model_validator(mode="before")
    @classmethod
    def _nulls_are_left_out(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: item for name, item in value.items() if item is not None}
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        of_fields = handler.resolve_ref_schema(schema)
        required = of_fields.get("required", ())
        for name, field in of_fields.get("properties", {}).items():
            if name not in required:
                of_fields["properties"][name] = _nullable(field)
        return schema


ANNOTATIONS = ("default", "description", "title")
"""Keywords of JSON Schema that allow and forbid nothing."""


def _nullable(schema: JsonSchemaValue) -> JsonSchemaValue:
    """The same schema, and null beside it."""
    values = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
    choices = values["anyOf"] if set(values) == {"anyOf"} else [values]
    if not values or {"type": "null"} in choices:
        return schema
    notes = {key: value for key, value in schema.items() if key in ANNOTATIONS}
    return {"anyOf": [*choices, {"type": "null"}], **notes}
