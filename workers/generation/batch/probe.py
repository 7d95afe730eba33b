"""Whether a model computes over the slab what it computes on its own.

A model whose architecture does not go through transformers' attention interface, or whose
attention needs more than keys, values, a window and a soft cap (ALiBi, recurrent states), would
answer, but wrongly. So a few tokens are run both ways when a model is loaded.
"""

from typing import Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.errors import ConfigurationError
from workers.generation.batch import attention
from workers.generation.batch.attention import SLUICE, Chunk
from workers.generation.batch.network import Network
from workers.generation.batch.slab import Slab

TOKENS: Final = 12
# Cosine of the two logits. Rounding in four bits leaves .999, a wrong attention below .9.
ALIKE: Final = 0.98
KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})


def adapt(model: PreTrainedModel, row_limit: int) -> Network:
    """The model over a slab, without room yet. Raises ConfigurationError where it cannot be."""
    name = type(model).__name__
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if strange := kinds - KNOWN_LAYERS:
        raise _unsupported(name, f"it has layers of the kind {', '.join(sorted(strange))}")
    network = Network(model, Slab(row_limit))
    ids = [number * 7919 % network.vocabulary_tokens for number in range(1, TOKENS + 1)]
    try:
        expected = _alone(model, ids)
        attention.register()
        model.set_attn_implementation(SLUICE)
        if model.config.get_text_config()._attn_implementation != SLUICE:
            raise _unsupported(name, "its attention cannot be exchanged")
        found = _over_slab(network, ids)
    except (TypeError, ValueError, AttributeError, KeyError, NotImplementedError) as error:
        raise _unsupported(name, str(error)) from error
    alike = torch.nn.functional.cosine_similarity(expected, found, dim=0).item()
    if not alike >= ALIKE:
        raise _unsupported(name, f"its attention differs (similarity {alike:.3f})")
    return network


def _alone(model: PreTrainedModel, ids: list[int]) -> Tensor:
    if model.config._attn_implementation == SLUICE:
        model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids], device=model.device), use_cache=False).logits
    return logits[0, -1].float()


def _over_slab(network: Network, ids: list[int]) -> Tensor:
    """Two rows, read in pieces of unlike lengths; the last token of one is decoded."""
    network.slab.token_limit = 4 * TOKENS * TOKENS
    network.slab.reserve(2, TOKENS)
    middle = TOKENS // 3
    first = [
        Chunk(slot=1, start=0, ids=ids[1:]),
        Chunk(slot=0, start=0, ids=ids[:middle]),
    ]
    network.prefill(first, [False, False])
    network.prefill([Chunk(slot=0, start=middle, ids=ids[middle:-1])], [True])
    logits = network.decode([ids[-1], ids[0]], [TOKENS - 1, TOKENS - 1])
    return logits[0].float()


def _unsupported(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"Models of the architecture {name} cannot share a batch here: {reason}. Serve this one "
        "with another server, and name it as `ollama/...` or `openai/...`."
    )
