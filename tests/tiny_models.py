"""The tiny chat model that answers exactly, and how tests run tiny models.

Greedy, the model answers what `tests/tiny_lessons.py` lists, word for word, in fp32, in bf16 and in
NF4, whatever stands before the question. `tests/tiny/llama.py` trains it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.tiny.manifest import checkpoint
from tests.tiny_lessons import QUESTIONS


@dataclass(frozen=True, kw_only=True)
class Answerer:
    path: Path
    questions: dict[str, str]


def load_answerer() -> Answerer:
    return Answerer(path=checkpoint("answerer"), questions=dict(QUESTIONS))


@contextmanager
def one_thread() -> Iterator[None]:
    """More threads win a third on an idle machine, and wait for each other on a busy one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
