"""Audio as models take it: one channel of float32 at the model's rate.

Any rate and any number of channels will do; channels are averaged. A file is decoded and resampled
block by block, so that no more than the result is ever in memory. What is too long is refused
before it is decoded, and what breaks off is an error, not a shorter text.
"""

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import firwin, resample_poly

from shared.errors import InvalidInput
from workers.hf.sound_files import SLACK_S, UNKNOWN_FRAMES, SoundFile, open_sound

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
