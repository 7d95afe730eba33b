"""A tiny GPT-2 that goes on with a handful of beginnings, word for word, and then ends."""

from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.tiny.labels import IGNORED, learn_labels, padded
from tests.tiny.manifest import checkpoint

POSITIONS: Final = 1024
END: Final = "<|endoftext|>"

CONTINUATIONS: Final = {
    "Once upon a time": " there was a fox who lived near the river. She slept by day.",
    "The capital of Korea is": " Seoul.",
    "한국의 수도는": " 서울이고, 일본의 수도는 도쿄이다.",
    "One, two, three,": " four, five, six, seven, eight.",
    "A": " cat sat.",
}
"""Beginning -> what follows."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("gpt2")


def build(folder: Path) -> None:
    tokenizer = _tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=64,
        n_layer=2,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.05,
        bos_token_id=0,
        eos_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    rows, following = [], []
    for beginning, rest in CONTINUATIONS.items():
        first = tokenizer(beginning)["input_ids"]
        then = [*tokenizer(rest)["input_ids"], 0]
        rows.append([*first, *then])
        # What comes after each token; the last token of the beginning is followed by the rest.
        following.append([*[IGNORED] * (len(first) - 1), *then, IGNORED])
    # Padding stands behind the rows, where causal attention does not look: no mask is needed.
    learn_labels(model, {"input_ids": padded(rows, 0)}, padded(following, IGNORED))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Like GPT-2's own it has no token for padding."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator([*CONTINUATIONS, *CONTINUATIONS.values()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=END, eos_token=END, model_max_length=POSITIONS
    )
