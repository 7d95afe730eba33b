"""Texts that a model writes: summaries, translations, and how a prompt goes on."""

import json
import re
import secrets
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from shared.errors import InvalidInput
from shared.hf.generation import (
    SUMMARIZATION,
    TEXT_GENERATION,
    TRANSLATION,
    GenerationParameters,
    Seq2SeqParameters,
    TextGenerationParameters,
    TranslationParameters,
)
from shared.hf.task import TaskParameters
from workers.hf.task import PreparedInput, Row, TextTask, Watch
from workers.hf.text import cut_warning, encode, window_tokens
from workers.models.detokenize import StopFilter
from workers.models.load import LoadOptions, load_model, load_tokenizer

# How text is generated: what the caller asks for, upon what the model's configuration says of
# the task, upon what it says of itself.
#
# Everything is settled here, before `generate` is called, so that rows can be compared:
# lengths are numbers of new tokens (a length that counts the prompt would count a batch's
# padding too), and what a way of decoding does not use is left out.

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

SettingValues = Mapping[str, Any]
"""Fields of GenerationConfig by name."""


@dataclass(frozen=True, kw_only=True)
class GenerationArguments:
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


def own_settings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> SettingValues:
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


def known_settings(settings: SettingValues) -> dict[str, Any]:
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


def shapes_chances(settings: SettingValues) -> list[str]:
    """The sampling parameters that change the probability of a token."""
    return [name for name, neutral in NEUTRAL.items() if settings.get(name, neutral) != neutral]


def settle(
    request: SettingValues,
    task: SettingValues,
    own: SettingValues,
    *,
    prompt_tokens: int,
    room: int | None,
    sequences: int = 1,
) -> GenerationArguments:
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
    return GenerationArguments(settings=settings, warnings=warnings)


def _longest(
    layers: Sequence[SettingValues], prompt_tokens: int, room: int | None
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


def _new_tokens(layer: SettingValues, prompt_tokens: int) -> int:
    """How long the text may become; 0 where the layer does not say."""
    if "max_new_tokens" in layer:
        return int(layer["max_new_tokens"])
    return max(0, int(layer.get("max_length", 0)) - prompt_tokens)


def _shortest(layers: Sequence[SettingValues], prompt_tokens: int) -> int:
    for layer in layers:
        if "min_new_tokens" in layer:
            return int(layer["min_new_tokens"])
        if "min_length" in layer:
            return max(0, int(layer["min_length"]) - prompt_tokens)
    return 0


# What summarization and translation share: a text goes through an encoder and a decoder, and comes
# out as another text.
#
# A text that is too long for the model is cut, with a warning, unless the caller forbids it.

# One call of `generate` for the rows of a batch, which can be left between any two tokens.
#
# Rows are padded and masked so that none changes another; sampled rows come alone, each with
# a seed.

# Tokens may be empty, such as special ones.
STOP_SLACK_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class SourceText:
    """What a row of generation holds: the source text, or the prompt, in tokens."""

    ids: Sequence[int]
    arguments: GenerationArguments
    stop: tuple[str, ...] = ()
    seed: int | None = None


def make_row(model: PreTrainedModel, source: SourceText, *, size: int) -> Row:
    """Rows share a batch where they are generated alike, and where no padding gets between."""
    group = source.arguments.key + "".join(f"\0{string}" for string in source.stop)
    if _looks_at_padding(model, source.arguments):
        group += f"\0{len(source.ids)}"
    if source.arguments.is_sampled:
        # The dice are thrown for a whole batch: a row's luck must not depend on its company.
        group += f"\0{secrets.token_hex(16)}"
    return Row(size=size * source.arguments.copies, data=source, group=group)


def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[SourceText],
    watch: Watch,
) -> list[list[list[int]]]:
    """The new tokens, without the end: for each row as many sequences as were asked for.

    `watch` is asked after each token; a row that it reports ends there, and what it raises ends
    all. The sources are those of rows of one group.
    """
    first = sources[0]
    settings = first.arguments.settings
    is_decoder = not model.config.is_encoder_decoder
    ids, mask = _batch(sources, settings["pad_token_id"], left=is_decoder)
    start = ids.shape[1] if is_decoder else 1
    criteria: list[StoppingCriteria] = [DroppedRows(watch, len(sources))]
    if first.stop:
        criteria.append(StoppedByText(tokenizer, first.stop, start))
    with torch.inference_mode(), _dice(model.device, first):
        run: Any = model.generate
        sequences = run(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=GenerationConfig(**settings),
            stopping_criteria=StoppingCriteriaList(criteria),
        )
    ends = settings.get("eos_token_id")
    new = [_until_end(row, ends) for row in sequences[:, start:].tolist()]
    count = settings["num_return_sequences"]
    return [new[n * count : (n + 1) * count] for n in range(len(sources))]


def decoded(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, clean_up: bool | None = False
) -> str:
    """The text of one sequence, without special tokens. `clean_up` None: as the tokenizer's own
    configuration says."""
    text = tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=clean_up
    )
    assert isinstance(text, str)
    return text


class DroppedRows(StoppingCriteria):
    """Ends the rows that nobody waits for. A row may stand for several of the model's: its beams,
    or the continuations of a beam."""

    def __init__(self, watch: Watch, rows: int) -> None:
        self.watch = watch
        self.rows = rows

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        del scores, kwargs
        dropped = torch.zeros(self.rows, dtype=torch.bool)
        for n, is_dropped in enumerate(self.watch()):
            dropped[n] = is_dropped
        spread = dropped.repeat_interleave(input_ids.shape[0] // self.rows)
        return spread.to(input_ids.device)  # type: ignore[return-value] # It is one of booleans.


class StoppedByText(StoppingCriteria):
    """Ends rows whose new text holds one of the strings. It spares tokens, no more: who makes the
    text cuts it."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str], start: int
    ) -> None:
        self.tokenizer = tokenizer
        self.strings = strings
        self.start = start
        # No token is shorter than a byte.
        self.tail = max(len(string.encode()) for string in strings) + STOP_SLACK_TOKENS

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        del scores, kwargs
        ends = input_ids[:, max(self.start, input_ids.shape[1] - self.tail) :].tolist()
        texts = [decoded(self.tokenizer, end) for end in ends]
        stopped = [any(string in text for string in self.strings) for text in texts]
        return torch.tensor(stopped, device=input_ids.device)  # type: ignore[return-value] # dito


def _batch(
    sources: Sequence[SourceText], filler: int, *, left: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """A decoder goes on from the last column: its rows are padded on the left."""
    width = max(len(source.ids) for source in sources)
    ids = torch.full((len(sources), width), filler)
    mask = torch.zeros_like(ids)
    for n, source in enumerate(sources):
        size = len(source.ids)
        columns = slice(width - size, width) if left else slice(size)
        ids[n, columns] = torch.tensor(source.ids)
        mask[n, columns] = 1
    return ids, mask


def _looks_at_padding(model: PreTrainedModel, arguments: GenerationArguments) -> bool:
    """Whether rules of generation read the source's tokens without its mask."""
    settings = arguments.settings
    if model.config.is_encoder_decoder:
        return bool(
            settings.get("encoder_no_repeat_ngram_size", 0) > 0
            or settings.get("encoder_repetition_penalty", 1) != 1
        )
    return bool(settings.get("no_repeat_ngram_size", 0) > 0)


def _until_end(row: Sequence[int], ends: int | Sequence[int] | None) -> list[int]:
    """Behind its end a row is filled, with beams by a number that is no token where nothing ends
    it."""
    known = {ends} if isinstance(ends, int) else set(ends or ())
    size = next((n for n, token in enumerate(row) if token in known or token < 0), len(row))
    return list(row[:size])


@contextmanager
def _dice(device: torch.device, source: SourceText) -> Iterator[None]:
    """The process's own generators of random numbers stay as they are."""
    if not source.arguments.is_sampled:
        yield
        return
    seed = secrets.randbits(63) if source.seed is None else source.seed
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


UNLIMITED_SOURCE_TOKENS = 4096
"""What is read of a text where a model would read any length (T5): attention is quadratic."""
FIRST_CHARS = 1000


@dataclass(frozen=True, kw_only=True)
class ModelText:
    """A text in the form that the model needs for the task, and settings of its configuration."""

    text: str
    settings: SettingValues = field(default_factory=dict)
    warnings: Sequence[str] = field(default=())


class Seq2Seq(TextTask):
    output_field: ClassVar[str]

    row_limit = 32
    """Short texts may become long ones: what the decoder holds is not in a row's size."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: LoadOptions
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.own = own_settings(model, tokenizer)
        self.window = source_window(model, tokenizer)
        self.room = _room(model)

    @abstractmethod
    def model_text(self, text: str, parameters: Seq2SeqParameters) -> ModelText:
        """Raises InvalidInput."""

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        assert isinstance(parameters, Seq2SeqParameters)
        check_has_tokens(self.tokenizer, value)
        model_text = self.model_text(value, parameters)
        [tokens] = encode(self.tokenizer, [model_text.text], limit=self.window)
        if tokens.is_cut and parameters.truncation == "do_not_truncate":
            raise InvalidInput(
                f"the text has {tokens.full_size:,} tokens, and the model takes {self.window:,}; "
                "shorten it, or leave out `truncation` to have it cut."
            )
        settings, seed = requested_settings(parameters, parameters.generate_parameters)
        # `generate` counts the token that every text begins with.
        task = known_settings(model_text.settings)
        arguments = settle(settings, task, self.own, prompt_tokens=1, room=self.room)
        source = SourceText(ids=tokens.inputs["input_ids"], arguments=arguments, seed=seed)
        return PreparedInput(
            rows=[make_row(self.model, source, size=tokens.size)],
            warnings=[*model_text.warnings, *cut_warning([tokens]), *arguments.warnings],
        )

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        return generate(self.model, self.tokenizer, [row.data for row in rows], watch)

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del prepared
        assert isinstance(parameters, Seq2SeqParameters)
        [[tokens]] = outputs
        clean_up = parameters.clean_up_tokenization_spaces
        text = decoded(self.tokenizer, tokens, clean_up=clean_up)
        return {self.output_field: storable(text).strip()}

    def alone(self, output: Any) -> Any:
        """The API answers a single text as if it came in a list."""
        return [output]


def with_prefix(prefix: str, text: str) -> str:
    """Callers of T5 may have written the prefix themselves."""
    return text if prefix and text.startswith(prefix) else prefix + text


def check_has_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """A text of nothing that the model reads would leave it to its fancies."""
    for part in (text[:FIRST_CHARS], text):
        if tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]:
            return
    raise InvalidInput("the text holds nothing that the model can read; give another one.")


def source_window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest source text, in tokens. T5 has no positions, but says how long its texts were."""
    known = window_tokens(model, tokenizer)
    if known is not None:
        return known
    learnt = getattr(model.config, "n_positions", None)
    return int(learnt or UNLIMITED_SOURCE_TOKENS)


def _room(model: PreTrainedModel) -> int | None:
    """How many new tokens there are positions for, behind the one that begins every text."""
    config = model.config.get_text_config(decoder=True)
    for name in ("max_decoder_position_embeddings", "max_position_embeddings"):
        positions = getattr(config, name, None)
        if positions is not None:
            return int(positions) - 1
    return None


def storable(text: str) -> str:
    """Characters that PostgreSQL keeps in no text are replaced."""
    whole = StopFilter(())
    return whole.feed(text) + whole.flush()


# Summarization, with the beams and lengths that the model's configuration sets for it.


class Summarization(Seq2Seq):
    output_field = "summary_text"

    def model_text(self, text: str, parameters: Seq2SeqParameters) -> ModelText:
        del parameters
        settings = task_settings(self.model, "summarization")
        prefix = settings.get("prefix") or getattr(self.model.config, "prefix", None) or ""
        return ModelText(text=with_prefix(prefix, text), settings=settings)


def load_summarization(folder: Path, options: LoadOptions) -> Summarization:
    model = load_model(AutoModelForSeq2SeqLM, folder, options, task=SUMMARIZATION.name)
    return Summarization(model, load_tokenizer(folder, options), options)


# Translation, from and into the languages that the model knows by its own names.

# Languages of translation models: each family has its own names, and its own way of being
# told.
#
# Whoever names a language that the model does not know hears which ones it knows.

SHOWN = 12
_NLLB: Final = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_PAIR: Final = re.compile(r"translation_(?P<source>\w+)_to_(?P<target>\w+)")


class Directions(ABC):
    """How one model is told what to translate into what."""

    @abstractmethod
    def model_text(self, text: str, source: str | None, target: str | None) -> ModelText:
        """Raises InvalidInput for languages that the model does not know."""


def directions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, own: SettingValues
) -> Directions:
    codes = _codes(tokenizer)
    if codes:
        return LanguageIds(tokenizer, codes, own)
    if hasattr(tokenizer, "supported_language_codes"):
        return LanguageMarks(tokenizer)
    return LanguagePrefixes(model)


class LanguageIds(Directions):
    """M2M-100, NLLB, mBART: each language is a token, in front of the text or behind it, and the
    first token of the translation."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, codes: dict[str, int], own: SettingValues
    ) -> None:
        self.tokenizer: Any = tokenizer
        self.codes = codes
        self.source: str | None = tokenizer.init_kwargs.get("src_lang")
        self.target: str | None = tokenizer.init_kwargs.get("tgt_lang")
        # Some are trained for one language, and say so in their configuration.
        begins = (own.get("forced_bos_token_id"), own.get("decoder_start_token_id"))
        self.has_target = any(token in codes.values() for token in begins)

    def model_text(self, text: str, source: str | None, target: str | None) -> ModelText:
        source, target = source or self.source, target or self.target
        if source is None or (target is None and not self.has_target):
            raise InvalidInput(
                "the model translates between many languages: name src_lang and tgt_lang, such as "
                f"{_some(self.codes, '')}."
            )
        for name, language in (("src_lang", source), ("tgt_lang", target)):
            if language is not None and language not in self.codes:
                raise _unknown(name, language, self.codes)
        # The tokenizer writes the token of its present source language.
        self.tokenizer.src_lang = source
        settings = {} if target is None else {"forced_bos_token_id": self.codes[target]}
        return ModelText(text=text, settings=settings)


class LanguageMarks(Directions):
    """Marian: a model of one pair, or one that reads `>>fra<<` in front of the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        marked: list[str] = getattr(tokenizer, "supported_language_codes")  # noqa: B009
        self.targets = [mark.removeprefix(">>").removesuffix("<<") for mark in marked]
        self.source: str | None = getattr(tokenizer, "source_lang", None)
        self.target: str | None = getattr(tokenizer, "target_lang", None)

    def model_text(self, text: str, source: str | None, target: str | None) -> ModelText:
        # Longer names may be those of families, such as ROMANCE, or follow another norm.
        only = self.source if self.source is not None and len(self.source) == 2 else None
        if source is not None and only is not None and source.casefold() != only:
            raise _unknown("src_lang", source, [only])
        if target in self.targets:
            return ModelText(text=with_prefix(f">>{target}<< ", text))
        if target is not None and target.casefold() != (self.target or "").casefold():
            known = [*self.targets, *([self.target] if self.target else [])]
            raise _unknown("tgt_lang", target, known)
        if target is None and len(self.targets) > 1 and not text.startswith(">>"):
            warning = (
                "goes into a language of the model's choice, as no tgt_lang is named; it knows "
                f"{_some(self.targets, '')}."
            )
            return ModelText(text=text, warnings=[warning])
        return ModelText(text=text)


class LanguagePrefixes(Directions):
    """T5: a pair has its prefix in the configuration. Other models take no name of a language."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.prefix: str = getattr(model.config, "prefix", None) or ""
        self.pairs = {
            (match["source"], match["target"]): settings
            for name, settings in all_task_settings(model).items()
            if (match := _PAIR.fullmatch(name))
        }
        self.general: SettingValues = all_task_settings(model).get("translation", {})

    def model_text(self, text: str, source: str | None, target: str | None) -> ModelText:
        if not self.pairs:
            if source is not None or target is not None:
                raise InvalidInput(
                    "the model takes no src_lang and tgt_lang: it translates as it was trained. "
                    "Leave them out."
                )
            prefix = self.general.get("prefix") or self.prefix
            return ModelText(text=with_prefix(prefix, text), settings=self.general)
        named = source is not None or target is not None
        fitting = [
            settings
            for (from_, to), settings in self.pairs.items()
            if source in (None, from_)
            and target in (None, to)
            and (named or len(self.pairs) == 1 or text.startswith(settings.get("prefix", "\0")))
        ]
        if len(fitting) != 1:
            pairs = ", ".join(f"{from_} to {to}" for from_, to in sorted(self.pairs))
            raise InvalidInput(
                f"name the src_lang and the tgt_lang of a pair that the model knows: {pairs}."
            )
        [settings] = fitting
        return ModelText(text=with_prefix(settings.get("prefix", ""), text), settings=settings)


def _codes(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The languages that a tokenizer has tokens for, where it takes a `src_lang`."""
    if not hasattr(tokenizer, "src_lang"):
        return {}
    known: dict[str, int] | None = getattr(tokenizer, "lang_code_to_id", None)
    if known is not None:
        return dict(known)
    tokens = [str(token) for token in tokenizer.all_special_tokens if _NLLB.fullmatch(str(token))]
    ids = tokenizer.convert_tokens_to_ids(tokens)
    assert isinstance(ids, list)
    return dict(zip(tokens, ids, strict=True))


def _unknown(name: str, language: str, known: Iterable[str]) -> InvalidInput:
    return InvalidInput(
        f"{name} {language!r} is none that the model knows; it knows {_some(known, language)}."
    )


def _some(known: Iterable[str], like: str) -> str:
    """The names that begin like one first."""
    names = sorted(set(known), key=lambda name: (name[:2] != like[:2].casefold(), name))
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


class Translation(Seq2Seq):
    output_field = "translation_text"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: LoadOptions
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.directions: Directions = directions(model, tokenizer, self.own)

    def model_text(self, text: str, parameters: Seq2SeqParameters) -> ModelText:
        assert isinstance(parameters, TranslationParameters)
        return self.directions.model_text(text, parameters.src_lang, parameters.tgt_lang)


def load_translation(folder: Path, options: LoadOptions) -> Translation:
    model = load_model(AutoModelForSeq2SeqLM, folder, options, task=TRANSLATION.name)
    with warnings.catch_warnings():
        # Marian's tokenizer recommends sacremoses, which it then does not use.
        warnings.filterwarnings("ignore", message=".*sacremoses", category=UserWarning)
        tokenizer = load_tokenizer(folder, options)
    return Translation(model, tokenizer, options)


# Text generation: a prompt goes on. It is a plain text; no chat template is applied.
#
# The answer has the prompt before it, unless the caller wants the new text alone. A prompt that is
# too long for the model loses its beginning, with a warning.


class TextGeneration(TextTask):
    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: LoadOptions
    ) -> None:
        super().__init__(model, tokenizer, options)
        own = own_settings(model, tokenizer)
        # Chat models give their window as `max_length`, which is no length for an answer.
        self.own = {name: own[name] for name in own if name not in {"max_length", "min_length"}}
        self.task = known_settings(task_settings(model, TEXT_GENERATION.name))

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        assert isinstance(parameters, TextGenerationParameters)
        check_has_tokens(self.tokenizer, value)
        ids: list[int] = self.tokenizer(value, verbose=False)["input_ids"]
        settings, seed = requested_settings(parameters)
        if shapes_chances(settings):
            # As text-generation-inference understands it, and unlike `generate`.
            settings.setdefault("do_sample", True)
        kept = self._kept(ids, parameters.truncate, settings.get("max_new_tokens", NEW_TOKENS))
        arguments = settle(
            settings,
            self.task,
            self.own,
            prompt_tokens=len(kept),
            room=None if self.window is None else self.window - len(kept),
            sequences=parameters.num_return_sequences or 1,
        )
        source = SourceText(ids=kept, arguments=arguments, stop=tuple(parameters.stop), seed=seed)
        # What is generated stays in memory beside the prompt.
        row = make_row(self.model, source, size=len(kept) + arguments.new_tokens)
        cut = f"was cut from {len(ids):,} to {len(kept):,} tokens: its beginning was left out."
        warnings = [cut] if len(kept) < len(ids) else []
        return PreparedInput(
            rows=[row], rest=(value, kept), warnings=[*warnings, *arguments.warnings]
        )

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        return generate(self.model, self.tokenizer, [row.data for row in rows], watch)

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        assert isinstance(parameters, TextGenerationParameters)
        prompt, ids = prepared.rest
        front = prompt if parameters.return_full_text else ""
        [sequences] = outputs
        texts = [
            {"generated_text": front + self._continuation(ids, tokens, parameters.stop)}
            for tokens in sequences
        ]
        return texts if parameters.num_return_sequences is not None else texts[0]

    def alone(self, output: Any) -> Any:
        """The API answers a single prompt with a list of its continuations."""
        return output if isinstance(output, list) else [output]

    def _kept(self, ids: list[int], truncate: int | None, new_tokens: int) -> list[int]:
        """A prompt that fits is kept whole, if the new text has to be shorter; one that does not
        leaves up to half of the window for it."""
        limit = len(ids) if truncate is None else truncate
        if self.window is not None and min(limit, len(ids)) >= self.window:
            limit = self.window - min(new_tokens, self.window // 2)
        if len(ids) <= limit:
            return ids
        begins = ids[:1] if ids[0] == self.tokenizer.bos_token_id and limit > 1 else []
        return [*begins, *ids[len(ids) - limit + len(begins) :]]

    def _continuation(self, ids: Sequence[int], new: Sequence[int], stop: Sequence[str]) -> str:
        """Decoded with the prompt before it: alone, many tokenizers drop its first space."""
        before = decoded(self.tokenizer, ids)
        text = decoded(self.tokenizer, [*ids, *new])
        is_split = text.startswith(before)
        text = text.removeprefix(before) if is_split else decoded(self.tokenizer, new)
        ending = StopFilter(stop)
        shown = ending.feed(text)
        return shown + ending.flush()


def load_text_generation(folder: Path, options: LoadOptions) -> TextGeneration:
    model = load_model(AutoModelForCausalLM, folder, options, task=TEXT_GENERATION.name)
    return TextGeneration(model, load_tokenizer(folder, options), options)
