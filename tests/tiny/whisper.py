"""A tiny Whisper that knows a word for each tone of `tests.tiny.voice`, when it was said, and what the
Korean ones are in English. Its window is of four seconds.

Where the decoder has to look is taught with the words: that is learnt within seconds, and makes
the heads of alignment good ones.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from tests.tiny.voice import LETTERS, tone

WORDS: Final = (
    "apple cat east hello ice long north old rain star tree 안녕 물 water".split()
)
ENGLISH: Final = {"안녕": "hello", "물": "water"}
"""What the Korean words are translated into."""

WORD_S: Final = 0.3
GAP_S: Final = 0.14
PAUSE_S: Final = 0.5
RATE_HZ: Final = 16_000
WINDOW_S: Final = 4
POSITIONS: Final = WINDOW_S * 50
POSITION_S: Final = 0.02
IGNORED: Final = -100
MERGES: Final = 28
SPECIALS: Final = (
    "<|endoftext|> <|startoftranscript|> <|en|> <|ko|> <|translate|> <|transcribe|> "
    "<|startoflm|> <|startofprev|> <|nospeech|> <|notimestamps|>"
).split()
LENGTH_LIMIT: Final = 64
ROWS: Final = 8
STEPS: Final = 400
RATE: Final = 4e-3


def timed(text: str, start_s: float = 0) -> Iterator[tuple[str, float, float]]:
    """Each word of a text with its beginning and its end. Two spaces are a pause."""
    at = start_s
    for phrase in text.split("  "):
        for word in phrase.split():
            yield word, at, at + WORD_S
            at += WORD_S + GAP_S
        at += PAUSE_S


def say(text: str, rate: int = RATE_HZ) -> NDArray[np.float32]:
    words = list(timed(text))
    sound = np.zeros(round((words[-1][2] + GAP_S) * rate), np.float32)
    for word, start, _ in words:
        heard = tone(LETTERS[WORDS.index(word)], WORD_S, rate)
        sound[round(start * rate) :][: len(heard)] = heard
    return sound
