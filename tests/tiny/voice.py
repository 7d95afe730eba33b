"""A voice for tests: each letter is a tone of its own, so that what is heard can be right or wrong.

Tones end below 3.4 kHz and come eight in a second: any format and any rate that
speech is sent in carries them.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

LETTERS: Final = "ACEHILNORSTUWY"
LETTER_S: Final = 0.12
TONE_S: Final = 0.08
SPACE_S: Final = 0.1
LOWEST_HZ: Final = 300.0
STEP_HZ: Final = 200.0
FADE_S: Final = 0.008


def letters(text: str, start_s: float = 0) -> Iterator[tuple[str, float, float]]:
    """Each letter with the beginning and the end of its tone; spaces are silence."""
    at = start_s
    for letter in text.upper():
        if letter == " ":
            at += SPACE_S
            continue
        yield letter, at, at + TONE_S
        at += LETTER_S


def length_s(text: str) -> float:
    return sum(SPACE_S if letter == " " else LETTER_S for letter in text)


def speak(text: str, rate: int = 16_000) -> NDArray[np.float32]:
    """Raises ValueError for letters that have no tone."""
    sound = np.zeros(round(length_s(text) * rate), np.float32)
    for letter, start, _ in letters(text):
        heard = tone(letter, TONE_S, rate)
        sound[round(start * rate) :][: len(heard)] = heard
    return sound


def tone(letter: str, length_s: float, rate: int) -> NDArray[np.float32]:
    times = np.arange(round(length_s * rate)) / rate
    fade = np.clip(np.minimum(times, length_s - times) / FADE_S, 0, 1)
    pitch = LOWEST_HZ + STEP_HZ * LETTERS.index(letter)
    sound: NDArray[np.float32] = 0.4 * fade * np.sin(2 * np.pi * pitch * times)
    return sound.astype(np.float32)
