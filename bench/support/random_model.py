"""Language models with random weights, saved like any other, for measuring speed alone.

Llama shapes with grouped-query attention. The tokenizer knows printable ASCII and was trained on
nothing: a prompt has as many tokens as characters. No token ends a text, so a text is exactly as
long as asked.
"""

from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
    },
    "90m": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 11,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32_000,
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
}
WINDOW_TOKENS: Final = 8192
PAD: Final = "<pad>"
CHAT_TEMPLATE: Final = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
"""The prompt is what the messages say and nothing more."""


def save_random_model(folder: Path, shape: str, *, device: str = "cpu", seed: int = 0) -> int:
    """Make the weights on the device, in bfloat16; returns how many parameters there are."""
    config = LlamaConfig(
        **SHAPES[shape],
        max_position_embeddings=WINDOW_TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    _tokenizer(config.vocab_size).save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    letters = [PAD, "Ġ", *map(chr, range(33, 127))]  # the first letter stands for the space
    # Nothing is written with the others, but a random model generates them.
    names = [*letters, *(f"<{number}>" for number in range(len(letters), vocabulary))]
    bpe = Tokenizer(models.BPE(vocab={name: n for n, name in enumerate(names)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        padding_side="left",
        model_max_length=WINDOW_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )
