"""Folders of models, made in no time: true architectures with random weights, right about nothing.

Their weights are large enough only to be weights.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from workers.models.load import LoadOptions

SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
WORDS = (*SPECIAL.values(), "rivers", "run", "to", "the", "sea")
HIDDEN = 16

OPTIONS = LoadOptions(device=torch.device("cpu"), dtype=torch.float32)

HEADS: dict[str, type[PreTrainedModel]] = {
    "classifier": BertForSequenceClassification,
    "fill_mask": BertForMaskedLM,
    "answerer": BertForQuestionAnswering,
    "encoder": BertModel,
}


def save(folder: Path, kind: str, **config: Any) -> Path:
    """A tiny BERT with the head of that kind, and its tokenizer."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": HIDDEN,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": HIDDEN,
        "max_position_embeddings": 32,
    }
    HEADS[kind](BertConfig(**sizes | config)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    words = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, **SPECIAL).save_pretrained(folder)


def as_pickle(folder: Path) -> Path:
    """The same weights in `pytorch_model.bin`."""
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def configure(folder: Path, **changes: Any) -> None:
    """Change `config.json`; None takes an entry out."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def make_sentence_transformer(folder: Path, *modules: tuple[str, str]) -> Path:
    """Of a folder with an encoder; `modules` are further modules and their folders."""
    listed = [("sentence_transformers.models.Transformer", ""), *modules]
    described = [
        {"idx": n, "name": str(n), "path": path, "type": kind}
        for n, (kind, path) in enumerate(listed)
    ]
    (folder / "modules.json").write_text(json.dumps(described))
    return folder


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))
