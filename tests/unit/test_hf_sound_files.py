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


def assert_sounds_as_wav(data: bytes) -> None:
    """`pytest.approx` would compare each of 73,000 samples in Python."""
    heard, expected = (decode(one, rate_hz=RATE, limit_s=60) for one in (data, WAV))
    np.testing.assert_allclose(heard, expected, rtol=1e-6)


def without_first_frame(mp3: bytes) -> bytes:
    """The first frame of an MP3 holds no sound, only how much there is."""
    return mp3[mp3.index(mp3[:2], 4) :]


def test_an_mp3_that_does_not_say_its_length_is_read_to_its_end() -> None:
    silent_first = np.concatenate([np.zeros(20 * RATE, np.float32), SAID])
    whole = encoded(silent_first, "MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    assert b"Xing" not in (bare := without_first_frame(whole))
    assert seconds(bare) == pytest.approx(len(silent_first) / RATE, abs=0.15)


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


def chunk(name: bytes, data: bytes, size: int | None = None, *, pad: bool = True) -> bytes:
    stated = len(data) if size is None else size
    return name + stated.to_bytes(4, "little") + data + bytes(len(data) % 2 if pad else 0)


FMT = WAV[WAV.index(b"fmt ") + 8 :][:16]
SOUND = WAV[WAV.index(b"data") + 8 :]
TEXT = b"ISFT" + (3).to_bytes(4, "little") + b"ab\0"
UNKNOWN = 0xFFFF_FFFF


def riff(*chunks: bytes, magic: bytes = b"RIFF", size: int | None = None) -> bytes:
    body = b"WAVE" + b"".join(chunks)
    return magic + (len(body) if size is None else size).to_bytes(4, "little") + body


def ds64(data_size: int) -> bytes:
    sizes = (len(WAV), data_size, len(SAID))
    return chunk(b"ds64", b"".join(size.to_bytes(8, "little") for size in sizes) + bytes(4))


assert riff(chunk(b"fmt ", FMT), chunk(b"data", SOUND)) == WAV


@pytest.mark.parametrize("riff_size", [0, 36, len(WAV) - 8, UNKNOWN])
@pytest.mark.parametrize("size", [0, 0x7FFF_FFFF, 0x7FFF_FFDB, 0x8000_0000, UNKNOWN - 36, UNKNOWN])
def test_a_wav_that_does_not_say_its_length_is_read_to_its_end(size: int, riff_size: int) -> None:
    """As ffmpeg, sox, arecord, GStreamer and others leave it where they cannot go back."""
    sound = chunk(b"data", SOUND, size)
    for head in ([chunk(b"fmt ", FMT)], [chunk(b"LIST", b"INFO" + TEXT), chunk(b"fmt ", FMT)]):
        assert seconds(riff(*head, sound, size=riff_size)) == LENGTH_S


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("size", [0, UNKNOWN])
def test_so_is_one_of_any_encoding(size: int, subtype: str) -> None:
    whole = encoded(subtype=subtype)
    at = whole.index(b"data", 12) + 4
    lost = whole[:at] + size.to_bytes(4, "little") + whole[at + 4 :]
    # What comes behind the sound cannot be distinguished from it.
    assert seconds(lost) == pytest.approx(LENGTH_S, abs=0.01)


def test_several_channels_without_a_length() -> None:
    stereo = encoded(np.stack([SAID, SAID], axis=1))
    at = stereo.index(b"data") + 4
    assert seconds(stereo[:at] + bytes(4) + stereo[at + 4 :]) == LENGTH_S


@pytest.mark.parametrize("magic", [b"RF64", b"BW64"])
@pytest.mark.parametrize("size", [UNKNOWN, len(SOUND)])
@pytest.mark.parametrize("long_size", [len(SOUND), 0, UNKNOWN])
def test_a_long_wav_is_read(magic: bytes, size: int, long_size: int) -> None:
    chunks = [ds64(long_size), chunk(b"fmt ", FMT), chunk(b"data", SOUND, size)]
    assert seconds(riff(*chunks, magic=magic, size=UNKNOWN)) == LENGTH_S
    assert_sounds_as_wav(riff(*chunks, magic=magic, size=UNKNOWN))


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("odd", [b"x", b"odd", b"ab\0" * 7])
def test_chunks_of_odd_sizes_before_the_sound(odd: bytes, pad: bool) -> None:
    """With the byte that belongs behind them, and without it."""
    notes = chunk(b"note", odd, pad=pad)
    for chunks in ([notes, chunk(b"fmt ", FMT)], [chunk(b"fmt ", FMT), notes]):
        for size in (None, 0, UNKNOWN):
            assert_sounds_as_wav(riff(*chunks, chunk(b"data", SOUND, size)))


def test_an_odd_number_of_samples_of_one_byte() -> None:
    whole = encoded(SAID[: RATE // 2 + 1], subtype="PCM_U8")
    assert seconds(whole) == (RATE // 2 + 1) / RATE


@pytest.mark.parametrize("behind", [b"\0" * 5, b"garbage", b"TAG" + bytes(125), SOUND[:999]])
def test_what_comes_behind_the_sound_is_no_sound(behind: bytes) -> None:
    assert seconds(WAV + behind) == LENGTH_S
    assert seconds(riff(chunk(b"fmt ", FMT), chunk(b"data", SOUND), chunk(b"LIST", TEXT))) == (
        LENGTH_S
    )


def test_an_extensible_wav() -> None:
    whole = encoded(format_="WAVEX")
    assert seconds(whole) == LENGTH_S
    at = whole.index(b"data", 12) + 4
    assert seconds(whole[:at] + bytes(4) + whole[at + 4 :]) == LENGTH_S


@pytest.mark.parametrize(
    "behind", [b"", chunk(b"LIST", b"INFO" + TEXT), chunk(b"note", b"odd") + chunk(b"cue ", b"")]
)
@pytest.mark.parametrize("size", [0, UNKNOWN])
def test_a_wav_of_no_sound_holds_none(behind: bytes, size: int) -> None:
    """Its length is zero or not stated, and what follows is no sound either."""
    with pytest.raises(InvalidInput, match="holds no sound"):
        seconds(riff(chunk(b"fmt ", FMT), chunk(b"data", b"", size), behind))


@pytest.mark.parametrize("kept", [0.3, 0.9])
@pytest.mark.parametrize("magic", [b"RIFF", b"RF64"])
def test_a_wav_without_its_end_is_an_error(magic: bytes, kept: float) -> None:
    size = UNKNOWN if magic == b"RF64" else None
    whole = riff(ds64(len(SOUND)), chunk(b"fmt ", FMT), chunk(b"data", SOUND, size), magic=magic)
    with pytest.raises(InvalidInput, match="cut off"):
        seconds(whole[: round(kept * len(whole))])


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
    long = riff(ds64(len(SOUND)), chunk(b"fmt ", FMT), chunk(b"data", SOUND), magic=b"RF64")
    for whole in (WAV, long, FLAC, MP3, OGG):
        for _ in range(15):
            data = bytearray(whole)
            for place in dice.integers(0, 400, 5):
                data[place] = dice.integers(0, 256)
            with contextlib.suppress(InvalidInput):
                assert seconds(bytes(data)) > 0
