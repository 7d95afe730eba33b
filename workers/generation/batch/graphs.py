"""Decode steps of static shapes, replayed as CUDA graphs: no launch of a kernel waits for Python.

Rows are padded to the next of `ROWS`, the span to a power of two, and one graph is captured for
each pair, at its first use. What padding rows write goes to the slab's last column, which is
nobody's. On a processor the same padded step runs without capture. Written and tested for its
results on a processor; on a GPU it is unmeasured, and off unless a setting says otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from workers.generation.batch.attention import DecodeLayout
from workers.generation.batch.network import Network

ROWS: Final = (1, 2, 4, 8, 16, 32, 64)
SPAN_LEAST: Final = 128
WARM_UP_RUNS: Final = 2


@dataclass(frozen=True, kw_only=True)
class _Step:
    """`tokens` is `[3, rows]`: ids, columns to write to, positions."""

    tokens: Tensor
    run: Callable[[], Tensor]


class StaticSteps:
    """The `decode` of a network, with static shapes."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._steps: dict[tuple[int, int], _Step] = {}
        self._shapes_taken = -1

    @staticmethod
    def padded_rows(rows: int) -> int:
        """How many rows the slab has to have for so many."""
        return next((each for each in ROWS if each >= rows), rows)

    def decode(self, ids: Sequence[int], columns: Sequence[int]) -> Tensor:
        """As `Network.decode`."""
        slab = self._network.slab
        if self._shapes_taken != slab.shapes_taken:
            # Graphs know the addresses of tensors that are gone.
            self._steps.clear()
            self._shapes_taken = slab.shapes_taken
        rows = self.padded_rows(len(ids))
        span = min(max(SPAN_LEAST, 1 << max(columns).bit_length()), slab.columns)
        if (rows, span) not in self._steps:
            self._steps[rows, span] = self._made(rows, span)
        step = self._steps[rows, span]
        padding = rows - len(ids)
        last = slab.columns - 1
        step.tokens.copy_(
            torch.tensor(
                [
                    [*ids, *[0] * padding],
                    [*columns, *[last] * padding],
                    [*columns, *[0] * padding],
                ]
            )
        )
        return step.run()[: len(ids)]

    def _made(self, rows: int, span: int) -> _Step:
        device = self._network.device
        tokens = torch.zeros(3, rows, dtype=torch.long, device=device)
        # Warming up must not write where rows are.
        tokens[1] = self._network.slab.columns - 1
        slots = torch.arange(rows, device=device)

        def run() -> Tensor:
            layout = DecodeLayout(slots, tokens[1], span)
            return self._network.run(layout, tokens[0][:, None], tokens[2][:, None], 1)[:, -1]

        if device.type != "cuda":
            return _Step(tokens=tokens, run=run)
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types for it
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                run()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = run()

        def replay() -> Tensor:
            graph.replay()
            # The next replay writes into the same memory.
            return logits.clone()

        return _Step(tokens=tokens, run=replay)
