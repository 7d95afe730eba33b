"""Citation markers: which ones stay, what goes with them, and that pieces do not matter."""

import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.generation.languages import ENGLISH, KOREAN
from workers.generation.rag import MarkerFilter, is_no_answer


def filtered(pieces: str | list[str], passages: int = 3) -> tuple[str, list[int], int]:
    markers = MarkerFilter(passages)
    shown = "".join([*map(markers.feed, pieces), markers.close()])
    return shown, markers.cited, markers.removed


@pytest.mark.parametrize(
    ("text", "shown", "cited", "removed"),
    [
        ("Port 8000 [1].", "Port 8000 [1].", [1], 0),
        ("Both [2][1] and [2].", "Both [2][1] and [2].", [2, 1], 0),
        ("Both [1, 3] and [2;3].", "Both [1, 3] and [2;3].", [1, 3, 2], 0),
        ("Fake [99].", "Fake.", [], 1),
        ("Zero [0] here.", "Zero here.", [], 1),
        ("Half [1, 99].", "Half [1].", [1], 1),
        ("Two [98] [99] of them.", "Two of them.", [], 2),
        ("Kept [99] [1].", "Kept [1].", [1], 1),
        ("Kept [99][1].", "Kept [1].", [1], 1),
        ("Kept [1][99].", "Kept [1].", [1], 1),
        ("[99] At the start.", "At the start.", [], 1),
        ("A line.\n[99] At a line's start.", "A line.\nAt a line's start.", [], 1),
        ("- [99] An item", "- An item", [], 1),
        ("glued [99]word", "glued word", [], 1),
        ("At the end [99]", "At the end", [], 1),
        ("At the end [99]\nNext.", "At the end\nNext.", [], 1),
        ("한국어 문장입니다 [7].", "한국어 문장입니다.", [], 1),
        ("한국어 문장입니다[2].", "한국어 문장입니다[2].", [2], 0),
        ("Spaced [ 2 ] out.", "Spaced [ 2 ] out.", [2], 0),
        ("Zeros [002].", "Zeros [2].", [2], 0),
        ("Many digits [" + "9" * 40 + "].", "Many digits.", [], 1),
        ("Not one: [a] [1a] [] [ ] [,] [1,] [1-2] [link](http://a).", None, [], 0),
        ("Open [1", None, [], 0),
        ("Open [ ", None, [], 0),
        ("Nested [[1]].", "Nested [[1]].", [1], 0),
        ("Nested [[9]].", "Nested [].", [], 1),
        ("Put together [[9]9] [[9][8]7] [[1, [9]2].", "Put together [[1, 2].", [1, 2], 6),
        ("Other digits [２] [²].", None, [], 0),
        ("Code `rows[0]` and `rows[99]`.", None, [], 0),
        ("```\nrows[0] [99]\n```\nand [99]", "```\nrows[0] [99]\n```\nand", [], 1),
        ("``a ` [9]`` and [9].", "``a ` [9]`` and.", [], 1),
        ("A lone ` tick [99]\nand [99].", "A lone ` tick [99]\nand.", [], 1),
        ("Long [" + "1, " * 40 + "1].", None, [], 0),
    ],
)
def test_markers(text: str, shown: str | None, cited: list[int], removed: int) -> None:
    assert filtered(text) == (text if shown is None else shown, cited, removed)
    assert filtered([text]) == filtered(text)


def test_text_is_shown_as_soon_as_it_cannot_be_a_marker() -> None:
    markers = MarkerFilter(2)
    assert markers.feed("The port") == "The port"
    assert markers.feed(" is 8000 [") == " is 8000"
    assert markers.feed("1") == ""
    assert markers.feed("].") == " [1]."
    assert markers.feed(" [x") == " [x"
    assert markers.close() == ""


MARKER = re.compile(r"\[ *\d+(?: *[,;] *\d+)* *\]")
ANSWERS = st.lists(
    st.sampled_from(
        ["[1]", "[9]", "[1, 9]", "[0;2]", "[", "]", " ", "  ", "\n", "`", "```", "a", ".", "1", ","]
    ),
    max_size=30,
).map("".join)


@given(ANSWERS, st.lists(st.integers(min_value=0, max_value=80)))
@example("a [9] [1]", [3])
def test_pieces_do_not_matter(text: str, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[start:end] for start, end in pairwise(ends)]
    assert filtered(pieces) == filtered([text])


@given(ANSWERS.filter(lambda text: "`" not in text))
@example("[[9]9]")
@example("[1, [9]9]")
def test_what_is_left_cites_passages_only_and_no_words_are_lost(text: str) -> None:
    shown, cited, removed = filtered(text)
    left = [int(n) for marker in MARKER.findall(shown) for n in re.findall(r"\d+", marker)]
    assert set(left) == set(cited)
    assert all(1 <= number <= 3 for number in cited)
    assert len(set(cited)) == len(cited)
    if not removed:
        assert shown == text
    while (bare := MARKER.sub("", text)) != text:
        text = bare
    while (bare := MARKER.sub("", shown)) != shown:
        shown = bare
    assert "".join(shown.split()) == "".join(text.split())


@pytest.mark.parametrize(
    "answer",
    [
        ENGLISH.not_found,
        KOREAN.not_found,
        f"  {ENGLISH.not_found}\n",
        f'"{ENGLISH.not_found.upper()}"',
        f"**{ENGLISH.not_found.rstrip('.')}** [1]",
        KOREAN.not_found.rstrip("."),
    ],
)
def test_an_answer_that_says_so_is_seen(answer: str) -> None:
    assert is_no_answer(answer)


@pytest.mark.parametrize(
    "answer", ["", "Port 8000 [1].", f"{ENGLISH.not_found} But the port is 8000."]
)
def test_an_answer_that_says_something_is_an_answer(answer: str) -> None:
    assert not is_no_answer(answer)
