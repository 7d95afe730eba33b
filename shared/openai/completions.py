"""Completions of OpenAI's API: what is sent, as a job; and what comes of it, as is answered.

Chat completions (`shared/openai/chat.py`) share how tokens are chosen, and the frame of answers.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shared.bounds import ModelName, Text
from shared.config import Settings
from shared.kinds.batch import Ended, Endpoint, Request
from shared.kinds.chat import ALTERNATIVES_LIMIT, CHOICES_LIMIT, STOP_LIMIT
from shared.kinds.complete import COMPLETE
from shared.openai.wire import Taken, Unsupported, id_of, without_stream
from shared.vocabulary import WireShape

# How tokens are chosen, how answers are written: this is the same for chat completions.


class StreamOptions(WireShape):
    include_usage: bool = False
    include_obfuscation: Taken = None


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stop = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=256)]],
    Field(fail_fast=True, max_length=STOP_LIMIT),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Alternatives = Annotated[int, Field(ge=0, le=ALTERNATIVES_LIMIT)]


class SamplingFields(WireShape):
    """What is not sent has Sluice's own default: the likeliest token at each place.

    `top_k` and `repetition_penalty` are no parameters of OpenAI; vLLM and others have them so.
    """

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Stop = []
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    logit_bias: Annotated[Any, AfterValidator(Unsupported("leave it out", {}))] = None

    def parameters(
        self, *, max_tokens: int | None, choices: int, logprobs: int | None
    ) -> dict[str, Any]:
        """As `Parameters` (`shared/kinds/chat.py`) has them; what was not sent is left out.

        Several choices are to differ, so without a temperature theirs is that of the description.
        """
        temperature = self.temperature
        if temperature is None and choices > 1:
            temperature = 1.0
        values: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            # 0 leaves the likeliest token alone.
            "top_p": self.top_p if self.top_p != 0 else None,
            "top_k": 1 if self.top_p == 0 else self.top_k,
            # Any 64 bits are a seed there, and 63 are one here.
            "seed": None if self.seed is None else self.seed % 2**63,
            "stop": self.stop or None,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logprobs": logprobs,
        }
        return {name: value for name, value in values.items() if value is not None}


FINISH_REASONS = {"length": "length"}
"""All others are `stop`: a stop string, or the model's own end."""


def usage_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What a job has cost, in tokens of its model."""
    usage = result["usage"]
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def body_of(
    ended: Ended, *, prefix: str, object_: str, choices: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """An answer to a request whose job has succeeded."""
    return {
        "id": id_of(prefix, ended.id),
        "object": object_,
        "created": int(ended.created_at.timestamp()),
        "model": ended.options["model"],
        "choices": choices,
        "usage": usage_of(ended.result),
    }


# Completions: how texts go on.

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


PromptTexts = Annotated[
    list[Text],
    Field(fail_fast=True, min_length=1, max_length=CHOICES_LIMIT),
    BeforeValidator(_as_texts, json_schema_input_type=str | list[str]),
]


class CompletionRequest(SamplingFields):
    """A completion. What is no field here is refused."""

    model: ModelName
    prompt: PromptTexts
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
    return body_of(ended, prefix=ID_PREFIX, object_="text_completion", choices=choices)


ID_PREFIX = "cmpl-"


def _read(body: Any, settings: Settings) -> Request:
    without_stream(body)
    return completion_job(CompletionRequest.model_validate(body), settings)


COMPLETIONS = Endpoint(url="/v1/completions", read=_read, answer=completion_body)
