"""Texts as rows of tokens: tokenized, cut to what the model takes, padded into a batch.

Nothing is cut unseen: a row knows how long it was, and `cut_warning` says so.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import InvalidInput
from shared.hf.classification import Function

# Tokenizers whose length nobody has set say 10**30.
WINDOW_LIMIT_TOKENS = 10_000_000
SHOWN_CHARS = 40
INPUTS = ("input_ids", "token_type_ids", "attention_mask")

PairTruncation = Literal["longest_first", "only_first", "only_second"]
Side = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A row as the model takes it, special tokens and all."""

    inputs: dict[str, list[int]]
    """`input_ids`, `attention_mask`, and `token_type_ids` where the tokenizer has them."""
    full_size: int
    """How many tokens it had before it was cut."""
    special: list[int] = field(default_factory=list)
    """1 for each token that is none of the text's; only if asked for."""
    offsets: list[tuple[int, int]] | None = None
    """Where in the text each token starts and ends; only if asked for, and of fast tokenizers."""

    @property
    def size(self) -> int:
        return len(self.inputs["input_ids"])

    @property
    def is_cut(self) -> bool:
        return self.size < self.full_size


def window_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest row that the model takes; None where it has no limit of its own."""
    config = model.config.get_text_config()
    limits = [tokenizer.model_max_length]
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        limits.append(positions - _positions_before_the_first(model))
    known = [limit for limit in limits if 0 < limit < WINDOW_LIMIT_TOKENS]
    return min(known, default=None)


def _positions_before_the_first(model: PreTrainedModel) -> int:
    """RoBERTa and its kin count positions from behind the id of their padding token."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return 0 if padding is None else padding + 1
    return 0


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None = None,
    *,
    limit: int | None,
    truncation: PairTruncation = "longest_first",
    with_offsets: bool = False,
) -> list[Tokens]:
    """A row for each text, or for each text with its pair, of at most `limit` tokens.

    Raises InvalidInput for a text without tokens, and where the part that `truncation` lets be cut
    is too short to be cut enough.
    """
    options = {
        "return_special_tokens_mask": with_offsets,
        "return_offsets_mapping": with_offsets and tokenizer.is_fast,
        "verbose": False,
    }
    rows = _rows(tokenizer(list(texts), None if pairs is None else list(pairs), **options))
    long = [n for n, row in enumerate(rows) if limit is not None and row.size > limit]
    if long:
        try:
            cut = tokenizer(
                [texts[n] for n in long],
                None if pairs is None else [pairs[n] for n in long],
                truncation=truncation,
                max_length=limit,
                **options,
            )
        except Exception as error:  # Fast tokenizers raise nothing narrower.
            if "too short" not in str(error):
                raise
        else:
            for n, row in zip(long, _rows(cut), strict=True):
                rows[n] = replace(row, full_size=rows[n].full_size)
    for row, text in zip(rows, texts, strict=True):
        if row.size == 0:
            raise InvalidInput(f"the model knows no token of the text {text[:SHOWN_CHARS]!r}.")
        if limit is not None and row.size > limit:
            raise InvalidInput(
                f"the text and what goes with it have {row.full_size:,} tokens; the model takes "
                f"{limit:,}, and cutting the text is not enough. Shorten the label or the query."
            )
    return rows


def _rows(encoded: BatchEncoding) -> list[Tokens]:
    names = [name for name in INPUTS if name in encoded]
    special = encoded.get("special_tokens_mask")
    offsets = encoded.get("offset_mapping")
    return [
        Tokens(
            inputs={name: encoded[name][n] for name in names},
            full_size=len(ids),
            special=special[n] if special else [],
            offsets=offsets[n] if offsets else None,
        )
        for n, ids in enumerate(encoded["input_ids"])
    ]


def beginning(tokenizer: PreTrainedTokenizerBase, text: str, limit: int | None) -> tuple[str, int]:
    """As much of a text as fills `limit` tokens twice, and how many tokens that leaves out.

    A text that makes a row with each of many others is tokenized with each; its end would only be
    cut off every time.
    """
    if limit is None or not tokenizer.is_fast or tokenizer.truncation_side != "right":
        return text, 0
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    if len(tokens) <= 2 * limit:
        return text, 0
    end: int = tokens[2 * limit - 1][1]
    return text[:end], len(tokens) - 2 * limit


def cut_warning(rows: Sequence[Tokens], *, left_out: int = 0) -> list[str]:
    """What to tell of one text whose rows were cut: of the longest of them, or nothing.

    `left_out` is what `beginning` took of it before.
    """
    cut = [row for row in rows if row.is_cut]
    if not cut:
        return []
    longest = max(cut, key=lambda row: row.full_size)
    return [
        f"was cut from {longest.full_size + left_out:,} to {longest.size:,} tokens, which is all "
        "that the model takes at once."
    ]


def can_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model tells padding from text; if not, rows of one batch disturb each other.

    Decoders that classify look for the last token that is no padding, by the id in their
    configuration.
    """
    padding = tokenizer.pad_token_id
    known = getattr(model.config.get_text_config(), "pad_token_id", None)
    return padding is not None and padding == known


def pad(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Tokens],
    device: torch.device,
    *,
    side: Side = "right",
) -> dict[str, torch.Tensor]:
    """One batch. Rows of equal length need no padding, and no padding token.

    On the right, whatever side the tokenizer names for generation: there it moves no position.
    """
    padded = tokenizer.pad(
        [row.inputs for row in rows],
        padding=len({row.size for row in rows}) > 1,
        padding_side=side,
        return_attention_mask=True,
        return_tensors="pt",
        verbose=False,
    )
    return {name: tensor.to(device) for name, tensor in padded.items()}


# What a model makes of rows of tokens, without a trace of the rows' company in the batch.


def logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tokens]
) -> list[torch.Tensor]:
    """Each row's logits, in float32 on the CPU: of shape (labels), or (tokens of the row, labels)
    from models that judge every token."""
    if can_pad(model, tokenizer):
        return _batch(model, tokenizer, rows)
    return [scores for row in rows for scores in _batch(model, tokenizer, [row])]


def group(model: PreTrainedModel, tokens: Tokens) -> str:
    """Rows of which group may share a batch: BART and T5 classify by the end tokens, and want as
    many of them in each row. A text may hold some of its own."""
    if not model.config.is_encoder_decoder:
        return ""
    return str(tokens.inputs["input_ids"].count(model.config.eos_token_id))


def _batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tokens]
) -> list[torch.Tensor]:
    # XLNet classifies by the last place of a row; its positions are relative ones.
    is_last = getattr(model.config, "summary_type", None) == "last"
    inputs = pad(tokenizer, rows, model.device, side="left" if is_last else "right")
    taken = inspect.signature(model.forward).parameters
    # Decoders that classify need no memory of the text; the others know no such word.
    extra = {"use_cache": False} if "use_cache" in taken else {}
    with torch.inference_mode():
        arguments = {name: tensor for name, tensor in inputs.items() if name in taken}
        output: torch.Tensor = model(**arguments, **extra).logits.float().cpu()
    if output.dim() == 2:
        return list(output)
    masks = inputs["attention_mask"].bool().cpu()
    return [scores[mask] for scores, mask in zip(output, masks, strict=True)]


# Logits to scores, as transformers' pipelines of classification do it.


def labels_of(config: PreTrainedConfig) -> dict[int, str]:
    return {int(n): label for n, label in (config.id2label or {}).items()}


def usual_function(config: PreTrainedConfig) -> Function:
    """What the model was trained for: one label of many, any of several, or a plain number."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def labelled(
    logits: Sequence[float], config: PreTrainedConfig, function: Function | None, top_k: int | None
) -> list[dict[str, Any]]:
    """`{"label", "score"}` of each label, best first."""
    scores = torch.tensor(logits)
    match function or usual_function(config):
        case "sigmoid":
            scores = scores.sigmoid()
        case "softmax":
            scores = scores.softmax(-1)
    labels = labels_of(config)
    scored = [{"label": labels[n], "score": score} for n, score in enumerate(scores.tolist())]
    return sorted(scored, key=lambda label: -label["score"])[:top_k]
