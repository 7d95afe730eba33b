"""Audio files of any format and rate become the same sound; other files are refused."""

import io
from typing import Any

import numpy as np
import pytest
import soundfile
from scipy.signal import correlate, resample_poly

from shared.errors import InvalidInput
from tests.tiny.voice import speak
from workers.hf.audio import decode

RATE = 16_000
SAID = speak("HELLO ALICE", RATE)
FORMATS = [
    ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


def encoded(samples: Any, rate: int = RATE, format_: str = "WAV", subtype: str = "FLOAT") -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=format_, subtype=subtype)
    return out.getvalue()


def heard(data: bytes, *, limit_s: float = 60) -> Any:
    return decode(data, rate_hz=RATE, limit_s=limit_s)


def alike(samples: Any, expected: Any) -> float:
    """The best correlation, wherever an encoder has moved the sound by some milliseconds."""
    best = correlate(samples, expected, mode="full").max()
    return float(best / np.linalg.norm(samples) / np.linalg.norm(expected))


@pytest.mark.parametrize(("format_", "subtype"), FORMATS)
@pytest.mark.parametrize("rate", [8_000, 48_000])
def test_a_file_sounds_as_what_was_said(format_: str, subtype: str, rate: int) -> None:
    samples = heard(encoded(speak("HELLO ALICE", rate), rate, format_, subtype))
    assert samples.dtype == np.float32
    assert abs(len(samples) - len(SAID)) < 0.15 * RATE
    assert alike(samples, SAID) > 0.95
    assert np.linalg.norm(samples) == pytest.approx(np.linalg.norm(SAID), rel=0.1)


@pytest.mark.parametrize("rate", [11_025, 22_050, 44_100, 96_000, 12_345])
def test_resampling_block_by_block_is_resampling_at_once(rate: int) -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, 10 * rate).astype(np.float32)
    samples = heard(encoded(noise, rate))
    common = np.gcd(RATE, rate)
    expected = resample_poly(noise, RATE // common, rate // common)
    assert len(samples) == len(expected)
    assert np.abs(samples - expected).max() < 1e-4


def test_channels_are_averaged() -> None:
    stereo = np.stack([SAID, np.zeros_like(SAID)], axis=1)
    assert heard(encoded(stereo)) == pytest.approx(SAID / 2, abs=1e-6)


def test_silence_is_sound() -> None:
    assert not heard(encoded(np.zeros(100, np.float32))).any()


WHOLE = encoded(SAID, subtype="PCM_16")
FLAC = encoded(SAID, format_="FLAC", subtype="PCM_16")
NAN = encoded(np.array([0.1, np.nan, 0.1], np.float32))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"This is a text and no audio at all." * 9, "FLAC, WAV, MP3 or OGG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "FLAC, WAV, MP3 or OGG"),
        (encoded(np.zeros(0, np.float32)), "length is zero"),
        (WHOLE[: len(WHOLE) // 2], "cut off"),
        (FLAC[: len(FLAC) // 2], "cut off"),
        (NAN, "NaN"),
    ],
    ids=["nothing", "text", "picture", "zero length", "half a WAV", "half a FLAC", "NaN"],
)
def test_what_cannot_be_heard_is_an_error(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        heard(data)


def test_what_is_too_long_is_refused_by_the_setting() -> None:
    assert len(heard(WHOLE, limit_s=1.4))
    with pytest.raises(InvalidInput, match="SLUICE_HF_AUDIO_LIMIT_S"):
        heard(WHOLE, limit_s=0.5)
