"""How fast the embedding models of docs/models.md are on one core, and what memory they take.

    python -m bench.retrieval.embedding_models [--rounds N] [--only NAME ...]

Models are built with random weights in their true shapes: time and memory depend on the shape
alone, and no weights are fetched. Measured is the processor time of the forward pass over chunks of
256 tokens, four at once, on one thread, in the type that Sluice picks for this processor, with
the default model's in the same round. Says nothing of how well a model finds.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma3TextConfig,
    Gemma3TextModel,
    PreTrainedModel,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from workers.models.devices import cpu_is_fast_in_bfloat16

TOKENS: Final = 256
CHUNKS: Final = 4
BASE: Final = "all-MiniLM-L6-v2"
XLM_R: Final = {"vocab_size": 250_002, "max_position_embeddings": 514}


def _bert(vocabulary: int, layers: int) -> PreTrainedModel:
    return BertModel(
        BertConfig(
            vocab_size=vocabulary, hidden_size=384, num_hidden_layers=layers,
            num_attention_heads=12, intermediate_size=1536,
        )
    )  # fmt: skip


def _xlm_r(size: int, layers: int, heads: int, **more: int) -> PreTrainedModel:
    shape: dict[str, Any] = XLM_R | more
    return XLMRobertaModel(
        XLMRobertaConfig(
            hidden_size=size, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * size, **shape,
        )
    )  # fmt: skip


def _qwen3() -> PreTrainedModel:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=151_669, hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
            num_attention_heads=16, num_key_value_heads=8, head_dim=128,
        )
    )  # fmt: skip


def _gemma() -> PreTrainedModel:
    return Gemma3TextModel(
        Gemma3TextConfig(
            vocab_size=262_144, hidden_size=768, intermediate_size=1152, num_hidden_layers=24,
            num_attention_heads=3, num_key_value_heads=1, head_dim=256, sliding_window=512,
            use_bidirectional_attention=True,
        )
    )  # fmt: skip


SHAPES: Mapping[str, Callable[[], PreTrainedModel]] = {
    BASE: lambda: _bert(30_522, 6),
    "granite-embedding-107m-multilingual": lambda: _xlm_r(384, 6, 12),
    "multilingual-e5-small, paraphrase-multilingual-MiniLM-L12-v2": lambda: _bert(250_037, 12),
    "multilingual-e5-base, granite-embedding-278m-multilingual": lambda: _xlm_r(768, 12, 12),
    "embeddinggemma-300m": _gemma,
    "bge-m3, multilingual-e5-large, KURE-v1, arctic-embed-l-v2.0": lambda: _xlm_r(
        1024, 24, 16, max_position_embeddings=8194
    ),
    "Qwen3-Embedding-0.6B": _qwen3,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if cpu_is_fast_in_bfloat16() else torch.float32
    print(f"{dtype}, chunks of {TOKENS} tokens, {CHUNKS} at once, one thread")
    print(f"{'model':62}{'parameters':>12}{'MiB':>8}{'chunks/s':>10}{'of MiniLM':>11}")
    base = _build(BASE, dtype)
    for name in SHAPES:
        if arguments.only and not any(part in name for part in arguments.only):
            continue
        model = base if name == BASE else _build(name, dtype)
        ratios, rates = [], []
        for _ in range(arguments.rounds):
            rate = CHUNKS / _seconds(model)
            rates.append(rate)
            ratios.append(rate * _seconds(base) / CHUNKS)
        count = sum(parameter.numel() for parameter in model.parameters())
        mib = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
        print(
            f"{name:62}{count / 1e6:10.0f} M{mib:8,.0f}{statistics.median(rates):10.2f}"
            f"{statistics.median(ratios):11.3f}",
            flush=True,
        )
        del model
        gc.collect()


def _build(name: str, dtype: torch.dtype) -> PreTrainedModel:
    model = SHAPES[name]()
    model.to(dtype=dtype)  # type: ignore[call-arg]  # a decorator of transformers hides its types
    model.eval()
    return model


@torch.inference_mode()
def _seconds(model: PreTrainedModel) -> float:
    """Of processor time, for `CHUNKS` chunks."""
    ids = torch.randint(10, 30_000, (CHUNKS, TOKENS))
    start = time.process_time()
    model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return time.process_time() - start


if __name__ == "__main__":
    main()
