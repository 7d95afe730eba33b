"""Markdown -> its sections: a heading with the text up to the next heading.

Front matter (YAML, TOML, JSON) is metadata; if it cannot be read, it stays in the text.

Headings are those of CommonMark at the top level of the document, not in a quote or list: ATX (`#
A`) and setext (lines of a paragraph, not of a table, underlined by `===` or `---`). Lines in code,
fenced or indented, in HTML blocks and comments, and in front matter are no headings. A heading with
no text below belongs to the section after it. All other Markdown stays as it is: the text is read
line by line, without a tree, in linear time.
"""

import json
import math
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date, time
from typing import Any, Final

import yaml

from shared.bounds import Metadata
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Heading,
    Loader,
    RawDocument,
    heading_title,
)
from workers.ingest.formats.texts.records import as_metadata
from workers.ingest.formats.texts.text import text_of

_NESTED_ITEMS: Final = 64
_RULE_CHARS: Final = 1000
_TAB: Final = 4
_CODE_INDENT: Final = 4

_INDENT: Final = re.compile(r"[ \t]*+")
_ATX: Final = re.compile(r"(#{1,6}+)(?=[ \t]|$)")
_FENCE: Final = re.compile(r"(`{3,}+)(?=[^`]*+$)|(~{3,}+)")
_ITEM: Final = re.compile(r"(?:[-+*]|([0-9]{1,9}+)[.)])(?=[ \t]|$)")
_HTML_TAGS: Final = (
    "address|article|aside|base|basefont|blockquote|body|caption|center|col|colgroup|dd|details|"
    "dialog|dir|div|dl|dt|fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|"
    "hr|html|iframe|legend|li|link|main|menu|menuitem|nav|noframes|ol|optgroup|option|p|param|"
    "search|section|summary|table|tbody|td|tfoot|th|thead|title|tr|track|ul"
)
_ATTRIBUTE: Final = r"\s++[A-Za-z_:][\w.:-]*+(?:\s*+=\s*+(?:[^\s\"'=<>`]++|'[^']*+'|\"[^\"]*+\"))?+"
# The beginning of an HTML block, and its end; None: a blank line.
_HTML_BLOCKS: Final = tuple(
    (re.compile(begin, re.IGNORECASE), re.compile(end, re.IGNORECASE) if end else None)
    for begin, end in (
        (r"<(?:script|pre|style|textarea)(?=[\s>]|$)", r"</(?:script|pre|style|textarea)>"),
        (r"<!--", r"-->"),
        (r"<\?", r"\?>"),
        (r"<![A-Z]", r">"),
        (r"<!\[CDATA\[", r"\]\]>"),
        (rf"</?(?:{_HTML_TAGS})(?=\s|/?>|$)", None),
    )
)
# A whole tag of any name, alone on its line; it does not interrupt a paragraph.
_HTML_LINE: Final = re.compile(
    rf"(?:<[A-Za-z][A-Za-z0-9-]*+(?:{_ATTRIBUTE})*+\s*+/?>|</[A-Za-z][A-Za-z0-9-]*+\s*+>)\s*+$"
)
_FRONT_MATTER_CHARS: Final = 65_536
_FRONT_MATTER_FIELDS: Final = 200
# Names of fields at common sites, and our keys for them.
_KEYS: Final = {
    "title": DocumentKey.TITLE,
    "author": DocumentKey.AUTHOR,
    "lang": DocumentKey.LANGUAGE,
    "language": DocumentKey.LANGUAGE,
    "date": DocumentKey.DATE,
    "url": DocumentKey.URL,
}
_FRONT_MATTER: Final = {
    "---": re.compile(r"^(?:---|\.\.\.)[ \t]*+$", re.MULTILINE),
    "+++": re.compile(r"^\+\+\+[ \t]*+$", re.MULTILINE),
    "{": re.compile(r"^\}[ \t]*+$", re.MULTILINE),
}


def load(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    start = _after_front_matter(text)
    own = _front_matter(text[:start]) if 0 < start <= _FRONT_MATTER_CHARS else None
    if own is None or not text[start:].strip():
        return DocumentParts(passages=[(text, {})], metadata=metadata)
    return DocumentParts(passages=[(text[start:].lstrip("\n"), {})], metadata=metadata | own)


# The splitter `markdown` uses the headings.
MARKDOWN = Loader(
    load=load,
    example=b"---\ntitle: Hours\n---\n\n# Hours\n\nFrom *nine*.",
    example_text="# Hours\n\nFrom *nine*.",
)


class _FrontMatterLoader(yaml.SafeLoader):
    """Scalars follow the core schema of YAML 1.2, plus dates: `no`, `10:30` and numbers with
    leading zeros are text. The size of merged mappings is limited."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _FRONT_MATTER_FIELDS:
            raise yaml.YAMLError("too many fields")


_FrontMatterLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag.rpartition(":")[2] in ("timestamp", "null", "merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _FrontMatterLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def _moment(loader: _FrontMatterLoader, node: yaml.ScalarNode) -> Any:
    try:
        return loader.construct_yaml_timestamp(node)
    except ValueError:  # there is no such day
        return loader.construct_scalar(node)


_FrontMatterLoader.add_constructor("tag:yaml.org,2002:timestamp", _moment)


def _front_matter(written: str) -> Metadata | None:
    """The fields; None if they cannot be read. Scalars keep their types; dates become ISO 8601."""
    lines = written.strip().split("\n")
    try:
        if lines[0].startswith("{"):
            fields = json.loads(written)
        elif lines[0].startswith("+++"):
            fields = tomllib.loads("\n".join(lines[1:-1]))
        else:
            fields = yaml.load("\n".join(lines[1:-1]), _FrontMatterLoader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, AttributeError):
        return None
    if fields is None:
        return {}
    if not isinstance(fields, dict) or len(fields) > _FRONT_MATTER_FIELDS:
        return None
    room = _Room()
    try:
        plain = {str(key): _plain(value, room) for key, value in fields.items()}
    except OverflowError:
        return None
    own: Metadata = {}
    for key, value in as_metadata(plain, name="front matter").items():
        is_reserved = key in (DocumentKey.MEDIA_TYPE, DocumentKey.ENCODING)
        own[f"{key} (2)" if is_reserved else _KEYS.get(key.lower(), key)] = value
    return own


@dataclass
class _Room:
    """Limits the text that aliases repeat: an alias may occur any number of times."""

    chars: int = 4 * _FRONT_MATTER_CHARS

    def take(self, chars: int) -> None:
        self.chars -= chars
        if self.chars < 0:
            raise OverflowError


def _plain(value: Any, room: _Room, depth: int = 0) -> Any:
    """The value as JSON can represent it. Raises OverflowError if it is too large or too deep."""
    room.take(1)
    if isinstance(value, dict) and depth < _NESTED_ITEMS:
        return {_key(key, room): _plain(inner, room, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple | set) and depth < _NESTED_ITEMS:
        return [_plain(item, room, depth + 1) for item in value]
    if isinstance(value, dict | list | tuple | set):
        raise OverflowError
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    plain = value if value is None or isinstance(value, str | int | float | bool) else str(value)
    room.take(len(plain) if isinstance(plain, str) else 0)
    return plain


def _key(key: Any, room: _Room) -> str:
    room.take(len(str(key)))
    return str(key)


@dataclass(frozen=True, kw_only=True)
class Section:
    """`text[start:end]`, with `heading`, the path of its headings, outermost first."""

    start: int
    end: int
    heading: str | None


def sections(text: str) -> Iterator[Section]:
    return sections_of(text, headings(text))


def sections_of(text: str, headings: Iterable[Heading]) -> Iterator[Section]:
    """All of the text in sections, in order, without gaps."""
    path: dict[int, str] = {}
    start = body = 0
    for heading in headings:
        if text[body : heading.start].strip():
            yield Section(start=start, end=heading.start, heading=_joined(path))
            start = heading.start
        path = {level: title for level, title in path.items() if level < heading.level}
        path[heading.level] = heading.title
        body = heading.end
    if start < len(text):
        yield Section(start=start, end=len(text), heading=_joined(path))


def _joined(path: dict[int, str]) -> str | None:
    return " > ".join(title for title in path.values() if title) or None


def _after_front_matter(text: str) -> int:
    first, line_end, _ = text[:_RULE_CHARS].partition("\n")
    ending = _FRONT_MATTER.get(first.rstrip())
    body = len(first) + 1
    # After a rule at the top of a text there is a blank line; after front matter there is none.
    is_rule = first.startswith("---") and text.startswith("\n", body)
    if ending is None or not line_end or is_rule:
        return 0
    end = ending.search(text, body)
    return min(end.end() + 1, len(text)) if end else 0


def headings(text: str) -> Iterator[Heading]:
    start = _after_front_matter(text)
    blocks = _Blocks()
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        level = blocks.read(text[start:end].rstrip("\n"), start)
        if level:
            is_atx = blocks.title_start is None
            first = start if is_atx else blocks.title_start
            assert first is not None
            title = _atx_title(text[start:end]) if is_atx else text[first:start]
            yield Heading(start=first, end=end, level=level, title=heading_title(title))
        start = end


def _atx_title(line: str) -> str:
    title = line.strip().lstrip("#").strip()
    bare = title.rstrip("#")
    return bare.rstrip() if not bare or bare[-1] in " \t" else title


@dataclass(kw_only=True)
class _Blocks:
    """The blocks that are open before a line."""

    items: list[int] = field(default_factory=list)
    """The columns where the content of open list items begins, outermost first."""
    fence: str = ""
    html_end: re.Pattern[str] | None = None
    in_html: bool = False
    paragraph: int | None = None
    """The start of the top-level paragraph that the next line may continue."""
    is_inner_paragraph: bool = False
    """Whether the next line may continue a paragraph of a list item or quote."""
    in_quote: bool = False
    """Whether that paragraph is in a quote."""
    in_quoted_fence: bool = False
    is_table: bool = False
    """Whether the last line is a row of a table: hyphens below it are no underline."""
    title_start: int | None = None
    """The start of the setext heading that the last line ended."""

    def read(self, line: str, start: int) -> int:
        """The level of the heading that this line is or underlines; 0 if there is none."""
        at = _INDENT.match(line).end()  # type: ignore[union-attr]  # matches anything
        column = _columns(line, 0, at, 0)
        is_blank = at == len(line)
        if self.fence or self.in_html:
            if is_blank or not self.items or column >= self.items[-1]:
                self._go_on(line, at, column, is_blank=is_blank)
                return 0
            self.fence, self.in_html = "", False  # its list item has ended
        if is_blank:
            self.paragraph, self.is_inner_paragraph = None, False
            self.in_quoted_fence = False
            return 0
        was_open = len(self.items)
        kept = was_open
        while kept and column < self.items[kept - 1]:
            kept -= 1
        # An ordinary line continues the paragraph of a list item or quote, whatever its
        # indentation.
        if self.is_inner_paragraph and not self._begins_block(line, at, column, kept):
            return 0
        if kept < was_open:
            del self.items[kept:]
            self.is_inner_paragraph = False
        return self._open(line, at, column, start)

    def _go_on(self, line: str, at: int, column: int, *, is_blank: bool) -> None:
        if self.fence:
            rest = line[at:].rstrip()
            base = self.items[-1] if self.items else 0
            if (
                column - base < _CODE_INDENT
                and len(rest) >= len(self.fence)
                and not rest.strip(self.fence[0])
            ):
                self.fence = ""
        elif self.html_end is None:
            self.in_html = not is_blank
        else:
            self.in_html = self.html_end.search(line) is None

    def _begins_block(self, line: str, at: int, column: int, kept: int) -> bool:
        """Whether the line interrupts a paragraph instead of continuing it."""
        indent = column - (self.items[kept - 1] if kept else 0)
        if indent >= _CODE_INDENT:
            return False
        return (
            line[at] == ">"
            or _ATX.match(line, at) is not None
            or _FENCE.match(line, at) is not None
            or _is_rule(line, at)
            or self._item(line, at, is_interrupting=kept == len(self.items) and not self.in_quote)
            is not None
            or any(begin.match(line, at) for begin, _ in _HTML_BLOCKS)
        )

    def _item(self, line: str, at: int, *, is_interrupting: bool) -> int | None:
        """The end of the mark of a list item; None if there is none."""
        mark = _ITEM.match(line, at)
        if mark is None:
            return None
        if is_interrupting and (mark[1] not in (None, "1") or not line[mark.end() :].strip()):
            return None
        return mark.end()

    def _open(self, line: str, at: int, column: int, start: int) -> int:
        paragraph, self.paragraph = self.paragraph, None
        was_inner = self.is_inner_paragraph and not self.in_quote
        self.is_inner_paragraph = self.in_quote = False
        self.title_start = None
        was_table, self.is_table = self.is_table, line[at] == "|"
        while True:
            base = self.items[-1] if self.items else 0
            if column - base >= _CODE_INDENT:
                self.paragraph = paragraph  # else it is indented code
                self.is_inner_paragraph = was_inner
                return 0
            if paragraph is not None and (level := _underline(line, at)):
                if was_table and line[at] == "-":
                    return 0
                self.title_start = paragraph
                return level
            if was_inner and self.items and _underline(line, at):
                return 0  # a heading in the list item
            if _is_rule(line, at):
                return 0
            if atx := _ATX.match(line, at):
                return 0 if self.items else len(atx[1])
            if fence := _FENCE.match(line, at):
                self.fence = fence[1] or fence[2]
                return 0
            if line[at] == ">":
                self._read_quote(line, at + 1)
                return 0
            for begin, end in _HTML_BLOCKS:
                if begin.match(line, at):
                    self.html_end, self.in_html = end, end is None or not end.search(line, at)
                    return 0
            in_paragraph = paragraph is not None or was_inner
            if not in_paragraph and _HTML_LINE.match(line, at):
                self.html_end, self.in_html = None, True
                return 0
            content = self._item(line, at, is_interrupting=in_paragraph)
            if content is None or len(self.items) >= _NESTED_ITEMS:
                break
            paragraph, was_inner = None, False
            mark_end = column + content - at
            after = _INDENT.match(line, content).end()  # type: ignore[union-attr]
            column = _columns(line, content, after, mark_end)
            at = after
            is_code = column - mark_end > _CODE_INDENT
            self.items.append(mark_end + 1 if at == len(line) or is_code else column)
            if at == len(line):
                return 0
        if self.items:
            self.is_inner_paragraph = True
        else:
            self.paragraph = start if paragraph is None else paragraph
        return 0

    def _read_quote(self, line: str, at: int) -> None:
        """A line of a quote; a line after it without a mark can only continue a paragraph."""
        at = _INDENT.match(line, at).end()  # type: ignore[union-attr]
        is_fence = _FENCE.match(line, at) is not None
        if is_fence:
            self.in_quoted_fence = not self.in_quoted_fence
        self.in_quote = True
        self.is_inner_paragraph = not (
            is_fence
            or self.in_quoted_fence
            or at == len(line)
            or _ATX.match(line, at)
            or _is_rule(line, at)
        )


def _columns(line: str, start: int, end: int, column: int) -> int:
    """The column after white space that begins at `column`."""
    if "\t" not in line[start:end]:
        return column + end - start
    for char in line[start:end]:
        column += _TAB - column % _TAB if char == "\t" else 1
    return column


def _underline(line: str, at: int) -> int:
    """The level of the heading above an underline; 0 if the line is not an underline."""
    if line[at] not in "=-" or line[at:].rstrip().strip(line[at]):
        return 0
    return 1 if line[at] == "=" else 2


def _is_rule(line: str, at: int) -> bool:
    if line[at] not in "-*_" or len(line) - at > _RULE_CHARS:
        return False
    marks = line[at:].replace(" ", "").replace("\t", "")
    return len(marks) >= len("---") and not marks.strip(line[at])
