"""Completions of OpenAI's API: request -> job, and the job's result -> answer.

Chat completions (`shared/openai/chat.py`) use the sampling parameters and the frame of answers,
too.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from shared.bounds import ModelName, Text
from shared.config import Settings
from shared.kinds.batch import EndedJob, Endpoint, JobSpec
from shared.kinds.chat import ALTERNATIVES_LIMIT, CHOICES_LIMIT, STOP_LIMIT
from shared.kinds.complete import COMPLETE
from shared.openai.wire import NoEffect, Unsupported, id_of, without_stream
from shared.vocabulary import WireShape

# Sampling parameters and the frame of answers, shared with chat completions


class StreamOptions(WireShape):
    include_usage: bool = False
    include_obfuscation: NoEffect = None


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
    """How tokens are chosen. The default is Sluice's: always the most probable token.

    `top_k` and `repetition_penalty` are not OpenAI's; vLLM and others have them under these names.
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
        """The fields of `Parameters` (`shared/kinds/chat.py`) that were sent.

        Several choices would be equal with our default, so without a temperature they have OpenAI's
        default, 1.
        """
        temperature = self.temperature
        if temperature is None and choices > 1:
            temperature = 1.0
        values: dict[str, Any] = {
            "max_tokens": max_tokens,
            "temperature": temperature,
            # `top_p` of 0 means the most probable token only, which is a `top_k` of 1 here.
            "top_p": self.top_p if self.top_p != 0 else None,
            "top_k": 1 if self.top_p == 0 else self.top_k,
            # OpenAI's seeds have 64 bits, ours have 63.
            "seed": None if self.seed is None else self.seed % 2**63,
            "stop": self.stop or None,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logprobs": logprobs,
        }
        return {name: value for name, value in values.items() if value is not None}


FINISH_REASONS = {"length": "length"}
"""All other reasons are `stop`: a stop string, or the model ended by itself."""


def usage_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """How many tokens a job has read and written."""
    usage = result["usage"]
    prompt, completion = usage["prompt_tokens"], usage["completion_tokens"]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def body_of(
    job: EndedJob, *, prefix: str, object_: str, choices: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The frame of an answer, from a job that has succeeded."""
    return {
        "id": id_of(prefix, job.id),
        "object": object_,
        "created": int(job.created_at.timestamp()),
        "model": job.options["model"],
        "choices": choices,
        "usage": usage_of(job.result),
    }


# Completions: the continuation of texts

MAX_TOKENS = 16
"""OpenAI's default."""
LOGPROBS_LIMIT = 5


def _as_texts(prompt: Any) -> Any:
    """Raises ValueError for token ids, which belong to the vocabulary of another model."""
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
    user: NoEffect = None

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


def completion_job(request: CompletionRequest, _settings: Settings) -> JobSpec:
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
    return JobSpec(kind=COMPLETE, input=COMPLETE.input.model_validate(values), options=options)


def logprobs_body(
    entries: Sequence[Mapping[str, Any]] | None, *, offset: int
) -> dict[str, Any] | None:
    """Log-probabilities as lists of equal length. `offset` is the position of the first token in
    the text of the choice, in characters."""
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


def echoed_prompt(job: EndedJob, index: int) -> str:
    """The prompt of a choice if the request has `echo`, otherwise ""."""
    if not job.options["echo"]:
        return ""
    prompt: str = job.input["prompts"][index // job.input["n"]]
    return prompt


def completion_body(job: EndedJob) -> dict[str, Any]:
    """The answer to a request whose job has succeeded."""
    choices = [
        {
            "index": index,
            "text": echoed_prompt(job, index) + choice["text"],
            "logprobs": logprobs_body(choice["logprobs"], offset=0),
            "finish_reason": FINISH_REASONS.get(choice["finish_reason"], "stop"),
        }
        for index, choice in enumerate(job.result["choices"])
    ]
    return body_of(job, prefix=ID_PREFIX, object_="text_completion", choices=choices)


ID_PREFIX = "cmpl-"


def _read(body: Any, settings: Settings) -> JobSpec:
    without_stream(body)
    return completion_job(CompletionRequest.model_validate(body), settings)


COMPLETIONS = Endpoint(url="/v1/completions", read=_read, answer=completion_body)
