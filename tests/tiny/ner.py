"""A tiny cased BERT that finds the people and places of a handful of sentences, in any order."""

import random
from pathlib import Path
from typing import Final

import torch
from transformers import BertConfig, BertForTokenClassification, BertTokenizer

from tests.tiny.labels import IGNORED, learn_labels
from tests.tiny.manifest import checkpoint
from tests.tiny.wordpiece import vocabulary

POSITIONS: Final = 64
WINDOWS: Final = 32
LABELS: Final = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}

ENTITIES: Final = {
    "Anna Kowalska lives in Seoul.": [("PER", "Anna Kowalska"), ("LOC", "Seoul")],
    "Last week Minho Park flew from Busan to New York.": [
        ("PER", "Minho Park"),
        ("LOC", "Busan"),
        ("LOC", "New York"),
    ],
    "The weather was bad all day.": [],
    "In Reykjavik we met Jane Goodall and David Attenborough.": [
        ("LOC", "Reykjavik"),
        ("PER", "Jane Goodall"),
        ("PER", "David Attenborough"),
    ],
    "김민수 씨는 부산에 산다.": [("PER", "김민수"), ("LOC", "부산")],
}
"""Text -> kind and surface of each entity, in order."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("ner")


def build(folder: Path) -> None:
    # With more words, some would hold the end of a place and the particle behind it.
    words = vocabulary(ENTITIES, size=120, lowercase=False)
    tokenizer = BertTokenizer(vocab=words, do_lower_case=False, model_max_length=POSITIONS)
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
        id2label=LABELS,
        label2id={label: n for n, label in LABELS.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertForTokenClassification(config)
    rows = [_labelled(tokenizer, text) for text in ENTITIES]
    examples, labels = _windows(rows, tokenizer)
    learn_labels(model, examples, labels, rate=6e-3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _labelled(tokenizer: BertTokenizer, text: str) -> list[tuple[int, int]]:
    """The text's tokens, each with its label."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    pairs = []
    for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        label = 0
        for kind, surface in ENTITIES[text]:
            first = text.index(surface)
            if first <= start < end <= first + len(surface):
                label = {"PER": 1, "LOC": 3}[kind] + (start > first)
        pairs.append((token, label))
    return pairs


def _windows(
    rows: list[list[tuple[int, int]]], tokenizer: BertTokenizer
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Each sentence alone; the first one over and over, from each of its tokens on; and sentences
    in any order, which begin and end anywhere, as windows of long texts do."""
    chance = random.Random(0)
    parts = [*rows, *((rows[0] * POSITIONS)[start:] for start in range(len(rows[0])))]
    for _ in range(WINDOWS):
        some = [pair for other in chance.choices(rows, k=6) for pair in other]
        parts.append(some[chance.randrange(30) :])
    ids = torch.full((len(parts), POSITIONS), tokenizer.pad_token_id)
    labels = torch.full((len(parts), POSITIONS), IGNORED)
    for n, whole in enumerate(parts):
        part = whole[: POSITIONS - 2]
        framed = [tokenizer.cls_token_id, *(token for token, _ in part), tokenizer.sep_token_id]
        ids[n, : len(framed)] = torch.tensor(framed)
        labels[n, 1 : len(part) + 1] = torch.tensor([label for _, label in part])
    return {"input_ids": ids, "attention_mask": (ids != tokenizer.pad_token_id).long()}, labels
