"""Completions of OpenAI's API: how texts go on. What is sent, as a job; and what is answered."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shared.bounds import ModelName, Text
from shared.config import Settings
from shared.kinds.batch import Ended, Endpoint, Request
from shared.kinds.chat import CHOICES_LIMIT
from shared.kinds.complete import COMPLETE
from shared.openai.sampling import FINISH_REASONS, SamplingFields, StreamOptions, usage_of
from shared.openai.wire import Taken, Unsupported, id_of, without_stream

MAX_TOKENS = 16
"""As the description has it, where none are asked for."""
LOGPROBS_LIMIT = 5


def _as_texts(prompt: Any) -> Any:
    """Raises ValueError for tokens: they are those of another model."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and any(isinstance(item, int | list) for item in prompt):
        raise ValueError("holds tokens, which are those of another model; send texts")
    return prompt


Prompts = Annotated[
    list[Text],
    Field(fail_fast=True, min_length=1, max_length=CHOICES_LIMIT),
    BeforeValidator(_as_texts, json_schema_input_type=str | list[str]),
]


class CompletionRequest(SamplingFields):
    """A completion. What is no field here is refused."""

    model: ModelName
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=1)] = MAX_TOKENS
    n: Annotated[int, Field(ge=1, le=CHOICES_LIMIT)] = 1
    best_of: Annotated[int, Field(ge=0, le=CHOICES_LIMIT)] | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=LOGPROBS_LIMIT)] | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    suffix: Annotated[
        Any, AfterValidator(Unsupported("models here write on from a prompt alone", ""))
    ] = None
    user: Taken = None

    @model_validator(mode="after")
    def _fits_together(self) -> "CompletionRequest":
        if self.best_of is not None and self.best_of > self.n:
            raise ValueError("best_of is not supported above n; leave it out, and choose yourself")
        if self.echo and self.logprobs is not None:
            raise ValueError(
                "echo is not supported together with logprobs: the prompt has none here. Leave one "
                "of them out"
            )
        return self


def completion_job(request: CompletionRequest, _settings: Settings) -> Request:
    """Raises ValidationError."""
    values = {
        "model": request.model,
        "prompts": request.prompt,
        "n": request.n,
        "parameters": request.parameters(
            max_tokens=request.max_tokens, choices=request.n, logprobs=request.logprobs
        ),
    }
    options = {"model": request.model, "echo": request.echo}
    return Request(kind=COMPLETE, input=COMPLETE.input.model_validate(values), options=options)


def logprobs_body(
    entries: Sequence[Mapping[str, Any]] | None, *, offset: int
) -> dict[str, Any] | None:
    """In lists of equal length; `offset` is where the first token begins, in characters of the
    choice's text."""
    if entries is None:
        return None
    offsets = []
    for entry in entries:
        offsets.append(offset)
        offset += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            {other["token"]: other["logprob"] for other in entry["top"]} for entry in entries
        ],
        "text_offset": offsets,
    }


def echoed(ended: Ended, index: int) -> str:
    """The prompt of a choice, where it is to stand in front of its text."""
    if not ended.options["echo"]:
        return ""
    prompt: str = ended.input["prompts"][index // ended.input["n"]]
    return prompt


def completion_body(ended: Ended) -> dict[str, Any]:
    """The answer to a request whose job has succeeded."""
    choices = [
        {
            "index": index,
            "text": echoed(ended, index) + choice["text"],
            "logprobs": logprobs_body(choice["logprobs"], offset=0),
            "finish_reason": FINISH_REASONS.get(choice["finish_reason"], "stop"),
        }
        for index, choice in enumerate(ended.result["choices"])
    ]
    return {
        "id": id_of(ID_PREFIX, ended.id),
        "object": "text_completion",
        "created": int(ended.created_at.timestamp()),
        "model": ended.options["model"],
        "choices": choices,
        "usage": usage_of(ended.result),
    }


ID_PREFIX = "cmpl-"


def _read(body: Any, settings: Settings) -> Request:
    without_stream(body)
    return completion_job(CompletionRequest.model_validate(body), settings)


COMPLETIONS = Endpoint(url="/v1/completions", read=_read, answer=completion_body)
