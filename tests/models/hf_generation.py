"""Rows of texts that become texts, and a T5 that reads its task in the prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from shared.kinds.hf import Task, parse_parameters
from tests.tiny import bart
from workers.hf.task import LocalTask, Row


def rows(task: LocalTask, name: Task, values: Sequence[str], **options: Any) -> list[Row]:
    parameters = parse_parameters(name, options)
    return [row for value in values for row in task.prepare(value, parameters).rows]


def make_t5() -> T5ForConditionalGeneration:
    """Untrained. What its configuration says of a task goes before what it says of all."""
    torch.manual_seed(0)
    config: Any = T5Config(
        vocab_size=700, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4,
        pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config.n_positions = 64
    config.task_specific_params = {
        "summarization": {"max_length": 9, "num_beams": 3, "prefix": "summarize: "},
        "translation_en_to_de": {"max_length": 8, "prefix": "translate English to German: "},
        "translation_en_to_fr": {"max_length": 8, "prefix": "translate English to French: "},
    }
    model = T5ForConditionalGeneration(config)
    model.eval()
    model.generation_config.update(decoder_start_token_id=1, max_length=50, num_beams=2)
    return model


def unlimited_tokenizer() -> PreTrainedTokenizerBase:
    """It does not say how long a text may be, as that of T5 does not."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        bart.folder(), model_max_length=int(1e30)
    )
    return tokenizer
