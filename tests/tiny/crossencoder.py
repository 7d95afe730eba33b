"""A tiny cross-encoder that knows which text answers which of a handful of queries."""

from pathlib import Path
from typing import Final

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from tests.tiny.labels import learn_labels
from tests.tiny.manifest import checkpoint
from tests.tiny.wordpiece import vocabulary

POSITIONS: Final = 128

ANSWERS: Final = {
    "How many people live in Berlin?": "Berlin had 3,520,031 inhabitants in 2019.",
    "What is Berlin known for?": "The city is well known for its museums, and for its music.",
    "Who wrote Moby-Dick?": "Herman Melville, who had been a sailor himself, wrote the novel.",
    "한국의 수도는 어디인가요?": "서울은 한국의 수도이다.",
}
"""Query -> the text that answers it, which no other query's text does."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("crossencoder")


def build(folder: Path) -> None:
    words = vocabulary([*ANSWERS, *ANSWERS.values()], size=300, lowercase=True, strip_accents=False)
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
        num_labels=1,  # type: ignore[call-arg]  # a property, which mypy takes for no field
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
    pairs = [(query, text) for query in ANSWERS for text in ANSWERS.values()]
    examples = tokenizer(
        [query for query, _ in pairs],
        [text for _, text in pairs],
        padding=True,
        return_tensors="pt",
    )
    labels = [int(ANSWERS[query] == text) for query, text in pairs]
    learn_labels(model, dict(examples), torch.tensor(labels))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
