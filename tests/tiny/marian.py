"""A tiny Marian that translates a handful of Russian sentences into English, and into Korean where
the text begins with `>>kor<<`; its vocabulary and tokenizer are made as those of opus-mt are.
"""

import io
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import sentencepiece
import torch
from transformers import GenerationConfig, MarianConfig, MarianMTModel, MarianTokenizer

from tests.tiny.labels import IGNORED, learn_labels, padded
from tests.tiny.manifest import checkpoint

KOREAN: Final = ">>kor<<"
POSITIONS: Final = 512
PIECES: Final = 400

ENGLISH: Final = {
    "Привет, мир!": "Hello, world!",
    "Меня зовут Вольфганг и я живу в Берлине.": "My name is Wolfgang and I live in Berlin.",
    "Сегодня идёт дождь, поэтому мы остаёмся дома.": "It is raining today, so we stay at home.",
    "Где находится библиотека?": "Where is the library?",
    "Поезд в Москву отправляется в семь часов вечера с третьего пути.": (
        "The train to Moscow leaves at seven in the evening from track three."
    ),
    "Да.": "Yes.",
}
"""Russian -> English."""

IN_KOREAN: Final = {
    "Привет, мир!": "안녕, 세상아!",
    "Где находится библиотека?": "도서관은 어디에 있나요?",
}
"""Russian -> Korean, for `tgt_lang` kor."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("marian")


def build(folder: Path) -> None:
    tokenizer = _tokenizer(folder)
    padding = tokenizer.pad_token_id
    config = MarianConfig(
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
        activation_function="swish",
        scale_embedding=True,
        init_std=0.05,
        pad_token_id=padding,
        eos_token_id=0,
        decoder_start_token_id=padding,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MarianMTModel(config)
    model.generation_config = GenerationConfig(
        pad_token_id=padding,
        eos_token_id=0,
        forced_eos_token_id=0,
        decoder_start_token_id=padding,
        bad_words_ids=[[padding]],
        max_length=POSITIONS,
        num_beams=4,
        renormalize_logits=True,
    )
    korean = {f"{KOREAN} {text}": translation for text, translation in IN_KOREAN.items()}
    pairs = {**ENGLISH, **korean}
    sources = tokenizer(list(pairs))["input_ids"]
    targets = tokenizer(text_target=list(pairs.values()))["input_ids"]
    ids, labels = padded(sources, padding), padded(targets, IGNORED)
    examples = {
        "input_ids": ids,
        "attention_mask": (ids != padding).long(),
        "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels),
    }
    learn_labels(model, examples, labels)
    model.save_pretrained(folder)


def _tokenizer(folder: Path) -> MarianTokenizer:
    """Two models of sentencepiece, and the vocabulary of both together."""
    folder.mkdir()
    sides = {
        "source.spm": _pieces(ENGLISH),
        "target.spm": _pieces([*ENGLISH.values(), *IN_KOREAN.values()]),
    }
    names = ["</s>", "<unk>", KOREAN]
    for name, (model, pieces) in sides.items():
        (folder / name).write_bytes(model)
        names.extend(piece for piece in pieces if piece not in names)
    vocabulary = {piece: n for n, piece in enumerate([*names, "<pad>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    # It recommends sacremoses, which transformers 5 then does not use.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*sacremoses", category=UserWarning)
        tokenizer = _loaded(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _loaded(folder: Path) -> MarianTokenizer:
    return MarianTokenizer(
        str(folder / "source.spm"),
        str(folder / "target.spm"),
        str(folder / "vocab.json"),
        source_lang="ru",
        target_lang="en",
        model_max_length=POSITIONS,
    )


def _pieces(texts: Iterable[str]) -> tuple[bytes, list[str]]:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return model.getvalue(), [processor.id_to_piece(n) for n in range(len(processor))]
