"""Base64 however programs write it, and what is none."""

import base64
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import bounds
from shared.errors import InvalidInput

DATA = random.Random(1).randbytes(3001)
PLAIN = base64.b64encode(DATA).decode()
assert "+" in PLAIN
assert "/" in PLAIN
assert PLAIN.endswith("=")

WRITTEN = {
    "plain": PLAIN,
    "in lines": base64.encodebytes(DATA).decode(),
    "in lines of Windows": base64.encodebytes(DATA).decode().replace("\n", "\r\n"),
    "with spaces": " ".join(PLAIN[n : n + 7] for n in range(0, len(PLAIN), 7)),
    "indented": f"\n\t  {PLAIN}\n",
    "unpadded": PLAIN.rstrip("="),
    "for URLs": base64.urlsafe_b64encode(DATA).decode(),
    "for URLs, unpadded": base64.urlsafe_b64encode(DATA).decode().rstrip("="),
    "data URL": f"data:audio/wav;base64,{PLAIN}",
    "data URL with parameters": f"data:audio/ogg; codecs=opus;Base64,{PLAIN}",
    "data URL of no type": f"DATA:;base64,{PLAIN}",
    "data URL in lines": "data:image/png;base64,\n" + base64.encodebytes(DATA).decode(),
    "data URL with escapes": "data:image/png;base64,"
    + PLAIN.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_it_is_read(text: str) -> None:
    assert bounds.decode(text) == DATA


@given(data=st.binary(min_size=1), width=st.integers(1, 80))
def test_it_is_read_whatever_its_length(data: bytes, width: int) -> None:
    for text in (base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()):
        for written in (text, text.rstrip("=")):
            lines = "\n".join(written[n : n + width] for n in range(0, len(written), width))
            assert bounds.decode(lines) == data


@pytest.mark.parametrize(
    "text",
    ["", " \n", "=", "====", "A", "AAAAA", "AA=AA", "A!BC", "아홉 시", "{}", "fLaC\0", "a.wav",
     "https://example.org/a.wav", "data:audio/wav,AAAA", "data:audio/wav;base64,",
     "data:audio/wav;base64", "data:audio/wav;base64,A!BC", "data:audio/wav;base32,AAAA"],
)  # fmt: skip
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="this is no base64; send the file in base64"):
        bounds.decode(text)


def test_words_are_not_surely_base64() -> None:
    sure = {name for name, text in WRITTEN.items() if bounds.is_surely(text)}
    assert sure == set(WRITTEN) - {"with spaces", "indented"}
    for text in ("", "word " * 99, "word\n" * 99, "word\nanother\n" * 99, "data:text/plain,word"):
        assert not bounds.is_surely(text)
