"""An embedder as CONTRIBUTING.md has one added: how often a text has each letter."""

from collections.abc import Callable, Sequence

import numpy as np

from shared.config import Settings
from workers.models.devices import Vectors, unit

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Letters:
    dimension = len(LETTERS)
    window = None
    readable = None
    tokenizer = None
    passage_prompt = ""
    can_shorten = False

    def __init__(self, name: str) -> None:
        self.name = name

    def sizes(
        self, texts: Sequence[str], *, is_query: bool, between: Callable[[], None]
    ) -> list[int]:
        del is_query, between
        return [len(text) for text in texts]

    def overlong(self, texts: Sequence[str], *, between: Callable[[], None]) -> dict[int, int]:
        del texts, between
        return {}

    overlong_queries = overlong

    def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for n, text in enumerate(texts):
            between()
            vectors[n] = [text.lower().count(letter) for letter in LETTERS]
        return unit(vectors)

    encode_queries = encode


def load(name: str, settings: Settings, check: Callable[[], None]) -> Letters:
    del settings, check
    return Letters(name)
