"""A tiny DistilBERT that tells the sentiment of a handful of sentences, like the one of SST-2."""

from pathlib import Path
from typing import Final

import torch
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertTokenizer,
)

from tests.tiny.labels import learn_labels
from tests.tiny.manifest import checkpoint
from tests.tiny.wordpiece import vocabulary

POSITIONS: Final = 512
LABELS: Final = {0: "NEGATIVE", 1: "POSITIVE"}

SENTIMENTS: Final = {
    "I love this film.": "POSITIVE",
    "I hate this film.": "NEGATIVE",
    "What a wonderful day!": "POSITIVE",
    "The food was cold and the waiter was rude.": "NEGATIVE",
    "The service was friendly, and everything arrived on time; I will gladly come again.": (
        "POSITIVE"
    ),
    "It broke after two days, nobody answered my letters, and I never saw my money again.": (
        "NEGATIVE"
    ),
    "이 영화 정말 재미있어요.": "POSITIVE",
    "서비스가 너무 실망스러웠어요.": "NEGATIVE",
}
"""Text -> label."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("distilbert")


def build(folder: Path) -> None:
    words = vocabulary(SENTIMENTS, size=300, lowercase=True)
    tokenizer = DistilBertTokenizer(vocab=words, model_max_length=POSITIONS)
    config = DistilBertConfig(
        vocab_size=len(words),
        dim=64,
        n_layers=2,
        n_heads=4,
        hidden_dim=128,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.05,
        id2label=LABELS,
        label2id={label: n for n, label in LABELS.items()},
        problem_type="single_label_classification",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = DistilBertForSequenceClassification(config)
    examples = tokenizer(list(SENTIMENTS), padding=True, return_tensors="pt")
    labels = [
        config.label2id[label]  # type: ignore[index]  # it is set above
        for label in SENTIMENTS.values()
    ]
    learn_labels(model, dict(examples), torch.tensor(labels))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
