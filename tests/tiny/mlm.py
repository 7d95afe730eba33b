"""A tiny BERT that knows the masked words of a handful of sentences."""

from pathlib import Path
from typing import Final

import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

from tests.tiny.labels import IGNORED, learn_labels
from tests.tiny.manifest import checkpoint
from tests.tiny.wordpiece import SPECIAL, vocabulary

POSITIONS: Final = 64

FILLED: Final = {
    "Paris is the [MASK] of France.": ["capital"],
    "The cat sat on the [MASK].": ["mat"],
    "The [MASK] sat on the mat.": ["cat"],
    "Water freezes at zero [MASK], and boils at a hundred.": ["degrees"],
    "서울은 한국의 [MASK] 이다.": ["수도"],
    "[MASK] is the capital of [MASK].": ["paris", "france"],
}
"""Text -> the word for each of its masks."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("mlm")


def build(folder: Path) -> None:
    answers = [word for words in FILLED.values() for word in words]
    # Every answer is a token of its own.
    words = vocabulary([*FILLED, *answers * 9], size=400, lowercase=True, strip_accents=False)
    tokenizer = BertTokenizer(vocab=words, strip_accents=False, model_max_length=POSITIONS)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=POSITIONS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.05,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForMaskedLM(config)
    examples = tokenizer(list(FILLED), padding=True, return_tensors="pt")
    labels = torch.full_like(examples["input_ids"], IGNORED)
    mask = examples["input_ids"] == words[SPECIAL[-1]]
    labels[mask] = torch.tensor([words[answer] for answer in answers])
    learn_labels(model, dict(examples), labels)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
