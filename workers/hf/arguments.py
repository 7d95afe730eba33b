"""How text is generated: what the caller asks for, upon what the model's configuration says of the
task, upon what it says of itself.

Everything is settled here, before `generate` is called, so that rows can be compared: lengths are
numbers of new tokens (a length that counts the prompt would count a batch's padding too), and what
a way of decoding does not use is left out.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import InvalidInput
from shared.hf.generation import GenerationParameters

NEW_TOKENS = 256
"""Where nobody says how long the text may become."""

NEUTRAL: Final[Mapping[str, float]] = {
    "temperature": 1,
    "top_k": 0,
    "top_p": 1,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
}
"""What a sampling parameter is where it changes no token's probability."""
_SAMPLING_ONLY: Final = {*NEUTRAL, "min_p"}
_BEAMS_ONLY: Final = {"early_stopping", "length_penalty"}
_LENGTHS: Final = {"max_length", "max_new_tokens", "min_length", "min_new_tokens"}
_TOKENS: Final = {
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "pad_token_id",
    "suppress_tokens",
}
_PENALTIES: Final = {
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "exponential_decay_length_penalty",
    "no_repeat_ngram_size",
    "remove_invalid_values",
    "renormalize_logits",
    "repetition_penalty",
}
_IDLE: Final = ("num_beam_groups", "penalty_alpha", "use_cache")
# Not the others: some make `generate` fetch code from the hub, or need a second model.
_KNOWN: Final = (
    _SAMPLING_ONLY
    | _BEAMS_ONLY
    | _LENGTHS
    | _TOKENS
    | _PENALTIES
    | {"do_sample", "num_beams", "max_time"}
)

Settings = Mapping[str, Any]
"""Fields of GenerationConfig by name."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What one row is generated with. Rows of equal `key` can share a batch."""

    settings: dict[str, Any]
    warnings: Sequence[str] = field(default=())

    @property
    def new_tokens(self) -> int:
        return int(self.settings["max_new_tokens"])

    @property
    def is_sampled(self) -> bool:
        return bool(self.settings["do_sample"])

    @property
    def copies(self) -> int:
        """How many rows of the model a row becomes."""
        return max(int(self.settings["num_beams"]), int(self.settings["num_return_sequences"]))

    @property
    def key(self) -> str:
        return json.dumps(self.settings, sort_keys=True)


def own_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Settings:
    """What the model's configuration says of generation. `generate` is left without any of its
    own: it would add to what it is given, and complain of what contradicts."""
    own = known_settings(model.generation_config.to_dict())
    model.generation_config = GenerationConfig()
    own.setdefault("eos_token_id", tokenizer.eos_token_id)
    ends = own["eos_token_id"]
    own.setdefault("pad_token_id", tokenizer.pad_token_id)
    if own["pad_token_id"] is None:
        # Any token does: padding is masked, and what stands behind an end is dropped.
        own["pad_token_id"] = (ends[0] if isinstance(ends, list) else ends) or 0
    return own


def task_settings(model: PreTrainedModel, name: str) -> dict[str, Any]:
    """What `task_specific_params` of the model's configuration says of a task; for many older
    models that is where beams and lengths stand, and for T5 the prefix too."""
    return all_task_settings(model).get(name, {})


def all_task_settings(model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    return getattr(model.config, "task_specific_params", None) or {}


def known_settings(settings: Settings) -> dict[str, Any]:
    return {name: settings[name] for name in _KNOWN if settings.get(name) is not None}


def requested_settings(
    parameters: GenerationParameters, nested: GenerationParameters | None = None
) -> tuple[dict[str, Any], int | None]:
    """What the caller asks for, and the seed. What is nested goes before the same beside it."""
    names = set(GenerationParameters.model_fields)
    settings = parameters.model_dump(include=names, exclude_none=True)
    if nested is not None:
        settings |= nested.model_dump(include=names, exclude_none=True)
    seed: int | None = settings.pop("seed", None)
    # Of no account for the text: `generate` always has its cache, and knows no groups of beams.
    for name in _IDLE:
        settings.pop(name, None)
    return settings, seed


def shapes_chances(settings: Settings) -> list[str]:
    """The sampling parameters that change the probability of a token."""
    return [name for name, neutral in NEUTRAL.items() if settings.get(name, neutral) != neutral]


def settle(
    request: Settings,
    task: Settings,
    own: Settings,
    *,
    prompt_tokens: int,
    room: int | None,
    sequences: int = 1,
) -> Arguments:
    """`prompt_tokens` is how many tokens stand before the new ones, where lengths count them;
    `room` how many new ones the model has positions for. Raises InvalidInput."""
    layers = [request, task, own]
    longest, warnings = _longest(layers, prompt_tokens, room)
    shortest = _shortest(layers, prompt_tokens)
    if shortest > longest and any(name in request for name in ("min_length", "min_new_tokens")):
        raise InvalidInput(
            f"the new text is to have at least {shortest:,} tokens, and at most {longest:,}; "
            "lower its least length, or raise its greatest."
        )
    merged = {**own, **task, **request}
    is_sampled = bool(merged.get("do_sample")) and merged.get("temperature") != 0
    beams = merged.get("num_beams", 1)
    if sequences > beams and not (is_sampled and beams == 1):
        raise InvalidInput(
            f"num_return_sequences {sequences} needs do_sample true or as many num_beams: the "
            "likeliest text is only one."
        )
    unused = _LENGTHS | (set() if is_sampled else _SAMPLING_ONLY)
    unused |= _BEAMS_ONLY if beams == 1 else set()
    settings = {name: value for name, value in merged.items() if name not in unused}
    settings |= {
        "do_sample": is_sampled,
        "num_beams": beams,
        "num_return_sequences": sequences,
        "max_new_tokens": longest,
        # A least length that configurations say gives way.
        "min_new_tokens": min(shortest, longest),
    }
    idle = ", ".join(shapes_chances(request))
    if idle and not is_sampled and request.get("temperature") != 0 and "do_sample" not in request:
        warnings.append(f"is not sampled, so {idle} had no effect; set do_sample true to sample.")
    return Arguments(settings=settings, warnings=warnings)


def _longest(
    layers: Sequence[Settings], prompt_tokens: int, room: int | None
) -> tuple[int, list[str]]:
    request = layers[0]
    if (
        "max_new_tokens" not in request
        and request.get("max_length", prompt_tokens + 1) <= prompt_tokens
    ):
        raise InvalidInput(
            f"max_length is {request['max_length']:,}, and {prompt_tokens:,} tokens stand before "
            "the new text already; raise it, or ask for max_new_tokens."
        )
    longest = next(
        filter(None, (_new_tokens(layer, prompt_tokens) for layer in layers)), NEW_TOKENS
    )
    if room is None or longest <= room:
        return longest, []
    return room, [
        f"gets at most {room:,} new tokens rather than {longest:,}: the model has no room for more."
    ]


def _new_tokens(layer: Settings, prompt_tokens: int) -> int:
    """How long the text may become; 0 where the layer does not say."""
    if "max_new_tokens" in layer:
        return int(layer["max_new_tokens"])
    return max(0, int(layer.get("max_length", 0)) - prompt_tokens)


def _shortest(layers: Sequence[Settings], prompt_tokens: int) -> int:
    for layer in layers:
        if "min_new_tokens" in layer:
            return int(layer["min_new_tokens"])
        if "min_length" in layer:
            return max(0, int(layer["min_length"]) - prompt_tokens)
    return 0
