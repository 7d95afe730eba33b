"""Every architecture over the slab, in fp32: the same tokens as `generate()` alone gives, in
whatever order and company requests run."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from shared.errors import ConfigurationError
from tests.models import tiny
from tests.models.tiny import SHAPE, TEXTS, Reference, asks, ids_of, rolling
from workers.generation.backends.interface import Generation

# Shorter than the texts, so that windows slide within prompts and within answers.
WINDOW = 16


def _grouped(kind: Callable[..., PreTrainedConfig], **options: Any) -> PreTrainedConfig:
    return kind(vocab_size=tiny.vocabulary(), **{**SHAPE, "num_key_value_heads": 2, **options})


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: tiny.llama(),
    "llama-multi-query": lambda: tiny.llama(num_key_value_heads=1),
    "qwen2": lambda: _grouped(
        Qwen2Config, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
    ),
    "qwen3": lambda: _grouped(Qwen3Config, head_dim=32),
    "mistral": lambda: _grouped(MistralConfig, sliding_window=WINDOW),
    "mixtral": lambda: _grouped(MixtralConfig, num_local_experts=4),
    "gemma": lambda: _grouped(GemmaConfig, num_key_value_heads=1, head_dim=16),
    "gemma2": lambda: _grouped(
        Gemma2Config, head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=2.0
    ),
    "gemma3": lambda: _grouped(
        Gemma3TextConfig,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "phi": lambda: PhiConfig(vocab_size=tiny.vocabulary(), **SHAPE),
    "phi3": lambda: _grouped(Phi3Config, sliding_window=WINDOW),
    "gpt-oss": lambda: _grouped(
        GptOssConfig,
        head_dim=16,
        sliding_window=WINDOW,
        num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=tiny.vocabulary(),
        n_embd=64,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


def _prompts(count: int, chooser: random.Random) -> list[tuple[str, int]]:
    """Many share beginnings of different lengths."""
    made = []
    for _ in range(count):
        text = " ".join([TEXTS[chooser.randrange(2)]] * 6)
        made.append((text[: chooser.randint(1, len(text))], chooser.randint(1, 24)))
    return made


@pytest.mark.parametrize("name", CONFIGS)
def test_any_company_gives_the_tokens_of_generate(name: str) -> None:
    model = tiny.model(CONFIGS[name]())
    reference = Reference(model)
    chooser = random.Random(name)
    cases = _prompts(9, chooser)
    with rolling(model, generation_prefill_tokens=7, generation_batch_requests=5) as generator:
        started: list[Generation] = []
        for prompt, tokens in cases:
            if chooser.random() < 0.3 and started:
                started[-1].result()
            started.append(generator.start(asks(prompt, tokens)))
        answers = [ids_of(generation) if not generation.is_over else None for generation in started]
        counters = generator.counters
    ids = tiny.tokenizer()
    for (prompt, tokens), got in zip(cases, answers, strict=True):
        if got is not None:
            assert got == reference.greedy(ids(prompt).input_ids, tokens)
    assert counters.largest_batch > 1
    assert counters.prefix_tokens_reused > 0


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_static_shapes_give_the_same(name: str) -> None:
    model = tiny.model(CONFIGS[name]())
    reference = Reference(model)
    cases = _prompts(6, random.Random(name))
    with rolling(model, generation_cuda_graphs=True, generation_prefill_tokens=16) as generator:
        started = [generator.start(asks(prompt, tokens)) for prompt, tokens in cases]
        answers = [ids_of(generation) for generation in started]
    ids = tiny.tokenizer()
    for (prompt, tokens), got in zip(cases, answers, strict=True):
        assert got == reference.greedy(ids(prompt).input_ids, tokens)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt-oss"])
def test_rows_of_very_unequal_lengths(name: str) -> None:
    model = tiny.model(CONFIGS[name]())
    reference = Reference(model)
    cases = [(TEXTS[0] * 12, 20), (TEXTS[1], 26), (TEXTS[0], 23), ("hello", 20)]
    with rolling(model) as generator:
        started = [generator.start(asks(prompt, tokens)) for prompt, tokens in cases]
        answers = [ids_of(generation) for generation in started]
        assert generator.counters.largest_batch == 4
    ids = tiny.tokenizer()
    for (prompt, tokens), got in zip(cases, answers, strict=True):
        assert got == reference.greedy(ids(prompt).input_ids, tokens)


def test_an_architecture_that_attends_otherwise_is_refused() -> None:
    from transformers import BloomConfig

    config = BloomConfig(vocab_size=tiny.vocabulary(), hidden_size=64, n_layer=2, n_head=4)
    with pytest.raises(ConfigurationError, match="BloomForCausalLM"), rolling(tiny.model(config)):
        pass


def test_layers_of_another_kind_are_refused() -> None:
    from transformers import Qwen3NextConfig

    config = _grouped(
        Qwen3NextConfig,
        head_dim=16,
        layer_types=["linear_attention", "full_attention"],
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    )
    with pytest.raises(ConfigurationError, match="linear_attention"), rolling(tiny.model(config)):
        pass
