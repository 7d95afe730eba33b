"""Plain text that is read in sections: the very text and pieces of the whole, in little memory."""

import random
import tracemalloc
from typing import Any

import pytest

from shared.errors import DocumentError
from shared.kinds.ingest import LoadOptions, Splitter, SplitterType
from tests.costs.test_ingest_costs import fitting, tokenizer
from tests.unit.documents import KOREAN, read
from workers.ingest.formats.texts import large_text
from workers.ingest.formats.texts.large_text import LargeText
from workers.ingest.load import LoadedText, TextPassage, split, split_sections

BLOCK = 100_003
SECTION = 30_000
WORDS = ("queue", "step", "lease", "worker", "작업", "상태", "영업", "office,", "time.", "état")


def large(
    data: bytes, *, encoding: str | None = None, charset: str | None = None, max_chars: int = 10**9
) -> LargeText:
    return LargeText(
        name="a.txt",
        blocks=lambda: (data[at : at + BLOCK] for at in range(0, len(data), BLOCK)),
        charset=charset,
        options=LoadOptions(encoding=encoding),
        max_chars=max_chars,
    )


def sections(text: LargeText) -> list[str]:
    return list(text.sections(text.encoding([])))


def prose(chars: int, end: str = "\n\n") -> str:
    """Paragraphs of up to 2,000 characters."""
    chance = random.Random(chars)
    parts: list[str] = []
    size = 0
    while size < chars:
        parts.append(" ".join(chance.choices(WORDS, k=chance.randint(1, 300))))
        size += len(parts[-1]) + len(end)
    return end.join(parts)


TEXT = prose(200_000)


@pytest.fixture(autouse=True)
def _small_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_text, "SECTION_CHARS", SECTION)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "cp949", "utf-16-le", "iso2022_kr"]
)
def test_sections_are_the_text_of_the_whole(encoding: str) -> None:
    text = prose(100_000, "\r\n\r\n").replace("état", "역")
    found = sections(large(text.encode(encoding)))
    assert "".join(found) == text.replace("\r\n", "\n")
    assert len(found) > 1
    assert all(len(section) <= SECTION for section in found)


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("\u1112\u1161\u11ab", "한"),
        ("e\u0301", "é"),
        ("a\r\nb", "a\nb"),
        ("漢字", "漢字"),
        ("\U0001f600", "\U0001f600"),
    ],
)
def test_what_is_joined_is_not_divided(part: str, whole: str) -> None:
    """No white space for a section to end at."""
    times = 100_000 // len(part)
    assert "".join(sections(large((part * times).encode()))) == whole * times


def test_the_encoding_is_that_of_all_of_it() -> None:
    """Of a text that begins in English and goes on in Korean."""
    english = "A sentence of plain English.\n" * 40_000
    data = (english + f"{KOREAN}\n" * 2_000).encode("cp949")
    assert large(data).encoding([]) == "cp949"
    assert read(data, max_chars=10**9).metadata["encoding"] == "cp949"
    assert large(data, charset="iso-8859-1").encoding([]) == "cp949"
    plus = ("1 + 1 = 2\n" * 20_000 + "état\n").encode()
    assert large(plus).encoding([]) == "utf-8"


def test_the_first_bad_byte_is_named() -> None:
    line = f"{KOREAN}\n".encode("cp949")
    data = bytearray(line * 10_000)
    at = len(line) * 8_000 + 2
    data[at : at + 2] = b"\xff\xff"
    with pytest.raises(DocumentError, match=f"cp949.*byte 0xff at offset {at:,}"):
        sections(large(bytes(data)))
    plain = b"a line\n" * 300_000 + b"\xff\xfe\xff\n" + b"a line\n" * 10
    with pytest.raises(DocumentError, match=r"byte 0xff at offset 2,100,000"):
        sections(large(plain))
    with pytest.raises(DocumentError, match=r"cp949.*byte 0xff at offset 2,100,000"):
        sections(large(plain, encoding="euc-kr"))
    with pytest.raises(DocumentError, match="NUL byte at offset 2,100,001"):
        sections(large(b"a line\n" * 300_000 + b"a\0 line"))
    with pytest.raises(DocumentError, match="no text encoding called 'nonsense'"):
        sections(large(plain, encoding="nonsense"))


def test_a_text_without_letters_or_of_too_many_is_refused() -> None:
    with pytest.raises(DocumentError, match="has no text in it"):
        large(b" \n" * 600_000).measured("utf-8", lambda: None)
    with pytest.raises(DocumentError, match="SLUICE_MAX_DOCUMENT_CHARS"):
        sections(large(b"a b\n" * 600_000, max_chars=2_000_000))


Places = list[tuple[int, str]]


def in_sections(splitter: Splitter, text: str = TEXT, **options: Any) -> Places:
    found = split_sections(iter(sections(large(text.encode()))), splitter, **options)
    return [(piece.start, piece.text) for piece in found]


def of_the_whole(splitter: Splitter) -> Places:
    passages = (TextPassage(text=TEXT, start=0, metadata={}),)
    found = split(LoadedText(text=TEXT, passages=passages, metadata={}), splitter)
    return [(piece.start, piece.text) for piece in found]


def test_pieces_are_those_of_the_whole() -> None:
    splitter = Splitter(chunk_size=1000)
    whole = of_the_whole(splitter)
    assert in_sections(splitter) == whole
    middle = len(whole) * 2 // 3
    rest = in_sections(splitter, start=whole[middle][0])
    assert rest[:1] == whole[middle : middle + 1]
    assert rest[-20:] == whole[-20:]


@pytest.mark.parametrize("type_", [SplitterType.SENTENCE, SplitterType.CHARACTER])
def test_no_splitter_loses_any_text(type_: SplitterType) -> None:
    check_cover(in_sections(Splitter(type=type_, chunk_size=1000)), TEXT)


def test_pieces_that_fit_lose_no_text() -> None:
    text = "a b c d e f g. " * 6_000
    for type_ in (SplitterType.RECURSIVE, SplitterType.TOKEN):
        splitter = Splitter(type=type_, chunk_size=None)
        check_cover(in_sections(splitter, text, tokenizer=tokenizer(), window=fitting(400)), text)


def check_cover(found: Places, whole: str) -> None:
    end = 0
    for start, text in found:
        assert whole[start : start + len(text)] == text
        assert not whole[end:start].strip()
        end = max(end, start + len(text))
    assert not whole[end:].strip()


def test_memory_does_not_grow_with_the_text() -> None:
    block = ("x" * 980 + "\n\n").encode() * 50
    peaks = []
    for times in (50, 150):
        text = LargeText(
            name="a.txt",
            blocks=lambda times=times: (block for _ in range(times)),  # type: ignore[misc]
            charset=None,
            options=LoadOptions(),
            max_chars=10**9,
        )
        tracemalloc.start()
        for _ in split_sections(text.sections(text.encoding([])), Splitter(chunk_size=1000)):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0], peaks
