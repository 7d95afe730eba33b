"""Translation, from and into the languages that the model knows by its own names."""

import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import InvalidInput
from shared.kinds.hf import Seq2SeqParameters, Task, TranslationParameters
from workers.hf.arguments import Settings, all_task_settings
from workers.hf.task import Options
from workers.hf.tasks.seq2seq import Directed, Seq2Seq, with_prefix
from workers.models.load import load_model, load_tokenizer

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
    def directed(self, text: str, source: str | None, target: str | None) -> Directed:
        """Raises InvalidInput for languages that the model does not know."""


def directions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, own: Settings
) -> Directions:
    codes = _codes(tokenizer)
    if codes:
        return Coded(tokenizer, codes, own)
    if hasattr(tokenizer, "supported_language_codes"):
        return Marked(tokenizer)
    return Prefixed(model)


class Coded(Directions):
    """M2M-100, NLLB, mBART: each language is a token, in front of the text or behind it, and the
    first token of the translation."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, codes: dict[str, int], own: Settings
    ) -> None:
        self.tokenizer: Any = tokenizer
        self.codes = codes
        self.source: str | None = tokenizer.init_kwargs.get("src_lang")
        self.target: str | None = tokenizer.init_kwargs.get("tgt_lang")
        # Some are trained for one language, and say so in their configuration.
        begins = (own.get("forced_bos_token_id"), own.get("decoder_start_token_id"))
        self.has_target = any(token in codes.values() for token in begins)

    def directed(self, text: str, source: str | None, target: str | None) -> Directed:
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
        return Directed(text=text, settings=settings)


class Marked(Directions):
    """Marian: a model of one pair, or one that reads `>>fra<<` in front of the text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        marked: list[str] = getattr(tokenizer, "supported_language_codes")  # noqa: B009
        self.targets = [mark.removeprefix(">>").removesuffix("<<") for mark in marked]
        self.source: str | None = getattr(tokenizer, "source_lang", None)
        self.target: str | None = getattr(tokenizer, "target_lang", None)

    def directed(self, text: str, source: str | None, target: str | None) -> Directed:
        # Longer names may be those of families, such as ROMANCE, or follow another norm.
        only = self.source if self.source is not None and len(self.source) == 2 else None
        if source is not None and only is not None and source.casefold() != only:
            raise _unknown("src_lang", source, [only])
        if target in self.targets:
            return Directed(text=with_prefix(f">>{target}<< ", text))
        if target is not None and target.casefold() != (self.target or "").casefold():
            known = [*self.targets, *([self.target] if self.target else [])]
            raise _unknown("tgt_lang", target, known)
        if target is None and len(self.targets) > 1 and not text.startswith(">>"):
            warning = (
                "goes into a language of the model's choice, as no tgt_lang is named; it knows "
                f"{_some(self.targets, '')}."
            )
            return Directed(text=text, warnings=[warning])
        return Directed(text=text)


class Prefixed(Directions):
    """T5: a pair has its prefix in the configuration. Other models take no name of a language."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.prefix: str = getattr(model.config, "prefix", None) or ""
        self.pairs = {
            (match["source"], match["target"]): settings
            for name, settings in all_task_settings(model).items()
            if (match := _PAIR.fullmatch(name))
        }
        self.general: Settings = all_task_settings(model).get("translation", {})

    def directed(self, text: str, source: str | None, target: str | None) -> Directed:
        if not self.pairs:
            if source is not None or target is not None:
                raise InvalidInput(
                    "the model takes no src_lang and tgt_lang: it translates as it was trained. "
                    "Leave them out."
                )
            prefix = self.general.get("prefix") or self.prefix
            return Directed(text=with_prefix(prefix, text), settings=self.general)
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
        return Directed(text=with_prefix(settings.get("prefix", ""), text), settings=settings)


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
    names = sorted(set(known), key=lambda each: (each[:2] != like[:2].casefold(), each))
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


class Translation(Seq2Seq):
    output_field = "translation_text"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.directions: Directions = directions(model, tokenizer, self.own)

    def directed(self, text: str, parameters: Seq2SeqParameters) -> Directed:
        assert isinstance(parameters, TranslationParameters)
        return self.directions.directed(text, parameters.src_lang, parameters.tgt_lang)


def load(folder: Path, options: Options) -> Translation:
    model = load_model(AutoModelForSeq2SeqLM, folder, options, task=Task.TRANSLATION)
    with warnings.catch_warnings():
        # Marian's tokenizer recommends sacremoses, which it then does not use.
        warnings.filterwarnings("ignore", message=".*sacremoses", category=UserWarning)
        tokenizer = load_tokenizer(folder, options)
    return Translation(model, tokenizer, options)
