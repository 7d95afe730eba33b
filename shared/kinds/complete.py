"""The kind `complete`: how texts go on, as a model writes them without a chat template."""

from typing import Annotated

from pydantic import Field, model_validator

from shared import named_models
from shared.bounds import Text
from shared.config import Settings
from shared.errors import InvalidInput
from shared.kinds.chat import (
    CHOICES_LIMIT,
    Parameters,
    TokenLogprob,
    Usage,
    check,
    check_choices,
    defaults,
    model_of,
)
from shared.kinds.kind import Kind, StepType
from shared.models.providers import ModelReference, provider_of, route_of
from shared.named_models import Preset
from shared.vocabulary import Queue, Shape


class CompleteInput(Shape):
    """Each prompt goes to the model as it is, special tokens included, `n` times."""

    prompts: Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=CHOICES_LIMIT)]
    model: ModelReference | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_LIMIT)] = 1
    parameters: Parameters = Parameters()
    preset: Preset | None = None
    """What `model` was before its base took its place, where it is a named model; of that, the
    parameters alone count here."""

    @model_validator(mode="after")
    def _choices_are_possible(self) -> "CompleteInput":
        check_choices(len(self.prompts) * self.n, self.parameters)
        return self


class TextChoice(Shape):
    """What the model wrote behind a prompt."""

    text: str
    finish_reason: str = "stop"
    logprobs: list[TokenLogprob] | None = None


class CompleteResult(Shape):
    """`choices` are in the order of the prompts, `n` of each."""

    choices: list[TextChoice]
    model: str
    usage: Usage


def _check(job_input: CompleteInput, settings: Settings) -> None:
    model, where = model_of(job_input.model, settings)
    provider = provider_of(model)
    if provider is not None and COMPLETE.name not in provider.kinds:
        raise InvalidInput(
            f"{where} is {model!r}, which answers `rag` jobs only. Name a model that writes text, "
            "as `ollama/llama3.2` or `hf/Qwen/Qwen3-4B-Instruct-2507`."
        )
    check(job_input.model, job_input.parameters, settings)


COMPLETE = Kind(
    name="complete",
    summary="how texts go on",
    input=CompleteInput,
    result=CompleteResult,
    steps=[
        StepType(
            name="complete.write",
            queue=Queue.GENERATE,
            handler="workers.generation.complete:COMPLETE_WRITE",
        ),
        StepType(
            name="complete.choice",
            queue=Queue.GENERATE,
            handler="workers.generation.complete:COMPLETE_CHOICE",
        ),
    ],
    example={
        "model": "ollama/llama3.2",
        "prompts": ["Once upon a time"],
        "parameters": {"max_tokens": 32, "temperature": 0.7},
    },
    check=_check,
    defaults=defaults,
    resolve=named_models.use,
    route=lambda input_: route_of(input_["model"]),
    is_generated=True,
)
