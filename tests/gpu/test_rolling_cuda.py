"""The rolling batch on a GPU: in 4 bits and in bfloat16, with CUDA graphs and without."""

from pathlib import Path

import pytest
import torch

from shared.config import Settings
from tests.tiny_models import Answerer
from workers.generation.backends.interface import Message, Request, Role, Sampling
from workers.generation.backends.rolling.generator import RollingBackend, RollingGenerator

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def made(answerer: Answerer, precision: str, *, graphs: bool) -> RollingGenerator:
    settings = Settings(
        _env_file=None,
        generation_precision=precision,
        generation_device="cuda",
        generation_cuda_graphs=graphs,
        generation_kv_mib=256,
    )
    return RollingBackend(settings, on_fatal=lambda: None).generator(str(Path(answerer.path)))


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("precision", ["nf4", "int8", "bfloat16", "float32"])
def test_every_question_is_answered_right_in_a_crowd(
    answerer: Answerer, precision: str, graphs: bool
) -> None:
    generator = made(answerer, precision, graphs=graphs)
    try:
        questions = list(answerer.questions) * 4
        running = [
            generator.start(
                Request(
                    messages=(Message(role=Role.USER, content=question),),
                    sampling=Sampling(max_tokens=300),
                )
            )
            for question in questions
        ]
        answers = [generation.result().text for generation in running]
        assert answers == [answerer.questions[question] for question in questions]
        assert generator.counters.largest_batch > 8
    finally:
        generator.close()


def test_out_of_memory_fails_nobody(answerer: Answerer) -> None:
    """All but a little of the device is taken while the batch runs."""
    generator = made(answerer, "nf4", graphs=False)
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(max(0, free - 64 * 2**20), dtype=torch.uint8, device="cuda")
    try:
        running = [
            generator.start(Request(prompt=question, sampling=Sampling(max_tokens=200)))
            for question in list(answerer.questions) * 8
        ]
        assert all(generation.result().completion_tokens >= 0 for generation in running)
    finally:
        del hog
        torch.cuda.empty_cache()
        generator.close()
