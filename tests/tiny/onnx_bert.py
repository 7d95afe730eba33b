"""A tiny BERT as ONNX, in a folder such as fastembed reads: random weights, always the same.

It is not trained, so tests make it where they need it.
"""

import json
import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from tests.tiny.wordpiece import SPECIAL, vocabulary

HIDDEN = 32
WINDOW_TOKENS = 64
TEXTS = (
    "A cat sleeps. Trains run every thirty minutes, and dogs bark in the garden at night.",
    "고양이는 낮에 자고 기차는 밤에 다닙니다.",
    "abcdefghijklmnopqrstuvwxyz 0123456789 search_query: passage word short",
)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "last_hidden_state"


class _LastHiddenState(torch.nn.Module):
    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        state: torch.Tensor = self.model(ids, mask, types).last_hidden_state
        return state


def save_bert(folder: Path) -> None:
    folder.mkdir(parents=True)
    words = vocabulary(TEXTS, size=400, lowercase=True)
    tokenizer = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, words[name]) for name in SPECIAL[2:4]]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    limit = {"model_max_length": WINDOW_TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | limit))
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    torch.manual_seed(14)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * HIDDEN,
        max_position_embeddings=WINDOW_TOKENS,
    )
    config.save_pretrained(folder)
    ids = torch.ones(2, 5, dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, of parts of BERT that do not matter
        torch.onnx.export(
            _LastHiddenState(BertModel(config).eval()),
            (ids, ids, torch.zeros_like(ids)),
            str(folder / "model.onnx"),
            input_names=list(INPUTS),
            output_names=[OUTPUT],
            dynamic_axes={name: {0: "texts", 1: "tokens"} for name in (*INPUTS, OUTPUT)},
            opset_version=17,
            dynamo=False,
        )
