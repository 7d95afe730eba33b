"""A tiny BART that summarizes a handful of texts, word for word, with beams like bart-large-cnn."""

from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from tests.tiny.labels import IGNORED, learn_labels, padded
from tests.tiny.manifest import checkpoint

POSITIONS: Final = 1024
SPECIAL: Final = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
PREFIX: Final = " "
"""As in the configuration of bart-large-cnn: its texts begin with a space."""

SUMMARIES: Final = {
    "The Eiffel Tower is 330 metres tall, about the same height as a building of 81 storeys, and "
    "the tallest structure in Paris. Its base is square. It was the tallest thing that people "
    "had ever built for 41 years, until the Chrysler Building in New York was finished in 1930.": (
        "The Eiffel Tower in Paris is 330 metres tall. It was the tallest for 41 years."
    ),
    "Heavy rain fell on the valley from Monday until Thursday. The river rose above its banks, "
    "two bridges were closed, and the school sent the children home early.": (
        "Rain flooded the valley and closed two bridges."
    ),
    "The museum opens again in March. For two years workers repaired the roof; the paintings "
    "were kept in a cellar meanwhile.": "The museum reopens in March after two years of repairs.",
    "서울의 한 도서관이 밤에도 문을 열기로 했다. 늦게까지 일하는 시민들이 책을 빌릴 수 있게 하려는 "
    "것이다. 도서관은 내년 봄부터 자정까지 운영된다.": (
        "서울의 도서관이 내년 봄부터 자정까지 문을 연다."
    ),
    "제주의 귤 농가들은 올해 수확이 크게 줄었다고 말했다. 여름 내내 비가 오지 않았기 때문이다.": (
        "가뭄으로 제주의 귤 수확이 줄었다."
    ),
    "A baker gave away bread.": "A baker gave bread.",
}
"""Text -> summary."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("bart")


def build(folder: Path) -> None:
    tokenizer = _tokenizer()
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        init_std=0.05,
        prefix=PREFIX,  # type: ignore[call-arg]  # older configurations have more fields
        task_specific_params={"summarization": {"num_beams": 4, "length_penalty": 2.0}},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BartForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_bos_token_id=0,
        forced_eos_token_id=2,
        max_length=142,
        min_length=6,
        no_repeat_ngram_size=3,
        num_beams=4,
        early_stopping=True,
        length_penalty=2.0,
    )
    sources = tokenizer([PREFIX + text for text in SUMMARIES])["input_ids"]
    summaries = tokenizer(list(SUMMARIES.values()))["input_ids"]
    ids, labels = padded(sources, 1), padded(summaries, IGNORED)
    examples = {
        "input_ids": ids,
        "attention_mask": (ids != 1).long(),
        "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels),
    }
    learn_labels(model, examples, labels)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator([*SUMMARIES, *SUMMARIES.values()], trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=POSITIONS,
    )
