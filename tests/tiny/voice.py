"""A voice for tests: each letter is a tone of its own, so that what is heard can be right or wrong.

Tones end below 3.4 kHz and come eight in a second: any format and any rate that
speech is sent in carries them. A space is a letter of silence.
"""

import io
from collections.abc import Iterator
from typing import Final

import numpy as np
import soundfile
from numpy.typing import NDArray

LETTERS: Final = "ACEHILNORST안녕물"
LETTER_S: Final = 0.12
TONE_S: Final = 0.08
LOWEST_HZ: Final = 300.0
STEP_HZ: Final = 200.0
FADE_S: Final = 0.008


def letters(text: str, start_s: float = 0) -> Iterator[tuple[str, float, float]]:
    """Each letter with the beginning and the end of its tone; spaces have none."""
    for n, letter in enumerate(text):
        if letter != " ":
            begin_s = start_s + n * LETTER_S
            yield letter, begin_s, begin_s + TONE_S


def length_s(text: str) -> float:
    return len(text) * LETTER_S


def speak(text: str, rate: int = 16_000) -> NDArray[np.float32]:
    """Raises ValueError for letters that have no tone."""
    sound = np.zeros(round(length_s(text) * rate), np.float32)
    for letter, start, _ in letters(text):
        heard = _tone(letter, rate)
        sound[round(start * rate) :][: len(heard)] = heard
    return sound


def _tone(letter: str, rate: int) -> NDArray[np.float32]:
    times = np.arange(round(TONE_S * rate)) / rate
    fade = np.clip(np.minimum(times, TONE_S - times) / FADE_S, 0, 1)
    pitch = LOWEST_HZ + STEP_HZ * LETTERS.index(letter)
    sound = 0.4 * fade * np.sin(2 * np.pi * pitch * times)
    return sound.astype(np.float32)


def recorded(text: str, *, format_: str = "WAV", rate: int = 16_000) -> bytes:
    """What is said, as a file of a format that libsndfile writes."""
    out = io.BytesIO()
    subtype = "FLOAT" if format_ == "WAV" else None
    soundfile.write(out, speak(text, rate), rate, format=format_, subtype=subtype)
    return out.getvalue()
