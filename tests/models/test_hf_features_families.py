"""Vectors of tokens from models of other families than BERT's: those of transformers' pipeline."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BartConfig,
    BartModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
)

from shared.kinds.hf import Task
from tests.models.hf_tasks import OPTIONS, outputs, reference_pipeline
from tests.tiny.roberta_qa import byte_level_tokenizer
from workers.hf.tasks import sentences
from workers.hf.tasks.sentences import TokenFeatures

FEATURES = Task("feature-extraction")
TEXTS = [
    "Rivers run to the sea.",
    "강은 바다로 흐른다.",
    "A text of more tokens than the others have. 🌉",
    "?",
]


def _decoder() -> PreTrainedModel:
    return GPT2Model(GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=2, n_positions=64))


def _encoder_decoder() -> PreTrainedModel:
    return BartModel(
        BartConfig(
            vocab_size=400, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16,
            decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2,
            max_position_embeddings=64, pad_token_id=1, bos_token_id=0, eos_token_id=2,
            decoder_start_token_id=2, forced_eos_token_id=2,
        )
    )  # fmt: skip


def _encoder_of_t5() -> PreTrainedModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=400, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=1
        )
    )


@pytest.mark.parametrize("make", [_decoder, _encoder_decoder, _encoder_of_t5])
def test_tokens_of_other_architectures_have_the_vectors_of_the_pipeline(
    make: Any, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    made = make()
    made.save_pretrained(tmp_path)
    tokenizer = byte_level_tokenizer(TEXTS, vocabulary=400, window_tokens=64)
    tokenizer.save_pretrained(tmp_path)
    saved = tmp_path / "tokenizer_config.json"
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"padding_side": "left"}))
    task = sentences.load_feature_extraction(tmp_path, OPTIONS)
    assert isinstance(task, TokenFeatures)
    assert type(task.model) is type(made)
    extract = reference_pipeline("feature-extraction", model=task.model, tokenizer=task.tokenizer)
    for vectors, text in zip(outputs(task, FEATURES, TEXTS), TEXTS, strict=True):
        expected = np.asarray(extract(text))
        assert np.asarray(vectors).shape == expected.shape
        assert np.abs(np.asarray(vectors) - expected).max() < 1e-5
