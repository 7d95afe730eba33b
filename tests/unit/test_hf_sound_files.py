"""Files that libsndfile alone would take for shorter than they are, or for whole."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
import soundfile

from shared.errors import InvalidInput
from tests.tiny.voice import speak
from workers.hf.audio import decode

RATE = 16_000
SAID = speak("HELLO ALICE IS ON A TRAIN TO THE COAST", RATE)
SILENT_FIRST = np.concatenate([np.zeros(20 * RATE, np.float32), SAID])


def encoded(
    samples: Any = SAID, format_: str = "WAV", subtype: str | None = None, **how: Any
) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, RATE, format=format_, subtype=subtype, **how)
    return out.getvalue()


def seconds(data: bytes) -> float:
    return len(decode(data, rate_hz=RATE, limit_s=60)) / RATE


LENGTH_S = len(SAID) / RATE
WAV = encoded()
FLAC = encoded(format_="FLAC")
MP3 = encoded(format_="MP3")
OGG = encoded(format_="OGG", subtype="VORBIS")
VARIABLE = encoded(SILENT_FIRST, "MP3", bitrate_mode="VARIABLE", compression_level=0.5)


def without_first_frame(mp3: bytes) -> bytes:
    """The first frame of an MP3 holds no sound, only how much there is."""
    return mp3[mp3.index(mp3[:2], 4) :]


def test_an_mp3_that_does_not_say_its_length_is_read_to_its_end() -> None:
    assert b"Xing" not in (bare := without_first_frame(VARIABLE))
    assert seconds(bare) == pytest.approx(len(SILENT_FIRST) / RATE, abs=0.15)


def test_joined_mp3s_are_read_to_the_end_of_the_last() -> None:
    assert seconds(MP3 + MP3) == pytest.approx(2 * LENGTH_S, abs=0.3)


def test_what_is_no_sound_around_an_mp3_is_skipped() -> None:
    picture = b"ID3\x03\0\0" + bytes([0, 0, 8, 0]) + bytes(1024)
    comment = b"TAG" + bytes(125)
    assert seconds(picture + MP3 + comment) == seconds(MP3)


def test_a_tag_behind_a_flac_is_no_sound() -> None:
    assert seconds(FLAC + b"TAG" + bytes(125)) == LENGTH_S


def test_a_flac_that_does_not_say_its_length_is_read_to_its_end() -> None:
    streamed = bytearray(FLAC)
    # The last 36 bits of these are the number of samples.
    streamed[21] &= 0xF0
    streamed[22:26] = bytes(4)
    assert seconds(bytes(streamed)) == LENGTH_S


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0x7FFF_FFFF])
def test_a_wav_that_does_not_say_its_length_is_read_to_its_end(size: int) -> None:
    at = WAV.index(b"data") + 4
    assert seconds(WAV[:at] + size.to_bytes(4, "little") + WAV[at + 4 :]) == LENGTH_S


@pytest.mark.parametrize("data", [MP3, OGG], ids=["MP3", "OGG"])
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_file_without_its_end_is_an_error(data: bytes, kept: float) -> None:
    with pytest.raises(InvalidInput, match="cut off"):
        seconds(data[: round(kept * len(data))])


@pytest.mark.parametrize("data", [FLAC, MP3, OGG], ids=["FLAC", "MP3", "OGG"])
def test_a_file_with_a_hole_is_an_error(data: bytes) -> None:
    half = len(data) // 2
    with pytest.raises(InvalidInput, match="cut off"):
        seconds(data[:half] + bytes(2000) + data[half + 2000 :])


def test_streams_one_after_another_are_not_taken_for_the_first() -> None:
    with pytest.raises(InvalidInput, match="several streams"):
        seconds(OGG + OGG)


def test_another_format_is_named() -> None:
    with pytest.raises(InvalidInput, match="AIFF; send FLAC, WAV, MP3 or OGG"):
        seconds(encoded(format_="AIFF"))


def test_an_impossible_rate_is_an_error() -> None:
    at = WAV.index(b"fmt ") + 12
    with pytest.raises(InvalidInput, match="up to 384,000"):
        seconds(WAV[:at] + (2_000_000_000).to_bytes(4, "little") + WAV[at + 4 :])


def test_whatever_bytes_a_file_has_it_is_read_or_refused() -> None:
    dice = np.random.default_rng(0)
    for whole in (WAV, FLAC, MP3, OGG):
        for _ in range(15):
            data = bytearray(whole)
            for place in dice.integers(0, 400, 5):
                data[place] = dice.integers(0, 256)
            with contextlib.suppress(InvalidInput):
                assert seconds(bytes(data)) > 0
