"""How tokens are chosen, and what is told of them: what chat completions and completions share."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from shared.kinds.chat import ALTERNATIVES_LIMIT, STOP_LIMIT
from shared.openai.wire import Taken, Unsupported
from shared.vocabulary import WireShape


class StreamOptions(WireShape):
    include_usage: bool = False
    include_obfuscation: Taken = None


# Sampling, which chat completions and completions have in common.


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
