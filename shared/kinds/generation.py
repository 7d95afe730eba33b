"""What the kinds that generate text, `chat` and `rag`, have in common."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from shared.bounds import JsonSchema, Natural
from shared.config import Settings
from shared.errors import InvalidInput
from shared.providers import provider_of
from shared.vocabulary import Shape

STOP_LIMIT = 16


class Parameters(Shape):
    """Sampling. `temperature` 0 always takes the likeliest token; `max_tokens` has a default and
    a limit among the server's settings."""

    max_tokens: Natural | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(fail_fast=True, max_length=STOP_LIMIT),
    ] = []
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0


class ResponseFormat(Shape):
    """`json` makes the model answer with JSON, valid by `schema` where there is one."""

    type: Literal["text", "json"] = "text"
    json_schema: JsonSchema | None = Field(default=None, alias="schema")


def _has_placeholders(template: str) -> str:
    names = set(re.findall(r"{(\w*)}", template.replace("{{", "").replace("}}", "")))
    if names != {"context", "question"}:
        raise ValueError("a prompt has the placeholders {context} and {question}, and no others")
    return template


PromptTemplate = Annotated[str, Field(max_length=100_000), AfterValidator(_has_placeholders)]


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int


def model_of(model: str | None, settings: Settings) -> tuple[str, str]:
    """The model that a job runs with, and where that was said."""
    if model is not None:
        return model, "input.model"
    return settings.generation_model, "SLUICE_GENERATION_MODEL"


def check(model: str | None, parameters: Parameters, settings: Settings) -> None:
    """Raises InvalidInput for what this server cannot generate."""
    name, where = model_of(model, settings)
    provider = provider_of(name)
    if provider is not None and provider.server is not None and not provider.is_set_up(settings):
        raise InvalidInput(
            f"{where} is {name!r}, but no server is set for such models: set "
            f"{provider.server.setting} for the API and the generation workers."
        )
    limit = settings.max_tokens_limit
    if parameters.max_tokens is not None and parameters.max_tokens > limit:
        raise InvalidInput(
            f"input.parameters.max_tokens is {parameters.max_tokens:,}; this server allows "
            f"{limit:,} (SLUICE_MAX_TOKENS_LIMIT)."
        )
