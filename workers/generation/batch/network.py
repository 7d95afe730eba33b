"""A causal language model over the slab: token ids in, logits of the next tokens out.

`prefill` runs pieces of several prompts in one pass, `decode` one token of every row. Both leave
the keys and values in the slab. No requests and no text in here.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from workers.generation.batch.attention import Chunk, DecodeLayout, Layout, PackedLayout
from workers.generation.batch.slab import Slab

SPAN_STEP = 64


class Network:
    """For one thread at a time."""

    def __init__(self, model: PreTrainedModel, slab: Slab) -> None:
        self.slab = slab
        embedding = model.get_input_embeddings().weight
        assert isinstance(embedding, Tensor)
        self.device = embedding.device
        self.vocabulary_tokens = len(embedding)
        self._model = model

    def prefill(self, chunks: Sequence[Chunk], wanted: Sequence[bool]) -> Tensor:
        """Logits `[count of wanted, vocabulary]` behind the last token of each wanted chunk."""
        layout = PackedLayout(chunks, self.device)
        ids = torch.tensor([[each for chunk in chunks for each in chunk.ids]], device=self.device)
        ends, last = [], -1
        for chunk, is_wanted in zip(chunks, wanted, strict=True):
            last += len(chunk.ids)
            if is_wanted:
                ends.append(last)
        # A model computes the logits of one token at least.
        keep = torch.tensor(ends or [last], device=self.device)
        return self.run(layout, ids, layout.places(self.device)[1][None], keep)[0, : len(ends)]

    def decode(self, ids: Sequence[int], columns: Sequence[int]) -> Tensor:
        """Logits `[rows, vocabulary]`; row i is in slot i, and its token goes into column i."""
        span = min(-(-(max(columns) + 1) // SPAN_STEP) * SPAN_STEP, self.slab.columns)
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
