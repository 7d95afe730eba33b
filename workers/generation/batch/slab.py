"""The keys and values of all requests under way: one slot a row, one column a token.

Each layer has keys and values `[rows, heads, tokens, dim]`. A row fills its columns from 0 on, at
its own pace; nothing is padded, and what lies behind a row's last token is never attended to. The
slab grows in steps within a budget of bytes, and changes its shape (fewer rows, more tokens, or
the reverse) where the budget asks for it. Who has which slot is `rows.py`'s business.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import Cache

from workers.generation.batch.attention import Layout

COLUMNS_STEP: Final = 128


@dataclass
class _Layer:
    keys: Tensor
    values: Tensor

    def both(self) -> tuple[Tensor, Tensor]:
        return self.keys, self.values


Saved = tuple[tuple[Tensor, Tensor], ...]
"""The keys and values of one row, `[heads, columns, dim]` for each layer."""


class Slab(Cache):
    """A cache for the models of transformers. A forward pass sets `layout` first.

    The last column is nobody's: what static shapes make a forward pass write too much goes there.
    """

    layout: Layout

    def __init__(self, row_limit: int) -> None:
        super().__init__(layers=[])
        self.rows = 0
        self.columns = 0
        self.token_limit = 0
        """How many tokens' keys and values the budget has room for."""
        self.shapes_taken = 0
        """Counts up whenever the tensors are replaced by others."""
        self._row_limit = row_limit
        self._slab: dict[int, _Layer] = {}

    @property
    def bytes_per_token(self) -> int:
        """Known after a first forward pass."""
        return sum(
            each[0, :, 0].numel() * each.element_size()
            for layer in self._slab.values()
            for each in layer.both()
        )

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write the new keys and values where the layout says; return what it lets be seen."""
        layer = self._slab.get(layer_idx)
        if layer is None:
            layer = _Layer(self._empty(key_states), self._empty(value_states))
            self._slab[layer_idx] = layer
        slots, columns = self.layout.places(key_states.device)
        layer.keys[slots, :, columns] = key_states.transpose(1, 2).flatten(0, 1)
        layer.values[slots, :, columns] = value_states.transpose(1, 2).flatten(0, 1)
        return self.layout.visible(layer.keys), self.layout.visible(layer.values)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 (the interface's)
        """Nothing that a model may derive from this holds for rows of different lengths; forward
        passes bring positions with them."""
        return 0

    def fits(self, rows: int, tokens: int) -> bool:
        return self._shape_for(rows, tokens) is not None

    def reserve(self, rows: int, tokens: int) -> bool:
        """Make room for so many rows of so many tokens, whatever shape that takes; False where
        the budget forbids it. Both count all that is in use: what lies beyond may be lost."""
        shape = self._shape_for(rows, tokens)
        if shape is None:
            return False
        if shape != (self.rows, self.columns):
            kept = (min(self.rows, shape[0]), min(self.columns, shape[1]))
            self.rows, self.columns = shape
            self.shapes_taken += 1
            for layer in self._slab.values():
                # One tensor at a time, so that old and new exist together for no more than one.
                layer.keys = self._reshaped(layer.keys, *kept)
                layer.values = self._reshaped(layer.values, *kept)
        return True

    def drop(self) -> None:
        """Forget everything."""
        self._slab.clear()
        self.rows = self.columns = 0
        self.shapes_taken += 1

    def move(self, source: int, target: int, columns: int) -> None:
        for each in self._tensors():
            each[target, :, :columns] = each[source, :, :columns]

    def swap(self, one: int, other: int, columns: int) -> None:
        for each in self._tensors():
            kept = each[one, :, :columns].clone()
            each[one, :, :columns] = each[other, :, :columns]
            each[other, :, :columns] = kept

    def save(self, slot: int, columns: int) -> Saved:
        return tuple(
            (layer.keys[slot, :, :columns].clone(), layer.values[slot, :, :columns].clone())
            for _, layer in sorted(self._slab.items())
        )

    def restore(self, saved: Saved, slot: int, columns: int) -> None:
        for (keys, values), (_, layer) in zip(saved, sorted(self._slab.items()), strict=True):
            layer.keys[slot, :, :columns] = keys[:, :columns]
            layer.values[slot, :, :columns] = values[:, :columns]

    def _tensors(self) -> Sequence[Tensor]:
        return [each for layer in self._slab.values() for each in layer.both()]

    def _shape_for(self, rows: int, tokens: int) -> tuple[int, int] | None:
        columns = -(-(tokens + 1) // COLUMNS_STEP) * COLUMNS_STEP
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
        """Zeros: what was never written has to be finite, since it is multiplied by zero."""
        shape = (self.rows, like.shape[1], self.columns, like.shape[3])
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def _reshaped(self, old: Tensor, rows: int, columns: int) -> Tensor:
        new = self._empty(old)
        new[:rows, :, :columns] = old[:rows, :, :columns]
        return new
