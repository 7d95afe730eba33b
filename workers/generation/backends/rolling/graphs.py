"""Decode steps of static shapes, replayed as CUDA graphs: no launch of a kernel waits for Python.

Rows are padded to the next of `ROWS`, the span to a power of two, and one graph is captured for
each pair of them, at its first use. Padding rows write to the slab's last column, which belongs to
no row. A graph has the addresses of the tensors that it reads, but does not keep them alive:
`_Graph` holds its own tensors, and when the slab gets another shape, all graphs are dropped. On a
processor the same padded step runs without capture. If a step cannot be captured, decode steps run
without graphs, and the log says so.
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
"""Makes a replay of a forward pass. It need not keep alive the tensors that the pass reads."""


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """`tokens` is `[3, rows]`: ids, columns to write to, positions; `slots` is `[rows]`. The replay
    reads both at their addresses, so they must live as long as it does."""

    tokens: Tensor
    slots: Tensor
    replay: ForwardPass


class CudaCapture:
    """Captures on one device. All graphs can share one pool of memory: one is replayed at a time,
    and its result is copied before the next."""

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


def _run_uncaptured(run: ForwardPass) -> ForwardPass:
    return run


class StaticDecode:
    """The `decode` of a network, with static shapes."""

    def __init__(self, network: Network, capture: Callable[[], Capture] | None = None) -> None:
        """`capture` is called for each shape of the slab, and makes the capture of its steps. The
        default captures CUDA graphs on a GPU, and nothing elsewhere."""
        self._network = network
        self._new_capture = capture or (lambda: _default_capture(network.device))
        self._capture = self._new_capture()
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._seen_shape_version = -1
        self._is_off = False

    @staticmethod
    def padded_rows(rows: int) -> int:
        """How many rows the slab needs for a step of this many."""
        return next((count for count in ROWS if count >= rows), rows)

    def decode(self, ids: Sequence[int], columns: Sequence[int]) -> Tensor:
        """The same as `Network.decode`."""
        slab = self._network.slab
        if self._seen_shape_version != slab.shape_version:
            # Graphs know the addresses of tensors that are gone.
            self._graphs.clear()
            self._capture = self._new_capture()
            self._seen_shape_version = slab.shape_version
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
        """None if the model's steps cannot be captured."""
        if not self._is_off and (rows, span) not in self._graphs:
            try:
                self._graphs[rows, span] = self._capture_step(rows, span)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                # Such as 8-bit layers, which wait for the device in the middle of a step.
                log.warning("decode steps cannot be captured and run without graphs: %s", error)
                self._is_off = True
                self._graphs.clear()
        return self._graphs.get((rows, span))

    def _capture_step(self, rows: int, span: int) -> _Graph:
        device = self._network.device
        tokens = torch.zeros(3, rows, dtype=torch.long, device=device)
        # The warm-up runs write, too: into the column that belongs to no row.
        tokens[1] = self._network.slab.columns - 1
        slots = torch.arange(rows, device=device)

        def run() -> Tensor:
            layout = DecodeLayout(slots, tokens[1], span)
            return self._network.run(layout, tokens[0][:, None], tokens[2][:, None], 1)[:, -1]

        return _Graph(tokens=tokens, slots=slots, replay=self._capture(run))


def _default_capture(device: torch.device) -> Capture:
    return CudaCapture(device) if device.type == "cuda" else _run_uncaptured
