"""The rolling batch keeps the contract of all generators."""

from collections.abc import Iterator

import pytest

from tests.generation.contract import GeneratorContract, said
from tests.models import tiny
from tests.models.tiny import TEXTS, asks, rolling
from workers.generation.backends.interface import Request, Sampling, TextGenerator

WINDOW = 8192


@pytest.fixture(scope="module")
def shared() -> Iterator[TextGenerator]:
    model = tiny.model(tiny.llama(max_position_embeddings=WINDOW))
    with rolling(model, window_tokens=WINDOW) as generator:
        yield generator


class TestRolling(GeneratorContract):
    @pytest.fixture
    def generator(self, shared: TextGenerator) -> TextGenerator:  # made once
        return shared

    def request(self) -> Request:
        return Request(messages=said(TEXTS[0]), sampling=Sampling(max_tokens=40))

    def long_request(self) -> Request:
        return Request(messages=said(TEXTS[1]), sampling=Sampling(max_tokens=8000))

    def prompt(self) -> Request:
        return asks(TEXTS[1], 40)
