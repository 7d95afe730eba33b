"""A document's bytes -> its text, the documents within it, and the pieces that become chunks.

`load` finds the format (`formats/sniffing.py`), whose loader makes text of the bytes. The result
can be stored: it is in Unicode's normal form C (NFC), line ends are `\n`, and NUL characters and
lone surrogates, which Postgres refuses, are replaced by U+FFFD. A document that cannot be used is a
`DocumentError` that names the document and the remedy, also if a library fails. No network, no
database.

Offsets count code points of that text. Plain text and Markdown are otherwise unchanged; HTML is
rendered (`html.py`); every row of a CSV (`tables.py`) and every element of a JSON array or line of
JSON Lines (`records.py`) is a passage, with a blank line between two.
"""

import logging
import re
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, replace
from functools import cache, lru_cache, partial
from itertools import pairwise
from math import isfinite
from pkgutil import resolve_name
from typing import Any, Final, NamedTuple, Protocol

import regex
from billiard.exceptions import SoftTimeLimitExceeded
from tokenizers import Tokenizer

from shared.bounds import INT64_MAX, Metadata, cut
from shared.config import IngestSettings
from shared.errors import ConfigurationError, DocumentError, SluiceError
from shared.formats import Format
from shared.kinds.ingest import LoadOptions, Splitter, SplitterType
from workers.ingest.formats.container import Budget, Exceeded, Member, whole_name
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Heading,
    Loader,
    PassageKey,
    RawDocument,
    Utterance,
    too_long,
    too_many,
)
from workers.ingest.formats.sniffing import format_of, split_content_type
from workers.ingest.formats.texts import markdown
from workers.ingest.formats.texts.code import code_separators
from workers.ingest.formats.texts.large_text import SECTION_CHARS
from workers.ingest.formats.texts.text import storable

log = logging.getLogger(__name__)

LOADER_VERSION = 6
"""Raise it when loading or splitting gives something else than before, so that it is redone: a
source that is ingested again is then replaced, though its bytes are the same."""
PASSAGE_GAP: Final = "\n\n"
NO_OPTIONS: Final = LoadOptions()
DEFAULTS: Final = IngestSettings.model_construct()


@dataclass(frozen=True, kw_only=True)
class TextPassage:
    """A part of the text that is split on its own: a row, a JSON element, or the whole text."""

    text: str
    start: int
    metadata: Metadata
    headings: tuple[Heading, ...] = ()
    """Those in it, where the loader knows them."""


@dataclass(frozen=True, kw_only=True)
class LoadedText:
    """`text[p.start : p.start + len(p.text)] == p.text` for each passage `p`."""

    text: str
    passages: tuple[TextPassage, ...]
    metadata: Metadata
    warnings: tuple[str, ...] = ()
    """What was not read of the document."""

    def as_json(self) -> dict[str, Any]:
        """For another process; the text is in it once."""
        return {
            "text": self.text,
            "passages": [
                (p.start, len(p.text), p.metadata, [astuple(h) for h in p.headings])
                for p in self.passages
            ],
            "metadata": self.metadata,
            "warnings": self.warnings,
        }

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> "LoadedText":
        text = value["text"]
        return cls(
            text=text,
            passages=tuple(
                TextPassage(
                    text=text[start : start + length],
                    start=start,
                    metadata=metadata,
                    headings=tuple(
                        Heading(start=first, end=end, level=level, title=title)
                        for first, end, level, title in headings
                    ),
                )
                for start, length, metadata, headings in value["passages"]
            ),
            metadata=value["metadata"],
            warnings=tuple(value["warnings"]),
        )


def load(
    data: bytes | str,
    *,
    name: str,
    content_type: str | None,
    options: LoadOptions = NO_OPTIONS,
    settings: IngestSettings = DEFAULTS,
    file_name: str | None = None,
    transcript: Sequence[Utterance] | None = None,
) -> LoadedText:
    """Read one document. Raises `DocumentError`, whatever is wrong with it.

    `data` may be a string (text sent inline): nothing is decoded then, and an extension in `name`
    that is unknown or unsupported means plain text, since the name is only a label.
    `file_name` is whose suffix counts, where `name` is none of a file. `transcript` is what was
    heard in a recording.
    """
    if not data.strip():
        raise DocumentError(f"{name}: is empty. There is nothing to ingest; leave it out.")
    with _renamed(name, file_name):
        format_ = format_of(file_name or name, content_type, data)
    document = RawDocument(
        name=name,
        data=data,
        charset=split_content_type(content_type)[1],
        options=options,
        settings=settings,
        transcript=transcript,
    )
    check_requested(name, format_, options)
    with document_errors(name, format_):
        read = loader_of(format_).load
        if read is None:
            raise DocumentError(
                f"{name}: is an archive ({format_.name}), which is no document itself. Unpack it, "
                "and ingest what is in it."
            )
        parts = read(document)
        return _assemble(document, parts, media_type=format_.media_types[0])


_OPTIONAL: Final = {
    "ocr": "pictures ({}) are not supported unless their text is to be recognized",
    "speech": "recordings ({}) are not supported unless they are to be transcribed",
}


def check_requested(name: str, format_: Format, options: LoadOptions) -> None:
    """Raises DocumentError for a document that is only read where the job asks for it."""
    option = format_.option
    if option and option not in options.requested:
        raise DocumentError(
            f"{name}: {_OPTIONAL[option].format(format_.name)}. Ingest it with the option {option} "
            f'(`"{option}": {{}}` in the job, `--{option}` on the command line), or leave it out.'
        )


@contextmanager
def _renamed(name: str, file_name: str | None) -> Iterator[None]:
    """Errors name the document, and not the file."""
    try:
        yield
    except DocumentError as error:
        if file_name is None:
            raise
        raise DocumentError(f"{name}{error.message.removeprefix(file_name)}") from error


@contextmanager
def document_errors(name: str, format_: Format) -> Iterator[None]:
    """Whatever a loader or its library raises says which document cannot be read. What stops the
    step passes."""
    try:
        yield
    except (SluiceError, SoftTimeLimitExceeded):
        raise
    except ImportError as error:
        extra = format_.extra or "worker"
        raise DocumentError(
            f"{name}: {format_.name} cannot be read, for the workers lack a package: {error}. "
            f"Install the extra {extra} for them (in the folder of Sluice: "
            f"pip install ./client '.[{extra}]')."
        ) from error
    except MemoryError as error:
        raise DocumentError(
            f"{name}: takes more memory to read as {format_.name} than there is "
            "(SLUICE_LOAD_MEMORY_MIB). Divide it."
        ) from error
    except RecursionError as error:
        raise DocumentError(
            f"{name}: is nested too deeply to be read as {format_.name}. Flatten it, or save it "
            "in another format."
        ) from error
    except Exception as error:
        log.info("%s: not read as %s", name, format_.name, exc_info=True)
        reason = cut(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        raise DocumentError(
            f"{name}: cannot be read as {format_.name} ({reason}). It may be damaged: open it in "
            "the program that made it, and save it again."
        ) from error


def whole_text(text: str, *, name: str) -> LoadedText:
    """A text that is a chunk as it is. Raises `DocumentError`."""
    text = storable(text)
    if not text.strip():
        raise DocumentError(f"{name}: is empty. There is nothing to ingest; leave it out.")
    passage = TextPassage(text=text, start=0, metadata={})
    return LoadedText(text=text, passages=(passage,), metadata={})


@cache
def loader_of(format_: Format) -> Loader:
    """Imported late: a library that reads one format is needed by nobody who reads others."""
    loader: Loader = resolve_name(format_.loader)
    return loader


def form(format_: Format | None, content_type: str | None, data: bytes | str) -> tuple[str, ...]:
    """What decides about the text that the bytes become, beside them."""
    media_type, charset = split_content_type(content_type)
    if format_ is not None:
        media_type = format_.media_types[0]
    is_plain = isinstance(data, str) or charset in (None, "utf-8", "utf8")
    return media_type or "", ("" if is_plain else str(charset))


def _assemble(document: RawDocument, parts: DocumentParts, *, media_type: str) -> LoadedText:
    name, max_passages = document.name, document.max_passages
    passages: list[TextPassage] = []
    end = 0
    for written, own in parts.passages:
        text = storable(written)
        if not text.strip():
            continue
        start = end + len(PASSAGE_GAP) if passages else 0
        end = start + len(text)
        if end > document.max_chars:
            # Checked as the parts come, so that an endless document is not built first.
            raise too_long(name, document.max_chars)
        if len(passages) == max_passages:
            raise too_many(name, max_passages)
        passages.append(TextPassage(text=text, start=start, metadata=_storable_metadata(own)))
    if parts.headings and len(passages) == 1:
        passages = [replace(passages[0], headings=tuple(parts.headings))]
    if not passages:
        raise DocumentError(f"{name}: has no text in it. There is nothing to ingest; leave it out.")
    return LoadedText(
        text=PASSAGE_GAP.join(passage.text for passage in passages),
        passages=tuple(passages),
        metadata=_storable_metadata({DocumentKey.MEDIA_TYPE: media_type, **parts.metadata}),
        warnings=tuple(storable(warning) for warning in parts.warnings),
    )


def _storable_metadata(metadata: Metadata) -> Metadata:
    """Keys that become one are numbered, as columns of one name are."""
    renamed: Metadata = {}
    for written, value in metadata.items():
        key = base = storable(written)
        copy = 2
        while key in renamed or (key != base and key in metadata):
            key, copy = f"{base} ({copy})", copy + 1
        if value is not None:
            renamed[key] = _storable_value(value)
    return renamed


def _storable_value(value: Any) -> Any:
    """Libraries hand on what they read: dates, decimals, numbers that are none."""
    if isinstance(value, list):
        return [_storable_value(item) for item in value]
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, bool) or (isinstance(value, int) and abs(value) <= INT64_MAX):
        return int(value) if type(value) not in (bool, int) else value
    if isinstance(value, float) and isfinite(value):
        return float(value)
    return storable(str(value))


# The documents within a document: all members of an archive or a mail, and what is within those in
# turn, under names such as `letters.zip!/may.eml!/plan.txt`.
#
# Members come one by one, so that memory does not grow with an archive. One budget is for all of
# the outermost document (`formats/container.py`). A fault of one member, such as a damaged archive
# in it, is an error of that member alone.


def members(
    data: bytes | str,
    *,
    name: str,
    content_type: str | None,
    options: LoadOptions,
    settings: IngestSettings,
    file_name: str | None = None,
) -> Iterator[Member]:
    """The members of an archive or a mail, by their whole names, without members that are archives.

    Raises `DocumentError` if the document cannot be opened, or if its members are too many or too
    large. `file_name` is as in `load`.
    """
    budget = Budget(name=name, size_bytes=len(data), settings=settings)
    document = RawDocument(name=name, data=data, charset=None, options=options, settings=settings)
    yield from _members_within(
        document, format_of(file_name or name, content_type, data), budget, depth=1
    )


def _members_within(
    document: RawDocument, format_: Format, budget: Budget, *, depth: int
) -> Iterator[Member]:
    limit = document.settings.archive_limit_depth
    with document_errors(document.name, format_):
        open_ = loader_of(format_).members
        assert open_ is not None
        for member in open_(document, budget):
            name, problem = whole_name(document.name, member.name)
            member = replace(member, name=name, error=member.error or problem)
            inner = _container_format(member)
            if inner is None or inner.is_document:
                yield member
            if inner is None:
                continue
            within = replace(document, name=name, data=member.data)
            if depth == limit:
                yield from _unopened_members(within, inner, budget)
                continue
            try:
                yield from _members_within(within, inner, budget, depth=depth + 1)
            except Exceeded:
                raise
            except DocumentError as error:
                yield Member(name=name, error=error.message.removeprefix(f"{name}: "))


def _unopened_members(document: RawDocument, format_: Format, budget: Budget) -> Iterator[Member]:
    """Members with errors, for a document that is too deep to be opened."""
    limit = document.settings.archive_limit_depth
    error = (
        f"lies in {limit} others, which is as deep as they are opened. Unpack them, or raise "
        "SLUICE_ARCHIVE_LIMIT_DEPTH."
    )
    if not format_.is_document:
        yield Member(name=document.name, error=error)
        return
    open_ = loader_of(format_).members
    assert open_ is not None
    with document_errors(document.name, format_):
        for member in open_(document, budget):
            name, _ = whole_name(document.name, member.name)
            yield Member(name=name, error=error)


def _container_format(member: Member) -> Format | None:
    """The format of a member that contains documents itself."""
    if member.error:
        return None
    try:
        format_ = format_of(member.name, member.content_type, member.data)
    except DocumentError:
        return None  # loading will raise the error
    return format_ if format_.holds_documents else None


# A loaded document -> the pieces that become chunks, each an exact slice of the document's
# text.
#
# `piece.text == loaded.text[piece.start : piece.start + len(piece.text)]`, always, and every
# character that is not whitespace is in some piece. Passages are split one by one, so a piece
# never spans two rows. `recursive` gives the very pieces of LangChain's
# RecursiveCharacterTextSplitter with its default separators; `character` those of its
# CharacterTextSplitter (which never divides a paragraph, so a piece may exceed `chunk_size`),
# each with its own place and in time and memory linear in the text, which LangChain's are
# not; `markdown` and `html` split at headings first and then as `recursive`; `sentence` keeps
# sentences whole; `token` counts tokens of the embedding model. Source code is split at the
# separators of its language, which are those of LangChain (`formats/code.py`). A piece carries its
# passage's metadata, and where it is split at headings a `heading` such as "Guide > Install"; the
# document's own metadata is not repeated in it. The default separators know no sentence ends.
#
# Where no size is given, every piece fits into what the embedding model reads (`Window`). Pieces
# that do are those above, the very same; what lies between, where they do not, is divided anew
# by the model's tokens: between paragraphs, lines, sentences, clauses, words or characters,
# whichever comes first in this order and leaves no piece very small.

# Text -> spans of at most so many tokens of a Hugging Face fast tokenizer.
#
# Cuts fall between words wherever a word is shorter than a span, and never inside a
# character. The size counts the text's own tokens, without the special ones a model adds. It
# downloads nothing.

# Encoded block by block: one call for a whole book would hold hundreds of MiB.
_BLOCK_CHARS: Final = 100_000
_SPACE: Final = re.compile(r"\s")


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    starts: "array[int]"  # where each token begins in the text
    fresh: bytearray  # whether a word begins with it
    cuttable: bytearray  # whether a character, as people count them, begins with it


@lru_cache(maxsize=4)  # a copy takes tens of milliseconds, and every document asks for one
def whole(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself, or a copy without the truncation and padding that models ship with."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def spans(text: str, *, tokenizer: Tokenizer, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Start and end of each span, stripped of whitespace, none empty; together they cover all."""
    tokens = _encode(text, tokenizer)
    count = len(tokens.starts)
    first = before = 0
    while True:
        last = first + size
        if last < count:
            last = _cut_before(tokens, last, first)
            if last <= before:
                # A long word follows: what overlaps would be all of the span, again and again.
                first, last = before, before + size
                last = _cut_before(tokens, last, first) if last < count else count
        is_end = last >= count
        start = tokens.starts[first] if first else 0
        end = len(text) if is_end else tokens.starts[last]
        piece = text[start:end]
        if piece.strip():
            yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
        if is_end:
            return
        first, before = _resume(tokens, last, first, overlap), last


def _cut_before(tokens: _Tokens, last: int, first: int) -> int:
    """The nearest word at or before `last`; else the nearest character; else the next one."""
    for usable in (tokens.fresh, tokens.cuttable):
        at = usable.rfind(1, first + 1, last + 1)
        if at >= 0:
            return at
    while last < len(tokens.starts) and not tokens.cuttable[last]:
        last += 1
    return last


def _resume(tokens: _Tokens, last: int, first: int, overlap: int) -> int:
    """The first word at most `overlap` tokens before `last`, and after `first`."""
    at = tokens.fresh.find(1, max(first + 1, last - overlap), last)
    return at if at >= 0 else last


def _encode(text: str, tokenizer: Tokenizer) -> _Tokens:
    starts, fresh, cuttable = array("q"), bytearray(), bytearray()
    reached = 0
    for at, block in _blocks(text):
        encoding = tokenizer.encode(block, add_special_tokens=False)
        inner = _inner_offsets(block)
        word_before: int | None = -1
        for (start, end), word in zip(encoding.offsets, encoding.word_ids, strict=True):
            # Pieces of one character (its bytes, or Hangul's letters) share its offsets.
            starts.append(max(at + start, reached))
            cuttable.append(at + start >= reached and start not in inner)
            fresh.append(cuttable[-1] and (word is None or word != word_before))
            reached, word_before = max(reached, at + end), word
    return _Tokens(starts=starts, fresh=fresh, cuttable=cuttable)


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while start < len(text):
        end = start + _BLOCK_CHARS
        if end < len(text):
            # A text without any whitespace (Chinese, base64) is cut all the same.
            gap = _SPACE.search(text, end, end + _BLOCK_CHARS)
            end = gap.start() if gap else min(end + _BLOCK_CHARS, len(text))
        yield start, text[start:end]
        start = end


# Characters as people count them (https://unicode.org/reports/tr29/): an emoji of several code
# points, a letter with its marks, a flag.
_CHARACTER: Final = regex.compile(r"\X")
_INNER: Final = regex.compile(
    r"[^\p{Grapheme_Cluster_Break=Other}\p{Grapheme_Cluster_Break=Control}"
    r"\p{Grapheme_Cluster_Break=LF}\p{Grapheme_Cluster_Break=CR}"
    r"\p{Grapheme_Cluster_Break=LV}\p{Grapheme_Cluster_Break=LVT}]"
)
_CHARACTER_CHARS: Final = 64
"""A character of more code points may be cut."""
_CHARACTER_BLOCK: Final = 512
# The letters of flags, two each; backwards from where it is matched.
_HALF_FLAGS: Final = regex.compile(r"(?r)[\U0001F1E6-\U0001F1FF]+")
_FLAGS_CHARS: Final = 4096


def _inner_offsets(text: str) -> frozenset[int]:
    """Where the text must not be cut, for it would be within a character."""
    if text.isascii() or _INNER.search(text) is None:
        return frozenset()
    inner: set[int] = set()
    start = 0
    while start < len(text):
        # In slices, for the pattern looks back to the beginning of a run of flags.
        block = text[start : start + _CHARACTER_BLOCK]
        ends = [match.end() for match in _CHARACTER.finditer(block)]
        if len(ends) > 1 and start + len(block) < len(text):
            ends.pop()  # the last one may go on
        for first, end in pairwise([0, *ends]):
            inner.update(range(start + first + 1, start + end))
        start += ends[-1]
    return frozenset(inner)


def _character_before(text: str, at: int, floor: int) -> int:
    """The nearest place at or before `at`, and above `floor`, that is within no character; `at`
    where there is none."""
    return _character_edge(text, at, lambda edge: floor < edge <= at, max)


def _is_within(text: str, at: int) -> bool:
    """Whether a place is within a character."""
    return _character_before(text, at, at - _CHARACTER_CHARS) != at


def _character_after(text: str, at: int, limit: int) -> int:
    """The nearest place at or behind `at`, and below `limit`, that is within no character."""
    return _character_edge(text, at, lambda edge: at <= edge < limit, min)


def _character_edge(
    text: str, at: int, is_possible: Callable[[int], bool], nearest: Callable[[list[int]], int]
) -> int:
    if at >= len(text) or not _may_be_within(text, at):
        return at
    if (flags := _HALF_FLAGS.match(text, max(0, at - _FLAGS_CHARS), at)) and (
        _HALF_FLAGS.match(text, at, at + 1)
    ):
        edges = [at - len(flags[0]) % 2, at + len(flags[0]) % 2]
        return nearest([edge for edge in edges if is_possible(edge)] or [at])
    start, first = at, max(0, at - _CHARACTER_CHARS)
    while start > first and _may_be_within(text, start):
        start -= 1
    around = text[start : at + _CHARACTER_CHARS]
    edges = [start, *(start + match.end() for match in _CHARACTER.finditer(around))]
    return nearest([edge for edge in edges if is_possible(edge)] or [at])


def _may_be_within(text: str, at: int) -> bool:
    return at > 0 and bool(_INNER.match(text, at) or _INNER.match(text, at - 1))


Spans = Callable[[str], Iterator[tuple[int, int]]]
"""Text -> start and end of each piece of it; the pieces are stripped and never empty."""

_KEPT_CHARS: Final = 2 * SECTION_CHARS
"""More than pieces that are counted and divided together may reach back."""
_SPACES: Final = re.compile(r"\s+")
_PARAGRAPH_GAP: Final = "\n\n"
_SEPARATORS: Final = (_PARAGRAPH_GAP, "\n", " ", "")
_MARKDOWN_TYPE: Final = "text/markdown"
_STRUCTURED_TYPES: Final = frozenset({"text/html", "text/x-rst"})
"""Of documents whose loader knows all headings."""

# A full stop with what closes behind it, and white space; one of Chinese or Japanese, which needs
# none; one behind a Korean verb, also without white space; a blank line; a line that ends like a
# Korean sentence, or before an item of a list.
_SENTENCE_BREAK: Final = re.compile(
    r"([.!?…।॥؟۔]){1,10}+[\"')\]”’»」』]{0,3}\s++"
    r"|[。！？｡]{1,10}+(?:([」』”’）\])》】〉]{1,3})|)\s*+"
    r"|(?<=[다요죠음함됨임까])[.!?]{1,3}+(?=[가-힣“‘「『])"
    r"|\n[ \t]*+\n\s*+"
    r"|(?<=[다요죠음함됨임까])\n\s*+"
    r"|\n(?=[ \t]*+(?:[-*•·▪◦]|[0-9]{1,3}[.)])[ \t])"
)
_NUMERAL: Final = re.compile(r"\(?[0-9]{1,3}[.)]\s*")
_NUMERAL_CHARS: Final = 40
# What follows a quote in Korean, and a date as it is written there: 2024. 3. 1.
_SAYS: Final = re.compile(r"(?:이?라고|이?라며|이?라는|하고|하며)\s")
_DATE_BEFORE: Final = re.compile(r"[0-9]{1,4}\. ?[0-9]{1,2}$")
_LAST_WORD: Final = re.compile(r"[^\W_]+(?:\.[^\W_]+)*$")
_AFTER_QUOTE: Final = frozenset("とってはがもをにのだ他她我你它")
_ABBREVIATION_WORDS: Final = (
    "mr mrs ms dr prof st no nos vs e.g i.e etc cf fig figs eq al inc ltd co corp jr sr vol pp p "
    "ca approx dept est ed eds rev gen col sen rep jan feb mar apr jun jul aug sep sept oct nov dec"
)
_ABBREVIATIONS: Final = frozenset(_ABBREVIATION_WORDS.split())


@dataclass(frozen=True, kw_only=True)
class Piece:
    """`start` counts code points from the beginning of the document's text."""

    text: str
    start: int
    metadata: Metadata


@dataclass(frozen=True, kw_only=True)
class Window:
    """What an embedding model reads of a text."""

    tokens: int
    """Of the text itself, without those that the model adds."""
    tokenizer: Tokenizer | None
    overlong: Callable[[Sequence[str]], dict[int, int]]
    """Texts -> the tokens of those that are longer, with what the model adds, by index."""


def split(
    loaded: LoadedText,
    splitter: Splitter,
    *,
    tokenizer: Tokenizer | None = None,
    window: Window | None = None,
) -> Iterator[Piece]:
    """The pieces in order. `token` needs the embedding model's tokenizer. With a window each piece
    fits into it, whatever size the splitter names."""
    window = _window_for(splitter, tokenizer, window)
    separators = code_separators(loaded.metadata.get(DocumentKey.PROGRAMMING_LANGUAGE))
    by_size = _spans_of(splitter, tokenizer, window, separators or _SEPARATORS)
    spans = _spans_of_document(loaded, splitter, by_size)
    if window is not None:
        spans = _fitting(spans, loaded.text, splitter, window)
    for span in spans:
        yield Piece(text=loaded.text[span.start : span.end], start=span.start, metadata=span.own)


def _window_for(
    splitter: Splitter, tokenizer: Tokenizer | None, window: Window | None
) -> Window | None:
    if (
        splitter.type is SplitterType.TOKEN
        and tokenizer is not None
        and (window is None or splitter.size < window.tokens)
    ):
        # A piece may have more tokens than the same letters within the text.
        return _window_of(tokenizer, splitter.size)
    return window


def _window_of(tokenizer: Tokenizer, size: int) -> Window:
    counting = whole(tokenizer)

    def overlong(texts: Sequence[str]) -> dict[int, int]:
        counts = (len(counting.encode(text, add_special_tokens=False).ids) for text in texts)
        return {n: count for n, count in enumerate(counts) if count > size}

    return Window(tokens=size, tokenizer=tokenizer, overlong=overlong)


def split_sections(
    sections: Iterator[str],
    splitter: Splitter,
    *,
    start: int = 0,
    tokenizer: Tokenizer | None = None,
    window: Window | None = None,
) -> Iterator[Piece]:
    """The pieces of a plain text that comes in sections, from the place `start` of it on; as those
    that `split` gives, but for where a section ends within a long paragraph. No more than some
    sections are held. The splitter `markdown` needs the whole text."""
    window = _window_for(splitter, tokenizer, window)
    recent = _Recent()
    by_size = _spans_of(splitter, tokenizer, window, _SEPARATORS)
    spans = _spans_of_sections(_from(sections, start, recent), recent, splitter, by_size)
    if window is not None:
        spans = _fitting(spans, recent, splitter, window)
    for span in spans:
        yield Piece(text=recent[span.start : span.end], start=span.start, metadata=span.own)


class Slices(Protocol):
    """A text, or what is at hand of one, by places in the whole."""

    def __getitem__(self, places: slice, /) -> str: ...


class _Recent:
    """The last sections of a text, by places in the whole."""

    def __init__(self) -> None:
        self._text = ""
        self.start = self.end = 0

    def skip(self, chars: int) -> None:
        """Before anything is added."""
        self.start = self.end = self.end + chars

    def add(self, section: str) -> None:
        self._text = self._text[-_KEPT_CHARS:] + section
        self.end += len(section)
        self.start = self.end - len(self._text)

    def __getitem__(self, places: slice, /) -> str:
        assert self.start <= places.start <= places.stop <= self.end, "that text has gone"
        return self._text[places.start - self.start : places.stop - self.start]


def _from(sections: Iterator[str], start: int, recent: _Recent) -> Iterator[str]:
    for section in sections:
        if recent.end + len(section) <= start:
            recent.skip(len(section))
        elif recent.end < start:
            cut = start - recent.end
            recent.skip(cut)
            yield section[cut:]
        else:
            yield section


def _spans_of_sections(
    sections: Iterator[str], recent: _Recent, splitter: Splitter, spans: Spans
) -> Iterator["_Span"]:
    """The last piece of a section is split again with the next one, for it may become longer; but
    not behind a paragraph that is longer than a piece, which nothing is joined to."""
    own: Metadata = {}
    start: int | None = None
    section = next(sections, None)
    while section is not None:
        if start is None:
            start = recent.end
        recent.add(section)
        section = next(sections, None)
        text = recent[start : recent.end]
        last: _Span | None = None
        for first, end in spans(text):
            if last is not None:
                yield last
            last = _Span(0, start + first, start + end, own)
        begun = None
        if last is not None and section is not None and _goes_on_behind(text, splitter):
            begun = last.start
            while begun > start and recent[begun - 1 : begun].isspace():
                begun -= 1
        if begun is None or recent.end - begun > SECTION_CHARS // 2:
            start = recent.end
            if last is not None:
                yield last
        else:
            start = begun


def _goes_on_behind(text: str, splitter: Splitter) -> bool:
    if splitter.type not in (SplitterType.RECURSIVE, SplitterType.CODE, SplitterType.HTML):
        return True
    separator = next(sign for sign in _SEPARATORS if sign in text)
    return not separator or len(text) - text.rfind(separator) < splitter.size


class _Span(NamedTuple):
    """Of a passage, whose number it has, and of the document's text."""

    passage: int
    start: int
    end: int
    own: Metadata
    fits: bool = True


def _spans_of_document(loaded: LoadedText, splitter: Splitter, spans: Spans) -> Iterator[_Span]:
    media_type = loaded.metadata.get(DocumentKey.MEDIA_TYPE)
    for number, passage in enumerate(loaded.passages):
        for offset, text, metadata in _sections(passage, splitter, media_type):
            at = passage.start + offset
            for start, end in spans(text):
                yield _Span(number, at + start, at + end, metadata)


def _sections(
    passage: TextPassage, splitter: Splitter, media_type: object
) -> Iterator[tuple[int, str, Metadata]]:
    """The parts of a passage that stand under headings, where it is to be split by these: those
    that the loader knows, or else those of Markdown."""
    text, metadata = passage.text, passage.metadata
    is_markdown = media_type == _MARKDOWN_TYPE or (
        splitter.type is SplitterType.MARKDOWN and media_type not in _STRUCTURED_TYPES
    )
    by_headings = splitter.type in (SplitterType.MARKDOWN, SplitterType.HTML)
    if not by_headings or not (passage.headings or is_markdown):
        yield 0, text, metadata
        return
    headings = passage.headings or markdown.headings(text)
    for section in markdown.sections_of(text, headings):
        own = metadata
        if section.heading:
            above = metadata.get(PassageKey.HEADING)
            path = f"{above} > {section.heading}" if above else section.heading
            own = metadata | {PassageKey.HEADING: path}
        yield section.start, text[section.start : section.end], own


def _spans_of(
    splitter: Splitter,
    tokenizer: Tokenizer | None,
    window: Window | None,
    separators: Sequence[str],
) -> Spans:
    if splitter.type is SplitterType.TOKEN:
        if tokenizer is None:
            raise ConfigurationError("The token splitter needs the embedding model's tokenizer.")
        size = splitter.size if window is None else min(splitter.size, window.tokens)
        overlap = splitter.chunk_overlap * size // splitter.size
        return partial(spans, tokenizer=whole(tokenizer), size=size, overlap=overlap)
    return partial(_by_characters, splitter=splitter, separators=separators)


def least_pieces(loaded: LoadedText, splitter: Splitter) -> int:
    """No splitting by characters gives fewer; known without splitting."""
    if splitter.type in (SplitterType.TOKEN, SplitterType.CHARACTER):
        return len(loaded.passages)
    size = splitter.size
    return sum(max(1, _letters(p.text) // size) for p in loaded.passages)


def _letters(text: str) -> int:
    """How many characters are no whitespace; block by block, for each match takes memory."""
    blocks = (text[at : at + _BLOCK_CHARS] for at in range(0, len(text), _BLOCK_CHARS))
    return sum(len(_SPACES.sub("", block)) for block in blocks)


def _by_characters(
    text: str, *, splitter: Splitter, separators: Sequence[str]
) -> Iterator[tuple[int, int]]:
    size, overlap = splitter.size, splitter.chunk_overlap
    if splitter.type is SplitterType.CHARACTER:
        # LangChain joins paragraphs by one gap, also where the text has more, and the result is
        # then no slice of the text. Keeping the gaps in the parts avoids that.
        is_kept = 2 * _PARAGRAPH_GAP in text
        merger = _Merger(size=size, overlap=overlap, gap=0 if is_kept else len(_PARAGRAPH_GAP))
        spans = merger.merge(_parts(text, 0, len(text), _PARAGRAPH_GAP, is_kept=is_kept))
    elif len(text) < size:
        spans = iter([(0, len(text))])  # most rows of a table end here
    elif splitter.type is SplitterType.SENTENCE:
        spans = _by_sentences(text, splitter)
    else:
        spans = _recursive(text, 0, len(text), separators, splitter)
    for start, end in spans:
        piece = text[start:end]
        stripped = piece.lstrip()
        start += len(piece) - len(stripped)
        end = start + len(stripped.rstrip())
        if start < end:
            yield start, end


def _recursive(
    text: str, start: int, end: int, separators: Sequence[str], splitter: Splitter
) -> Iterator[tuple[int, int]]:
    """Merge the parts between the first separator that there is; divide long ones by the next."""
    size, overlap = splitter.size, splitter.chunk_overlap
    at = next(at for at, sign in enumerate(separators) if text.find(sign, start, end) >= 0)
    if not separators[at]:
        yield from _windows(text, start, end, size, overlap)
        return
    merger = _Merger(size=size, overlap=overlap)
    for part in _parts(text, start, end, separators[at], is_kept=True):
        if part[1] - part[0] < size:
            yield from merger.add(*part)
        else:
            yield from merger.flush()
            yield from _recursive(text, *part, separators[at + 1 :], splitter)
    yield from merger.flush()


def _by_sentences(text: str, splitter: Splitter) -> Iterator[tuple[int, int]]:
    """Whole sentences together, and what overlaps are whole ones; a sentence that is longer than a
    piece is divided as other text is."""
    merger = _Merger(size=splitter.size, overlap=splitter.chunk_overlap)
    for start, end in sentences(text):
        if end - start <= splitter.size:
            yield from merger.add(start, end)
        else:
            yield from merger.flush()
            yield from _recursive(text, start, end, _SEPARATORS, splitter)
    yield from merger.flush()


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each sentence with the white space behind it; all of the text."""
    start = 0
    for match in _SENTENCE_BREAK.finditer(text):
        end = match.end()
        if match[1] is not None and _goes_on(text, match.start(1), end):
            continue
        if match[2] is not None and text[end : end + 1] in _AFTER_QUOTE:
            continue  # 「行く。」と言った
        if end > start and not _is_numeral(text, start, end):
            yield start, end
            start = end
    if start < len(text):
        yield start, len(text)


def _is_numeral(text: str, start: int, end: int) -> bool:
    """Whether all that there is, is the number of what comes."""
    return end - start < _NUMERAL_CHARS and _NUMERAL.fullmatch(text, start, end) is not None


def _goes_on(text: str, dot: int, end: int) -> bool:
    """Whether a sentence goes on behind a full stop: an abbreviation, an initial, a number, a date;
    or behind a quote."""
    if text[dot + 1 : end].strip() and (
        _SAYS.match(text, end) or (text[end : end + 1].islower() and text[end].isascii())
    ):
        return True
    if text[dot] != ".":
        return False
    if text[end : end + 1].islower() and text[end].isascii():
        return True
    word = _LAST_WORD.search(text, max(0, dot - 20), dot)
    if word is None:
        return False
    is_initial = len(word[0]) == 1 and word[0].isupper()
    is_number = word[0].isdigit() and (
        text[end : end + 1].isdigit()
        or _DATE_BEFORE.search(text, max(0, dot - 20), dot) is not None
    )
    return is_initial or is_number or word[0].lower() in _ABBREVIATIONS


def _windows(text: str, start: int, end: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    cut = start
    while start + size < end:
        reached, cut = cut, _character_before(text, start + size, cut)
        if start < reached and _is_within(text, cut):
            # With what overlaps, no whole character more would find room.
            start = cut = reached
            continue
        yield start, cut
        start = _character_after(text, max(cut - overlap, start + 1), cut + 1)
    yield start, end


def _parts(
    text: str, start: int, end: int, separator: str, *, is_kept: bool
) -> Iterator[tuple[int, int]]:
    """What lies between separators, none empty; a kept separator begins the part after it."""
    first = start
    while (at := text.find(separator, start, end)) >= 0:
        if at > first:
            yield first, at
        start = at + len(separator)
        first = at if is_kept else start
    if end > first:
        yield first, end


@dataclass(kw_only=True)
class _Merger:
    """Joins neighbouring parts to pieces of at most `size`, each with the last `overlap` of the
    one before; `gap` characters lie between two parts."""

    size: int
    overlap: int
    gap: int = 0
    _parts: deque[tuple[int, int]] = field(default_factory=deque)
    _total: int = 0

    def merge(self, parts: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for part in parts:
            yield from self.add(*part)
        yield from self.flush()

    def add(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        length = end - start
        if self._parts and self._total + length + self.gap > self.size:
            yield self._parts[0][0], self._parts[-1][1]
            while self._parts and (
                self._total > self.overlap or self._total + length + self.gap > self.size
            ):
                first = self._parts.popleft()
                self._total -= first[1] - first[0] + (self.gap if self._parts else 0)
        self._total += length + (self.gap if self._parts else 0)
        self._parts.append((start, end))

    def flush(self) -> Iterator[tuple[int, int]]:
        if self._parts:
            yield self._parts[0][0], self._parts[-1][1]
        self._parts.clear()
        self._total = 0


# Spans of any splitter -> spans that fit into the window of a model.

_COUNTED_CHARS: Final = 200_000
_COUNTED_SPANS: Final = 2000
"""Of spans that are counted together."""
_RUN_CHARS: Final = 100_000
"""Of text that is divided anew at once, so that its tokens take little memory."""
_ROUNDS: Final = 24
"""A text of a million characters is cut into single ones in as many."""
_PARAGRAPH_END: Final = re.compile(r"\n\s*?\n")
_LINE_END: Final = re.compile(r"\n")
_SENTENCE_END: Final = re.compile(r"[.!?…][\"')\]”’»]{0,3}\s|[。！？｡][\"')\]」』”’）]{0,3}")
_CLAUSE_END: Final = re.compile(r"[,;:]\s|[、，；：]")
_WORD_END: Final = re.compile(r"\s")
_UNEVEN: Final = 1.25
"""A piece may be so much longer than its even share, for a better place to end."""
_ENDS: Final = (_PARAGRAPH_END, _LINE_END, _SENTENCE_END, _CLAUSE_END, _WORD_END)
"""Where text is best divided; the best first."""


def _fitting(
    spans: Iterator[_Span], text: Slices, splitter: Splitter, window: Window
) -> Iterator[_Span]:
    """Spans that fit are left as they are. Those that do not, one behind the other in a passage,
    are joined and divided anew, so that nothing overlaps but neighbours."""
    run: _Span | None = None
    reached = 0
    for span in _counted(spans, text, window):
        goes_on = run and span and span.own is run.own and span.passage == run.passage
        if run and span and goes_on and not span.fits and span.end - run.start <= _RUN_CHARS:
            run = run._replace(end=span.end)
            continue
        parts = list(_divided(run, text, splitter, window, window.tokens)) if run else []
        if span and span.fits:
            parts.append(span)
        for part in sorted(parts, key=lambda part: (part.start, -part.end)):
            if part is span or part.end > reached:  # what lies in a neighbour says nothing new
                yield part
            reached = max(reached, part.end)
        run = None if span is None or span.fits else span


def _counted(spans: Iterator[_Span], text: Slices, window: Window) -> Iterator[_Span | None]:
    """The spans with whether they fit; None is the end."""
    more = True
    while more:
        batch: list[_Span] = []
        chars = 0
        for span in spans:
            batch.append(span)
            chars += span.end - span.start
            if chars >= _COUNTED_CHARS or len(batch) == _COUNTED_SPANS:
                break
        else:
            more = False
        cut = window.overlong([text[span.start : span.end] for span in batch])
        yield from (span._replace(fits=n not in cut) for n, span in enumerate(batch))
    yield None


def _divided(
    run: _Span, text: Slices, splitter: Splitter, window: Window, limit: int, rounds: int = _ROUNDS
) -> Iterator[_Span]:
    """The run in spans of at most `limit` tokens.

    A part of a text may have other tokens than it has within the text, so they are counted again,
    and what still is too long is divided by a lower limit.
    """
    spans = [
        run._replace(start=run.start + start, end=run.start + end)
        for start, end in _windows_of_tokens(text[run.start : run.end], splitter, window, limit)
    ]
    cut = window.overlong([text[span.start : span.end] for span in spans])
    for n, span in enumerate(spans):
        if n not in cut or span.end - span.start == 1 or not rounds:
            yield span
        else:
            lower = max(1, min(limit * window.tokens // cut[n], limit * 7 // 8))
            yield from _divided(span, text, splitter, window, lower, rounds - 1)


def _windows_of_tokens(
    text: str, splitter: Splitter, window: Window, limit: int
) -> Iterator[tuple[int, int]]:
    """Start and end of each piece, stripped; of about the same length where they are few."""
    starts = _token_starts(text, window)
    if splitter.type is SplitterType.TOKEN:
        size = overlap_chars = len(text)
    else:
        size, overlap_chars = splitter.size, splitter.chunk_overlap
    overlap = limit * splitter.chunk_overlap // splitter.size
    # A piece is at least this part of what it may be, and more than what overlaps.
    least = max(0.5, 0.25 + splitter.chunk_overlap / splitter.size)
    at = 0
    while True:
        first = bisect_left(starts, at)
        rest = len(starts) - first
        is_last = rest <= limit and len(text) - at <= size
        cut = len(text)
        if not is_last:
            count = -(-(rest - overlap) // max(1, limit - overlap))
            share = (rest - overlap) / max(1, count) + overlap
            last = first + max(1, min(limit, int(_UNEVEN * share)))
            end = min(at + size, starts[last] if last < len(starts) else len(text))
            cut = _best_end(text, at, max(end, at + 1), least)
        piece = text[at:cut]
        if piece.strip():
            yield at + len(piece) - len(piece.lstrip()), at + len(piece.rstrip())
        if is_last or cut >= len(text):
            return
        back = cut
        if overlap and starts:
            back = starts[max(0, bisect_left(starts, cut) - overlap)]
        at = _resumption(text, max(back, cut - overlap_chars, (at + cut + 1) // 2), cut)


def _token_starts(text: str, window: Window) -> "array[int]":
    """Where each token of the text begins, in order; about where, if the model does not tell."""
    starts = array("q")
    if window.tokenizer is None:
        count = max(window.overlong([text]).get(0, window.tokens), 1)
        starts.extend(n * len(text) // count for n in range(count))
        return starts
    reached = 0
    for start, _ in whole(window.tokenizer).encode(text, add_special_tokens=False).offsets:
        reached = max(reached, start)
        starts.append(reached)
    return starts


def _best_end(text: str, start: int, end: int, least: float) -> int:
    """The best place to divide the text from `start` on, at `end` or before. Whitespace may go on
    behind it, for pieces are stripped."""
    floor = start + int((end - start) * least)
    for sign in _ENDS:
        best = 0
        for match in sign.finditer(text, floor, end + 1):
            if match.end() <= end or text[end].isspace():
                best = match.end()
        if best:
            return best
    return _character_before(text, end, start)


def _resumption(text: str, start: int, end: int) -> int:
    """Where the piece behind `end` begins, so that it repeats whole sentences or else whole words,
    or else what there is, but nothing before `start`."""
    if start >= end:
        return end
    for sign in (_SENTENCE_END, _LINE_END, _WORD_END):
        match = sign.search(text, max(0, start - 1), end)
        if match and start <= match.end() < end:
            return match.end()
    if _WORD_END.search(text, start, end):
        return end
    return _character_after(text, start, end + 1)
