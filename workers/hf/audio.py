"""Opening audio files, and knowing whether they are whole.

libsndfile reads what is there. Where it would take a part for the whole (a WAV or an OGG that is
cut off, an MP3 that does not say how long it is, or says it of the first of several that were
joined), this module knows better.
"""

import hashlib
import io
import math
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import firwin, resample_poly

from shared.errors import InvalidInput

FORMATS = frozenset({"FLAC", "WAV", "WAVEX", "MP3", "OGG"})
SENDABLE = "send FLAC, WAV, MP3 or OGG"
# What libsndfile says of a length that nobody has told it.
UNKNOWN_FRAMES = 2**63 - 1
# Encoders round to their frames; that much may be missing.
SLACK_S = 0.1
# Writers that cannot go back to fill in a length leave this or more.
UNKNOWN_WAV_BYTES = 0x7FFF_0000
UNKNOWN_BYTES = 0xFFFF_FFFF
# WAVs whose true sizes, of 64 bits, stand in a chunk of their own.
LONG_WAVS = (b"RF64", b"BW64")
OGG_FIRST_PAGE = 0x02
OGG_LAST_PAGE = 0x04
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
XING_HAS_FRAMES = 0x01
XING_HAS_BYTES = 0x02


class SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types.
    """For reading from front to back: a seek after each block fails at an end that is not known
    beforehand, and finds no exact place in an MP3."""

    def seekable(self) -> bool:
        return False


class _Bytes(io.BytesIO):
    """What libsndfile may seek in as it likes: a place that does not exist is not gone to."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return super().seek(max(0, offset) if whence == io.SEEK_SET else offset, whence)


class _Endless(_Bytes):
    """A file of no known size: libsndfile then counts an MP3's frames instead of guessing."""

    _is_at_end = False

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._is_at_end = whence == io.SEEK_END
        return self.tell() if self._is_at_end else super().seek(offset, whence)

    def tell(self) -> int:
        return UNKNOWN_FRAMES if self._is_at_end else super().tell()


def open_sound(data: bytes) -> SoundFile:
    """Raises InvalidInput for what is no audio, and for a file whose end is missing."""
    if not data:
        raise InvalidInput(f"the file is empty; {SENDABLE}.")
    data = _plain_wav(data)
    file = _opened(_Bytes(data))
    if file.format == "MP3":
        file.close()
        return _opened(_Endless(_without_wrong_length(data)))
    try:
        if file.format not in FORMATS:
            raise InvalidInput(f"this is audio in the format {file.format}; {SENDABLE}.")
        _check_ogg(data)
    except InvalidInput:
        file.close()
        raise
    return file


def _opened(file: io.BytesIO) -> SoundFile:
    try:
        return SoundFile(file)
    except soundfile.SoundFileError as error:
        raise InvalidInput(
            "this is no audio that can be read: its format is not known, or its beginning is "
            f"damaged; {SENDABLE}."
        ) from error


def _plain_wav(data: bytes) -> bytes:
    """A WAV as libsndfile reads it to its end: with a length where the writer could not go back to
    fill one in, without the 64 bits of RF64, and with chunks where their sizes say that they are.

    Raises InvalidInput where sound should come after the end of the file.
    """
    is_long = data[:4] in LONG_WAVS
    if not (is_long or data[:4] == b"RIFF") or data[8:12] != b"WAVE":
        return data
    format_ = sizes = b""
    for at, name, size in _chunks(data, 12):
        start = at + 8
        if name == b"fmt ":
            format_ = data[start : start + size]
        elif name == b"ds64":
            sizes = data[start : start + size]
        if name != b"data":
            continue
        left = len(data) - start
        known = size
        if is_long and size == UNKNOWN_BYTES:
            known = int.from_bytes(sizes[8:16], "little")
        if _is_unknown_size(known, is_long=is_long):
            known = 0 if _ends_with_chunks(data, start) else left
        bytes_per_s = int.from_bytes(format_[8:12], "little")
        if known - left > SLACK_S * bytes_per_s:
            raise _cut_off()
        if not is_long and known == size and at % 2 == 0:
            return data
        return _wav(format_, data[start : start + known])
    return data


def _is_unknown_size(size: int, *, is_long: bool) -> bool:
    """Whether a size of the sound is what writers leave that do not know it."""
    return size == 0 or (size == UNKNOWN_BYTES if is_long else size >= UNKNOWN_WAV_BYTES)


def _chunks(data: bytes, at: int) -> Iterator[tuple[int, bytes, int]]:
    """Place, name and size of each chunk. Behind one of an odd size comes a byte more, but not of
    all writers."""
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        yield at, name, size
        at += 8 + size
        if size % 2 and not (_is_name(data[at : at + 4]) and not _is_name(data[at + 1 : at + 5])):
            at += 1


def _ends_with_chunks(data: bytes, at: int) -> bool:
    """Whether nothing but chunks follows, to the end of the file: then there is no sound in it."""
    end = at
    for start, name, size in _chunks(data, at):
        if not _is_name(name):
            return False
        end = start + 8 + size
    return len(data) - 1 <= end <= len(data)


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and name.isascii() and name.decode("ascii").isprintable()


def _wav(format_: bytes, samples: bytes) -> bytes:
    body = b"WAVE" + b"".join(
        name + len(chunk).to_bytes(4, "little") + chunk + bytes(len(chunk) % 2)
        for name, chunk in ((b"fmt ", format_), (b"data", samples))
    )
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def _check_ogg(data: bytes) -> None:
    """Raises InvalidInput for a page that is damaged (libsndfile leaves it out and goes on), where
    no page says that it is the last one, and where a stream comes after it."""
    at, has_ended = 0, data[:4] != b"OggS"
    while data[at : at + 4] == b"OggS" and at + 27 <= len(data):
        flags, segments = data[at + 5], data[at + 26]
        if has_ended and flags & OGG_FIRST_PAGE:
            raise InvalidInput("the OGG file has several streams, one after another; send each.")
        end = at + 27 + segments + sum(data[at + 27 : at + 27 + segments])
        if end <= len(data) and not _is_whole_page(data[at:end]):
            raise InvalidInput("the audio is damaged or cut off (a page of OGG is not as written).")
        at = end
        has_ended = bool(flags & OGG_LAST_PAGE)
    if not has_ended or at > len(data):
        raise _cut_off()


def _is_whole_page(page: bytes) -> bool:
    """Its checksum is zlib's, but for the order of bits, and where it begins."""
    bits = (page[:22] + bytes(4) + page[26:]).translate(MIRRORED)
    checksum = zlib.crc32(bits, 0xFFFF_FFFF) ^ 0xFFFF_FFFF
    return checksum.to_bytes(4, "big").translate(MIRRORED) == page[22:26]


def _cut_off() -> InvalidInput:
    return InvalidInput("the audio is cut off: the file ends before the sound does.")


def _without_wrong_length(data: bytes) -> bytes:
    """An MP3 whose first frame knows of less than is there, without that frame's word on it."""
    start = 0
    while data[start : start + 3] == b"ID3":
        size = 0
        for byte in data[start + 6 : start + 10]:
            size = size << 7 | byte & 0x7F
        start += 10 + size
    head = data[start : start + 256]
    at = max(head.find(b"Xing"), head.find(b"Info"))
    if at < 0:
        return data
    flags = int.from_bytes(head[at + 4 : at + 8], "big")
    stated_at = at + 8 + (4 if flags & XING_HAS_FRAMES else 0)
    stated = int.from_bytes(head[stated_at : stated_at + 4], "big")
    if not flags & XING_HAS_BYTES or stated > 0.9 * (len(data) - start):
        return data
    return data[: start + at] + bytes(4) + data[start + at + 4 :]


# Audio as models take it: one channel of float32 at the model's rate.
#
# Any rate and any number of channels will do; channels are averaged. A file is decoded and
# resampled block by block, so that no more than the result is ever in memory. What is too
# long is refused before it is decoded, and what breaks off is an error, not a shorter text.

Samples = NDArray[np.float32]

RATE_LIMIT_HZ = 384_000
BLOCK_SAMPLES = 2**18
# The scale of integers of 32 bits; nothing that was meant as sound is beyond it.
LOUDEST = 2.0**31
# Of the fraction between two rates. It bounds the filter's length, and costs odd rates some
# milliseconds an hour.
DENOMINATOR_LIMIT = 16_000
# The filter is what scipy designs by itself: ten crossings of zero on each side.
FILTER_CROSSINGS = 10
FILTER_WINDOW = ("kaiser", 5.0)


def decode(data: bytes, *, rate_hz: int, limit_s: float) -> Samples:
    """Raises InvalidInput for what is no audio, is damaged, cut off or too long, or holds no
    sound."""
    with open_sound(data) as file:
        if not 1 <= file.samplerate <= RATE_LIMIT_HZ:
            raise InvalidInput(
                f"the audio claims to have {file.samplerate:,} samples a second; up to "
                f"{RATE_LIMIT_HZ:,} can be read."
            )
        ratio = Fraction(rate_hz, file.samplerate).limit_denominator(DENOMINATOR_LIMIT)
        blocks = [block for block in resampled(_mono(file, limit_s), ratio) if len(block)]
    if not blocks:
        raise InvalidInput("the audio holds no sound: its length is zero.")
    return np.concatenate(blocks)


def _mono(file: SoundFile, limit_s: float) -> Iterator[Samples]:
    rate_hz = file.samplerate
    known = None if file.frames == UNKNOWN_FRAMES else file.frames
    if known is not None:
        _check_length(known / rate_hz, limit_s)
    done = 0
    while known is None or done < known:
        # Not beyond the end: what comes there, such as a tag, is no sound.
        left = BLOCK_SAMPLES if known is None else known - done
        try:
            block = file.read(
                max(1, min(BLOCK_SAMPLES // file.channels, left)), dtype="float32", always_2d=True
            )
        except soundfile.LibsndfileError as error:
            reason = error.error_string.removeprefix("Error : ").rstrip(".")
            raise InvalidInput(f"the audio is damaged or cut off ({reason}).") from error
        if not len(block):
            break
        done += len(block)
        _check_length(done / rate_hz, limit_s)
        if not (np.abs(block) <= LOUDEST).all():
            raise InvalidInput("the audio holds samples that are no sound (NaN or infinite).")
        yield block.mean(axis=1)
    if known is not None and known - done > SLACK_S * rate_hz:
        raise InvalidInput(
            f"the audio is cut off: {known / rate_hz:.1f} s long by its header, "
            f"{done / rate_hz:.1f} s are there."
        )


def _check_length(length_s: float, limit_s: float) -> None:
    if length_s > limit_s:
        raise InvalidInput(
            f"the audio is longer than {limit_s:,.0f} s (SLUICE_HF_AUDIO_LIMIT_S). Send it in "
            "parts."
        )


def resampled(blocks: Iterable[Samples], ratio: Fraction) -> Iterator[Samples]:
    """What `scipy.signal.resample_poly` makes of the blocks joined, but for rounding.

    Blocks are filtered with as much of their neighbours as the filter reaches; what comes before
    the first and after the last is silence.
    """
    up, down = ratio.numerator, ratio.denominator
    if up == down:
        yield from blocks
        return
    reach = FILTER_CROSSINGS * max(up, down)
    taps = firwin(2 * reach + 1, 1 / max(up, down), window=FILTER_WINDOW).astype(np.float32)
    # Multiples of `down`, so that each block begins on a sample of the result.
    margin = down * math.ceil(reach / up / down)
    step = down * math.ceil(BLOCK_SAMPLES / down)
    silence = np.zeros(margin, np.float32)
    held, taken = silence, 0
    for block in blocks:
        held, taken = np.concatenate([held, block]), taken + len(block)
        while len(held) >= margin + step + margin:
            filtered = resample_poly(held[: margin + step + margin], up, down, window=taps)
            yield filtered[margin * up // down : (margin + step) * up // down]
            held = held[step:]
    left = len(held) - margin
    filtered = resample_poly(np.concatenate([held, silence]), up, down, window=taps)
    yield filtered[margin * up // down : margin * up // down + math.ceil(left * up / down)]


# Decoded audio, kept from one step of a job to the next.
#
# A long recording takes many steps, each of which prepares it again, and to decode two hours
# takes a minute. What is kept in all is never more than one recording may have; what is done
# with is forgotten.


class Recordings:
    """For one thread at a time."""

    def __init__(self, *, rate_hz: int, limit_s: float) -> None:
        self.rate_hz = rate_hz
        self.limit_s = limit_s
        self._kept: OrderedDict[bytes, Samples] = OrderedDict()

    def take(self, data: bytes) -> tuple[bytes, Samples]:
        """The samples of a file, and the key to `forget` them by. Raises InvalidInput."""
        key = hashlib.sha256(data).digest()
        samples = self._kept.pop(key, None)
        if samples is None:
            samples = decode(data, rate_hz=self.rate_hz, limit_s=self.limit_s)
        self._kept[key] = samples
        while sum(map(len, self._kept.values())) > self.limit_s * self.rate_hz:
            self._kept.popitem(last=False)
        return key, samples

    def forget(self, key: bytes) -> None:
        self._kept.pop(key, None)


# Long audio cut into windows that overlap.
#
# What a model makes of a window's edges is worth little. So each window reaches into its
# neighbours, and what it says of that part, `left` and `right`, gives way to what they say.

# Of a window, on each side; as in transformers' pipeline.
STRIDE_PART = 6


@dataclass(frozen=True, kw_only=True)
class SampleWindow:
    """In samples."""

    start: int
    end: int
    left: int
    right: int

    @property
    def size(self) -> int:
        return self.end - self.start


def windows(samples: int, *, size: int, stride: int) -> Sequence[SampleWindow]:
    """One window where all fits into it; the last one is as long as what is left."""
    if samples <= size:
        return [SampleWindow(start=0, end=samples, left=0, right=0)]
    step = size - 2 * stride
    starts = range(0, samples - 2 * stride, step)
    return [
        SampleWindow(
            start=start,
            end=min(start + size, samples),
            left=stride if start else 0,
            right=stride if start + size < samples else 0,
        )
        for start in starts
    ]


def aligned(length_s: float, rate_hz: int, to: int = 1) -> int:
    """In samples, a multiple of `to`."""
    return round(length_s * rate_hz / to) * to
