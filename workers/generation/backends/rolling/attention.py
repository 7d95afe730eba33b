"""Attention over the slab: one slot per request, each request at a length of its own.

It is registered with transformers as the attention implementation `sluice`, for which models build
no masks. A forward pass has a `Layout` as the keyword `sluice_layout`, which says where its tokens
are in the slab: `DecodeLayout` for one new token of every row (its shapes depend only on the number
of rows and the span), `PackedLayout` for pieces of several prompts, end to end in one sequence
without padding. A token sees the columns of its own row up to its own column, and no others.

Grouped and multi-query attention fold the group into the query's length: so keys and values are
read in place and never repeated.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel

SLUICE: Final = "sluice"
# The fixed cost of computing one row's attention by itself on a processor, in columns read.
ROW_COST_COLUMNS: Final = 100


@dataclass(frozen=True, kw_only=True)
class LayerOptions:
    """The parameters of one layer's attention. `sinks` are learned logits, one per head, which take
    a share of the attention from all columns."""

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
    """Where the tokens of one forward pass are: token i in `slots[i]` and `columns[i]`."""

    def __init__(self, slots: Tensor, columns: Tensor) -> None:
        self._cells = {slots.device: (slots, columns)}
        self._masks: dict[tuple[Any, ...], Tensor] = {}

    def cells(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slots and columns on that device; a model may be spread over several."""
        if device not in self._cells:
            slots, columns = next(iter(self._cells.values()))
            self._cells[device] = (slots.to(device), columns.to(device))
        return self._cells[device]

    @abstractmethod
    def visible(self, slab: Tensor) -> Tensor:
        """The part of a layer's keys or values `[slots, heads, columns, dim]` that is read."""

    @abstractmethod
    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: LayerOptions) -> Tensor:
        """`[batch, heads, length, dim]` -> `[batch, length, heads, dim]`."""


class DecodeLayout(Layout):
    """One token for each of the slots 0..n, which see the columns 0..span.

    `known` are the columns as plain numbers, if the computation may depend on them: then columns
    before every row's sliding window are not read, and on a processor, rows of very unequal lengths
    are computed one by one, each over its own length.
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

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: LayerOptions) -> Tensor:
        rows, heads, _, _ = query.shape
        folded = query.reshape(rows, keys.shape[1], -1, query.shape[-1])
        if self._is_uneven and self._known is not None:
            attended = [
                self._attend_one(folded, keys, values, row, column, options)
                for row, column in enumerate(self._known)
            ]
            return torch.cat(attended).reshape(rows, 1, heads, -1)
        if options.window is not None and (first := self._lowest - options.window + 1) > 0:
            keys, values = keys[:, :, first:], values[:, :, first:]
        else:
            first = 0
        mask = self._mask(query, first, options.window)
        return attention(folded, keys, values, mask, options).reshape(rows, 1, heads, -1)

    def _attend_one(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        row: int,
        column: int,
        options: LayerOptions,
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

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, options: LayerOptions) -> Tensor:
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
    """Register `sluice` with transformers; a second call changes nothing."""
    AttentionInterface.register(SLUICE, _forward)


def attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, options: LayerOptions
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
    options = LayerOptions(scaling=scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
    return sluice_layout.attend(query, key, value, options), None


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
        ~allowed, float("-inf")
    )


# The keys and values of all running requests: one slot per row, one column per token.
#
# Each layer has keys and values `[rows, heads, tokens, dim]`. A row fills its columns from 0 on, at
# its own pace; nothing is padded, and columns after a row's last token are never attended to. The
# slab grows in units within a budget of bytes, and changes its shape (fewer rows and more tokens,
# or the reverse) if the budget requires it. `scheduler.py` decides which row has which slot.

COLUMNS_UNIT: Final = 128


@dataclass
class _Layer:
    keys: Tensor
    values: Tensor

    def both(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


SavedRow = tuple[tuple[Tensor, Tensor], ...]
"""The keys and values of one row, `[heads, columns, dim]` for each layer."""


class Slab(Cache):
    """A cache for the models of transformers. A forward pass sets `layout` first.

    The last column belongs to no row: forward passes of static shapes write their padding there.
    """

    layout: Layout

    def __init__(self, row_limit: int) -> None:
        super().__init__(layers=[])
        self.rows = 0
        self.columns = 0
        self.token_limit = 0
        """For how many tokens the budget has room."""
        self.shape_version = 0
        """Increased whenever the tensors are replaced by others."""
        self._row_limit = row_limit
        self._slab: dict[int, _Layer] = {}

    @property
    def bytes_per_token(self) -> int:
        """Known after a first forward pass."""
        return sum(
            tensor[0, :, 0].numel() * tensor.element_size()
            for layer in self._slab.values()
            for tensor in layer.both()
        )

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values where the layout says; return what the pass may read."""
        layer = self._slab.get(layer_idx)
        if layer is None:
            layer = _Layer(self._empty(key_states), self._empty(value_states))
            self._slab[layer_idx] = layer
        slots, columns = self.layout.cells(key_states.device)
        layer.keys[slots, :, columns] = key_states.transpose(1, 2).flatten(0, 1)
        layer.values[slots, :, columns] = value_states.transpose(1, 2).flatten(0, 1)
        return self.layout.visible(layer.keys), self.layout.visible(layer.values)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 (the interface's)
        """Always 0: rows have different lengths, so models must derive nothing from it. Forward
        passes have explicit positions."""
        return 0

    def fits(self, rows: int, tokens: int) -> bool:
        return self._shape_for(rows, tokens) is not None

    def reserve(self, rows: int, tokens: int) -> bool:
        """Make room for this many rows and tokens, in any shape; False if the budget does not
        allow it. Rows and columns beyond these may be lost."""
        shape = self._shape_for(rows, tokens)
        if shape is None:
            return False
        if shape != (self.rows, self.columns):
            kept = (min(self.rows, shape[0]), min(self.columns, shape[1]))
            self.rows, self.columns = shape
            self.shape_version += 1
            for layer in self._slab.values():
                # One tensor at a time, so that only one exists twice at any moment.
                layer.keys = self._resize(layer.keys, *kept)
                layer.values = self._resize(layer.values, *kept)
        return True

    def drop(self) -> None:
        """Forget everything."""
        self._slab.clear()
        self.rows = self.columns = 0
        self.shape_version += 1

    def move(self, source: int, target: int, columns: int) -> None:
        for tensor in self._tensors():
            tensor[target, :, :columns] = tensor[source, :, :columns]

    def swap(self, one: int, other: int, columns: int) -> None:
        for tensor in self._tensors():
            kept = tensor[one, :, :columns].clone()
            tensor[one, :, :columns] = tensor[other, :, :columns]
            tensor[other, :, :columns] = kept

    def save(self, slot: int, columns: int) -> SavedRow:
        return tuple(
            (layer.keys[slot, :, :columns].clone(), layer.values[slot, :, :columns].clone())
            for _, layer in sorted(self._slab.items())
        )

    def restore(self, saved: SavedRow, slot: int, columns: int) -> None:
        for (keys, values), (_, layer) in zip(saved, sorted(self._slab.items()), strict=True):
            layer.keys[slot, :, :columns] = keys[:, :columns]
            layer.values[slot, :, :columns] = values[:, :columns]

    def _tensors(self) -> Sequence[Tensor]:
        return [tensor for layer in self._slab.values() for tensor in layer.both()]

    def _shape_for(self, rows: int, tokens: int) -> tuple[int, int] | None:
        columns = -(-(tokens + 1) // COLUMNS_UNIT) * COLUMNS_UNIT
        if rows <= self.rows and columns <= self.columns:
            return self.rows, self.columns
        roomy = min(1 << (rows - 1).bit_length(), max(self._row_limit, rows))
        for shape in (
            (max(roomy, self.rows), max(columns, self.columns)),
            (roomy, columns),
            (rows, columns),
        ):
            if shape[0] * shape[1] <= self.token_limit:
                return shape
        return None

    def _empty(self, like: Tensor) -> Tensor:
        """Zeros: columns that were never written are multiplied by zero, so they must be finite."""
        shape = (self.rows, like.shape[1], self.columns, like.shape[3])
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def _resize(self, old: Tensor, rows: int, columns: int) -> Tensor:
        new = self._empty(old)
        new[:rows, :, :columns] = old[:rows, :, :columns]
        return new


# A causal language model over the slab: token ids in, logits of the next tokens out.
#
# `prefill` runs pieces of several prompts in one pass, `decode` one token of every row. Both
# write the keys and values into the slab. Requests and text are not known here.

SPAN_UNIT = 64


class Network:
    """A causal language model and its slab. For one thread at a time."""

    def __init__(self, model: PreTrainedModel, slab: Slab) -> None:
        self.slab = slab
        embedding = model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        self.device = embedding.device
        self.vocabulary_tokens = len(embedding)
        self._model = model

    def prefill(self, pieces: Sequence[PromptPiece], selected: Sequence[bool]) -> Tensor:
        """Logits `[number of selected, vocabulary]` after the last token of each selected piece."""
        layout = PackedLayout(pieces, self.device)
        ids = torch.tensor([[id_ for piece in pieces for id_ in piece.ids]], device=self.device)
        ends, last = [], -1
        for piece, is_selected in zip(pieces, selected, strict=True):
            last += len(piece.ids)
            if is_selected:
                ends.append(last)
        # A model computes the logits of at least one token.
        keep = torch.tensor(ends or [last], device=self.device)
        return self.run(layout, ids, layout.cells(self.device)[1][None], keep)[0, : len(ends)]

    def decode(self, ids: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Logits `[rows, vocabulary]`; row i is in slot i, and its token goes into column i."""
        span = min(-(-(max(columns) + 1) // SPAN_UNIT) * SPAN_UNIT, self.slab.columns)
        tokens = torch.tensor([ids, columns], device=self.device)
        slots = torch.arange(len(ids), device=self.device)
        layout = DecodeLayout(slots, tokens[1], span, columns)
        return self.run(layout, tokens[0][:, None], tokens[1][:, None], 1)[:, -1]

    def run(self, layout: Layout, ids: Tensor, positions: Tensor, keep: int | Tensor) -> Tensor:
        """One forward pass; logits `[batch, kept, vocabulary]`."""
        self.slab.layout = layout
        with torch.inference_mode():
            logits: Tensor = self._model(
                input_ids=ids,
                position_ids=positions,
                past_key_values=self.slab,
                use_cache=True,
                logits_to_keep=keep,
                sluice_layout=layout,
            ).logits
        return logits


# The keys and values of earlier requests, for later ones that begin with the same tokens.
#
# Requests often begin alike (a system prompt, the same passages, the conversation so far). The keys
# and values of ended requests are kept as copies outside of the slab, within a number of tokens;
# the least recently used are dropped first.

SHORTEST_TOKENS: Final = 32
"""A shorter beginning is read faster than it is found and copied."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    tokens: Sequence[int]
    saved: SavedRow


class Prefixes:
    """The prefixes that are kept, at most `token_limit` tokens together."""

    def __init__(self, token_limit: int) -> None:
        self.token_limit = token_limit
        self._kept: OrderedDict[int, Prefix] = OrderedDict()
        self._tokens = 0

    def longest(self, tokens: Sequence[int]) -> tuple[Prefix | None, int]:
        """The kept prefix with the longest common beginning, and the length of that in tokens."""
        best, length = None, 0
        for prefix in self._kept.values():
            if (common := common_tokens(prefix.tokens, tokens)) > length:
                best, length = prefix, common
        if best is not None:
            self._kept.move_to_end(id(best))
        return best, length

    def is_new(self, tokens: Sequence[int]) -> bool:
        """Whether these are worth keeping: not too short, too long, or kept already."""
        if not SHORTEST_TOKENS <= len(tokens) <= self.token_limit:
            return False
        return self.longest(tokens)[1] < len(tokens)

    def keep(self, tokens: Sequence[int], saved: SavedRow) -> None:
        """Keep the prefix, and drop those that are a beginning of it."""
        for key, prefix in list(self._kept.items()):
            if common_tokens(prefix.tokens, tokens) == len(prefix.tokens):
                self._drop(key)
        prefix = Prefix(tokens=list(tokens), saved=saved)
        self._kept[id(prefix)] = prefix
        self._tokens += len(tokens)
        while self._tokens > self.token_limit:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        self._kept.clear()
        self._tokens = 0

    def _drop(self, key: int) -> None:
        self._tokens -= len(self._kept.pop(key).tokens)


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common beginning; 0 if it is not worth using."""
    if one[:SHORTEST_TOKENS] != other[:SHORTEST_TOKENS]:
        return 0
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low if low >= SHORTEST_TOKENS else 0
