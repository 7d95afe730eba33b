"""Attention over the slab: one slot per request, each request at a length of its own.

Registered with transformers as the attention implementation `sluice`, for which models build no
masks. A forward pass brings a `Layout` as the keyword `sluice_layout`, which says where its tokens
lie in the slab: `DecodeLayout` for one new token of every row (shapes depend on nothing but the
number of rows and the span), `PackedLayout` for pieces of several prompts, end to end in one
sequence without padding. A token sees its own row's columns up to its own, and no others.

Grouped and multi-query attention fold the group into the query's length, so that keys and values
are read in place and never repeated.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

SLUICE: Final = "sluice"
# What it costs on a processor to compute a row's attention alone, as columns that are read.
ROW_COST_COLUMNS: Final = 100


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a layer asks of its attention. `sinks` are learned logits, one a head, that take a
    share of the attention away from all columns."""

    scaling: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None


@dataclass(frozen=True, kw_only=True)
class PromptPiece:
    """Consecutive tokens of one row, the first of which belongs in the column `start`."""

    slot: int
    start: int
    ids: Sequence[int]

    @property
    def end(self) -> int:
        return self.start + len(self.ids)


class Layout(ABC):
    """Where the tokens of one forward pass lie: token i in `slots[i]` and `columns[i]`."""

    def __init__(self, slots: Tensor, columns: Tensor) -> None:
        self._cells = {slots.device: (slots, columns)}
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def cells(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slots and columns there; a model may be spread over several devices."""
        if device not in self._cells:
            slots, columns = next(iter(self._cells.values()))
            self._cells[device] = (slots.to(device), columns.to(device))
        return self._cells[device]

    @abstractmethod
    def visible(self, slab: Tensor) -> Tensor:
        """The part of a layer's keys or values `[slots, heads, columns, dim]` that is looked at."""

    @abstractmethod
    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: Options) -> Tensor:
        """`[batch, heads, length, dim]` -> `[batch, length, heads, dim]`."""


class DecodeLayout(Layout):
    """One token for each of the slots 0..n, which see the columns 0..span.

    `known` are the columns as the caller knows them, where they may shape the computation: what
    lies before every row's sliding window is not read then, and on a processor, rows of very
    unequal lengths are computed one by one, each over its own length alone.
    """

    def __init__(
        self, slots: Tensor, columns: Tensor, span: int, known: Sequence[int] | None = None
    ) -> None:
        super().__init__(slots, columns)
        self._rows = len(slots)
        self._span = span
        self._known = known
        self._lowest = min(known) if known else 0
        self._is_uneven = (
            known is not None
            and columns.device.type == "cpu"
            and sum(known) + ROW_COST_COLUMNS * len(known) < span * len(known)
        )

    def visible(self, slab: Tensor) -> Tensor:
        return slab[: self._rows, :, : self._span]

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: Options) -> Tensor:
        rows, heads, _, _ = query.shape
        folded = query.reshape(rows, keys.shape[1], -1, query.shape[-1])
        if self._is_uneven and self._known is not None:
            each = [
                self._attend_one(folded, keys, values, row, column, options)
                for row, column in enumerate(self._known)
            ]
            return torch.cat(each).reshape(rows, 1, heads, -1)
        if options.window is not None and (first := self._lowest - options.window + 1) > 0:
            keys, values = keys[:, :, first:], values[:, :, first:]
        else:
            first = 0
        mask = self._mask(query, first, options.window)
        return attention(folded, keys, values, mask, options).reshape(rows, 1, heads, -1)

    def _attend_one(
        self, query: Tensor, keys: Tensor, values: Tensor, row: int, column: int, options: Options
    ) -> Tensor:
        first = 0 if options.window is None else max(0, column - options.window + 1)
        seen = (slice(row, row + 1), slice(None), slice(first, column + 1))
        return attention(query[row : row + 1], keys[seen], values[seen], None, options)

    def _mask(self, like: Tensor, first: int, window: int | None) -> Tensor:
        """`[rows, 1, 1, span - first]`."""
        key = (like.device, first, window)
        if key not in self._masks:
            _, columns = self.cells(like.device)
            seen = torch.arange(first, self._span, device=like.device)
            last = columns[:, None]
            allowed = seen <= last
            if window is not None:
                allowed &= seen > last - window
            self._masks[key] = _additive(allowed, like.dtype)[:, None, None]
        return self._masks[key]


class PackedLayout(Layout):
    """Pieces of prompts, end to end."""

    def __init__(self, pieces: Sequence[PromptPiece], device: torch.device) -> None:
        slots = [piece.slot for piece in pieces for _ in piece.ids]
        columns = [column for piece in pieces for column in range(piece.start, piece.end)]
        super().__init__(torch.tensor(slots, device=device), torch.tensor(columns, device=device))
        self._pieces = pieces

    def visible(self, slab: Tensor) -> Tensor:
        return slab

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: Options) -> Tensor:
        _, heads, length, _ = query.shape
        groups = heads // keys.shape[1]
        out = query.new_empty(1, length, heads, values.shape[-1])
        at = 0
        for piece in self._pieces:
            count = len(piece.ids)
            first = 0 if options.window is None else max(0, piece.start - options.window + 1)
            columns = (slice(piece.slot, piece.slot + 1), slice(None), slice(first, piece.end))
            mask = self._mask(query, piece, first, groups, options.window)
            part = query[:, :, at : at + count].reshape(1, keys.shape[1], groups * count, -1)
            seen = attention(part, keys[columns], values[columns], mask, options)
            out[0, at : at + count] = seen.reshape(heads, count, -1).transpose(0, 1)
            at += count
        return out

    def _mask(
        self, like: Tensor, piece: PromptPiece, first: int, groups: int, window: int | None
    ) -> Tensor:
        """`[1, 1, groups * count, end - first]`."""
        key = (like.device, piece.slot, first, groups, window)
        if key not in self._masks:
            seen = torch.arange(first, piece.end, device=like.device)
            last = torch.arange(piece.start, piece.end, device=like.device)[:, None]
            allowed = seen <= last
            if window is not None:
                allowed &= seen > last - window
            self._masks[key] = _additive(allowed, like.dtype).repeat(groups, 1)[None, None]
        return self._masks[key]


def register() -> None:
    """Make `sluice` known to transformers; doing so twice changes nothing."""
    AttentionInterface.register(SLUICE, _forward)


def attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, options: Options
) -> Tensor:
    """`[batch, key heads, group * length, dim]`, with a mask that is added to the scores."""
    if options.softcap is None and options.sinks is None:
        return nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=options.scaling
        )
    scaling = query.shape[-1] ** -0.5 if options.scaling is None else options.scaling
    scores = query @ keys.transpose(-1, -2) * scaling
    if options.softcap is not None:
        scores = torch.tanh(scores / options.softcap) * options.softcap
    scores = (scores if mask is None else scores + mask).float()
    if options.sinks is not None:
        heads = scores.shape[1]
        length = scores.shape[2] * heads // len(options.sinks)
        sinks = options.sinks.view(heads, -1).repeat_interleave(length, dim=1)
        sinks = sinks[None, :, :, None].expand(len(scores), -1, -1, 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], dim=-1)
        return scores.softmax(-1)[..., :-1].to(values.dtype) @ values
    return scores.softmax(-1).to(values.dtype) @ values


def _forward(
    module: nn.Module,  # noqa: ARG001 (the interface's)
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 (models build none for this implementation)
    *,
    sluice_layout: Layout,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    options = Options(scaling=scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
    return sluice_layout.attend(query, key, value, options), None


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, float("-inf")
    )
