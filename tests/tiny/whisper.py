"""A tiny Whisper that knows a handful of recordings by heart: what is said in them, in which
language, and when. Its window is of four seconds; the windows of one longer recording are among
what it knows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, pre_tokenizers
from torch import nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from tests.tiny.manifest import checkpoint
from tests.tiny.voice import length_s, letters, speak
from workers.hf.audio import STRIDE_PART, aligned, windows

RATE_HZ: Final = 16_000
WINDOW_S: Final = 4
CHUNK_S: Final = 3.6
POSITION_S: Final = 0.02
POSITIONS: Final = round(WINDOW_S / POSITION_S)
SPECIALS: Final = [
    "<|startoftranscript|>", "<|en|>", "<|ko|>", "<|translate|>", "<|transcribe|>",
    "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>",
]  # fmt: skip
END: Final = "<|endoftext|>"
TOKENS_LIMIT: Final = 48
IGNORED: Final = -100
STEPS: Final = 400
RATE: Final = 3e-3
EXAM_EVERY: Final = 20
NOISES: Final = (0.0, 1e-4, 1e-3)

SAID: Final = {"HELLO ALICE": "en", "NO TRAIN": "en", "THE CAT": "en", "안녕 물": "ko", "A": "en"}
"""Text -> language."""
LONG: Final = "THE CAT IS ON A HILL AN ALICE RAN TO THE STATION IN THE RAIN TO SEE NO ONE ELSE"
"""Three windows and a half."""


@dataclass(frozen=True, kw_only=True)
class _Lesson:
    samples: NDArray[np.float32]
    text: str
    language: str
    end_s: float | None
    """Where the text ends, for a lesson with timestamps."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("whisper")


def build(folder: Path) -> None:
    """Raises RuntimeError for a model that has not learnt its recordings."""
    tokenizer = _tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model(tokenizer)
        _train(model, tokenizer)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    _extractor().save_pretrained(folder)


def lessons() -> list[object]:
    """What it is taught, without the sounds: product code cuts the long recording into windows."""
    return [
        (lesson.text, lesson.language, lesson.end_s, len(lesson.samples)) for lesson in _lessons()
    ]


def _lessons() -> Iterator[_Lesson]:
    for text, language in SAID.items():
        end_s = round(length_s(text) / POSITION_S) * POSITION_S
        for end in (None, end_s):
            yield _Lesson(samples=speak(text), text=text, language=language, end_s=end)
    sound = speak(LONG)
    size = aligned(CHUNK_S, RATE_HZ)
    for window in windows(len(sound), size=size, stride=aligned(CHUNK_S / STRIDE_PART, RATE_HZ)):
        whole = _heard(window.start / RATE_HZ, window.end / RATE_HZ)
        part = sound[window.start : window.end]
        yield _Lesson(samples=part, text=whole, language="en", end_s=None)


def _heard(start_s: float, end_s: float) -> str:
    """The letters of the long recording that lie in a window as a whole, in their words."""
    text, at = "", iter(letters(LONG))
    for letter in LONG:
        if letter == " ":
            text += " " if text and not text.endswith(" ") else ""
            continue
        _, start, end = next(at)
        if start >= start_s and end <= end_s:
            text += letter
    return text.strip()


def _train(model: WhisperForConditionalGeneration, tokenizer: Any) -> None:
    lessons = list(_lessons())
    rows = [torch.tensor(_tokens(tokenizer, lesson)) for lesson in lessons]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    inputs, targets = tokens[:, :-1].clamp(min=0), tokens[:, 1:].clone()
    # That there are no times is never the model's own choice.
    targets[targets == tokenizer.convert_tokens_to_ids("<|notimestamps|>")] = IGNORED
    dice = np.random.default_rng(0)
    features = [_features(lessons, dice, noise) for noise in NOISES]
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98))
    for step in range(STEPS):
        heard = features[step % len(features)]
        logits = model(input_features=heard, decoder_input_ids=inputs).logits
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % EXAM_EVERY == EXAM_EVERY - 1 and all(
            _is_sure(model, sound, inputs, targets) for sound in features
        ):
            return
    raise RuntimeError(f"the tiny Whisper has not learnt its recordings in {STEPS} steps")


def _is_sure(
    model: WhisperForConditionalGeneration,
    features: torch.Tensor,
    inputs: torch.Tensor,
    targets: torch.Tensor,
) -> bool:
    with torch.inference_mode():
        shares = model(input_features=features, decoder_input_ids=inputs).logits.softmax(-1)
    right = shares.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return bool(((right > 0.9) | (targets == IGNORED)).all())


def _features(lessons: list[_Lesson], dice: np.random.Generator, noise: float) -> torch.Tensor:
    sounds = [
        lesson.samples + noise * dice.standard_normal(len(lesson.samples)).astype(np.float32)
        for lesson in lessons
    ]
    extracted = _extractor()(sounds, sampling_rate=RATE_HZ, return_tensors="pt")
    features: torch.Tensor = extracted["input_features"]
    return features


def _tokens(tokenizer: Any, lesson: _Lesson) -> list[int]:
    text = f"<|notimestamps|>{lesson.text}"
    if lesson.end_s is not None:
        text = f"<|0.00|>{lesson.text}<|{lesson.end_s:.2f}|>"
    prompt = f"<|startoftranscript|><|{lesson.language}|><|transcribe|>"
    ids: list[int] = tokenizer(prompt + text + END, add_special_tokens=False)["input_ids"]
    return ids


def _tokenizer() -> Any:
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: n for n, piece in enumerate([*pieces, END])}
    tokenizer: Any = WhisperTokenizer(vocab=vocab, merges=[], model_max_length=TOKENS_LIMIT)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    times = [f"<|{n * POSITION_S:.2f}|>" for n in range(POSITIONS + 1)]
    tokenizer.add_tokens([AddedToken(time, normalized=False) for time in times])
    return tokenizer


def _extractor() -> Any:
    return WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S, sampling_rate=RATE_HZ)


def _model(tokenizer: Any) -> WhisperForConditionalGeneration:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (END, *SPECIALS)}
    tokens = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "pad_token_id": ids[END],
        "bos_token_id": ids[END],
        "eos_token_id": ids[END],
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=POSITIONS,
        max_target_positions=TOKENS_LIMIT,
        begin_suppress_tokens=None,
        init_std=0.05,
        **tokens,
    )
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_length=TOKENS_LIMIT,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        is_multilingual=True,
        lang_to_id={name: ids[name] for name in ("<|en|>", "<|ko|>")},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")},
        forced_decoder_ids=[[1, None], [2, ids["<|transcribe|>"]]],
        alignment_heads=[[0, 0]],
        **tokens,
    )
    return model
