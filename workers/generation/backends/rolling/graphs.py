"""Decode steps of static shapes, replayed as CUDA graphs: no launch of a kernel waits for Python.

Rows are padded to the next of `ROWS`, the span to a power of two, and one graph is captured for
each pair, at its first use. What padding rows write goes to the slab's last column, which is
nobody's. A graph knows the addresses of the tensors that it reads and does not keep them alive:
each step holds its own, and the slab's are gone when its shape changes, and the graphs with them.
On a processor the same padded step runs without capture. Where a step cannot be captured, decode
steps run as they do without graphs, and the log says so.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from workers.generation.backends.rolling.attention import DecodeLayout, Network

log = logging.getLogger(__name__)

ROWS: Final = (1, 2, 4, 8, 16, 32, 64)
SPAN_LEAST: Final = 128
WARM_UP_RUNS: Final = 2

ForwardPass = Callable[[], Tensor]
Capture = Callable[[ForwardPass], ForwardPass]
"""Makes a replay of a run. The replay need not keep alive what the run reads."""


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """`tokens` is `[3, rows]`: ids, columns to write to, positions; `slots` is `[rows]`. A replay
    reads both where they lie, so both live as long as it does."""

    tokens: Tensor
    slots: Tensor
    replay: ForwardPass


class CudaCapture:
    """Captures on one device. All graphs share one pool of memory: one at a time is replayed, and
    what it computed is copied before the next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, run: ForwardPass) -> ForwardPass:
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                run()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = run()
        self._pool = graph.pool()

        def replay() -> Tensor:
            graph.replay()
            # The next replay writes into the same memory.
            return logits.clone()

        return replay


def _as_it_is(run: ForwardPass) -> ForwardPass:
    return run


class StaticDecode:
    """The `decode` of a network, with static shapes."""

    def __init__(self, network: Network, capture: Callable[[], Capture] | None = None) -> None:
        """`capture` makes what captures steps, anew for each shape of the slab; by default CUDA's
        on a GPU, and nothing elsewhere."""
        self._network = network
        self._new_capture = capture or (lambda: _default_capture(network.device))
        self._capture = self._new_capture()
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._shapes_taken = -1
        self._is_off = False

    @staticmethod
    def padded_rows(rows: int) -> int:
        """How many rows the slab has to have for so many."""
        return next((count for count in ROWS if count >= rows), rows)

    def decode(self, ids: Sequence[int], columns: Sequence[int]) -> Tensor:
        """As `Network.decode`."""
        slab = self._network.slab
        if self._shapes_taken != slab.shapes_taken:
            # Graphs know the addresses of tensors that are gone.
            self._graphs.clear()
            self._capture = self._new_capture()
            self._shapes_taken = slab.shapes_taken
        rows = self.padded_rows(len(ids))
        span = min(max(SPAN_LEAST, 1 << max(columns).bit_length()), slab.columns)
        graph = self._graph(rows, span)
        if graph is None:
            return self._network.decode(ids, columns)
        padding = rows - len(ids)
        last = slab.columns - 1
        graph.tokens.copy_(
            torch.tensor(
                [
                    [*ids, *[0] * padding],
                    [*columns, *[last] * padding],
                    [*columns, *[0] * padding],
                ]
            )
        )
        return graph.replay()[: len(ids)]

    def _graph(self, rows: int, span: int) -> _Graph | None:
        """None where the model's steps cannot be captured."""
        if not self._is_off and (rows, span) not in self._graphs:
            try:
                self._graphs[rows, span] = self._made(rows, span)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                # Such as 8-bit layers, which wait for the device in the middle of a step.
                log.warning("decode steps cannot be captured and run without graphs: %s", error)
                self._is_off = True
                self._graphs.clear()
        return self._graphs.get((rows, span))

    def _made(self, rows: int, span: int) -> _Graph:
        device = self._network.device
        tokens = torch.zeros(3, rows, dtype=torch.long, device=device)
        # Warming up must not write where rows are.
        tokens[1] = self._network.slab.columns - 1
        slots = torch.arange(rows, device=device)

        def run() -> Tensor:
            layout = DecodeLayout(slots, tokens[1], span)
            return self._network.run(layout, tokens[0][:, None], tokens[2][:, None], 1)[:, -1]

        return _Graph(tokens=tokens, slots=slots, replay=self._capture(run))


def _default_capture(device: torch.device) -> Capture:
    return CudaCapture(device) if device.type == "cuda" else _as_it_is
