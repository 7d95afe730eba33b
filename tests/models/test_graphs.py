"""Captured decode steps: what a graph reads stays alive, and what cannot be captured runs anyway.

A graph is played by what a processor has: the run is recorded once, operation by operation, and
then thrown away as CUDA's is. What the operations read and did not make themselves is what a
replay would read again, at the same addresses.
"""

import gc
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import TensorWeakRef

from tests.models import tiny
from workers.generation.backends.rolling.attention import Network
from workers.generation.backends.rolling.generator import adapt
from workers.generation.backends.rolling.graphs import ForwardPass, StaticDecode

IDS = [5, 6, 7]
COLUMNS = [0, 0, 0]


class Reads(TorchDispatchMode):
    """The tensors that a run reads and does not make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own class has no types
        self.outside: list[TensorWeakRef] = []
        self._made: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = {id(tensor) for tensor in self._made}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor) and id(tensor) not in made:
                self.outside.append(TensorWeakRef(tensor))
        result = func(*args, **(kwargs or {}))
        self._made += [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        return result

    def end(self) -> None:
        """Let go of what the run made."""
        self._made.clear()


@pytest.fixture
def network() -> Network:
    network = adapt(tiny.model(tiny.llama()), 4)
    network.slab.token_limit = 4096
    network.slab.drop()
    assert network.slab.reserve(4, 100)
    return network


def test_what_a_captured_step_reads_lives_as_long_as_the_step(network: Network) -> None:
    recorded: list[Reads] = []

    def capture(run: ForwardPass) -> ForwardPass:
        with Reads() as reads:
            logits = run()
        recorded.append(reads)
        reads.end()
        return logits.clone

    steps = StaticDecode(network, lambda: capture)
    steps.decode(IDS, COLUMNS)
    network.decode(IDS, COLUMNS)  # the last layout is no longer the captured step's
    gc.collect()
    (reads,) = recorded
    assert len(reads.outside) > 10  # weights, keys and values, tokens, slots
    assert [ref for ref in reads.outside if ref() is None] == []


def test_steps_of_another_shape_of_the_slab_are_captured_anew(network: Network) -> None:
    captures = []

    def new_capture() -> Callable[[ForwardPass], ForwardPass]:
        captures.append(0)

        def capture(run: ForwardPass) -> ForwardPass:
            captures[-1] += 1
            return run

        return capture

    steps = StaticDecode(network, new_capture)
    steps.decode(IDS, COLUMNS)
    steps.decode(IDS, COLUMNS)
    steps.decode(IDS[:1], COLUMNS[:1])
    assert captures[-1] == 2
    before = len(captures)
    assert network.slab.reserve(4, 400)
    steps.decode(IDS, COLUMNS)
    assert captures[before:] == [1]


def test_what_cannot_be_captured_runs_without_graphs(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    attempts = []

    def capture(run: ForwardPass) -> ForwardPass:
        attempts.append(run)
        raise RuntimeError("operation not permitted when stream is capturing")

    steps = StaticDecode(network, lambda: capture)
    with caplog.at_level(logging.WARNING):
        logits = steps.decode(IDS, COLUMNS)
        again = steps.decode(IDS, COLUMNS)
    expected = network.decode(IDS, COLUMNS)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(again, expected)
    assert len(attempts) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "decode steps cannot be captured and run without graphs: "
        "operation not permitted when stream is capturing"
    ]


def test_a_lack_of_memory_is_not_hidden(network: Network) -> None:
    """The scheduler frees some and tries again."""

    def capture(_: ForwardPass) -> ForwardPass:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        StaticDecode(network, lambda: capture).decode(IDS, COLUMNS)
