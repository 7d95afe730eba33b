"""YAML, TOML, INI and .properties -> their text, unchanged, with its sections as headings.

The text stays as it is, because comments explain settings; only the escapes of .properties are
decoded. Sections are the top-level keys of YAML (a line `---` begins another document), the tables
of TOML and the sections of INI. If the job splits at headings, each chunk has the path of its
section. Nothing else is parsed: no alias is expanded and no tag is followed.
"""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from workers.ingest.formats.loader import (
    DocumentParts,
    Heading,
    Loader,
    RawDocument,
    heading_title,
)
from workers.ingest.formats.texts.text import storable, text_of

_YAML_KEY: Final = re.compile(
    r"""("[^"\n]{1,200}"|'[^'\n]{1,200}'|[^\s#\-?:,\[\]{}&*!|>'"%@`][^\n:#]{0,200}?)"""
    r"[ \t]*:(?=\s|$)"
)
_TABLE: Final = re.compile(r"[ \t]{0,20}\[\[?[ \t]*([^\]\n]{1,500}?)[ \t]*\]\]?[ \t]*(?=[#;\n]|$)")
_JAVA_ESCAPE: Final = re.compile(r"(?<!\\)\\u+([0-9A-Fa-f]{4})")
"""How .properties files of Java write characters beyond Latin-1 (JLS 3.3)."""
_TOML_STRINGS: Final = ('"""', "'''")


def load(
    document: RawDocument, *, headings_of: Callable[[str], Iterator[Heading]]
) -> DocumentParts:
    text, metadata = text_of(document)
    if document.name.lower().endswith(".properties"):
        text = storable(_JAVA_ESCAPE.sub(lambda escape: chr(int(escape[1], 16)), text))
    return DocumentParts(
        passages=[(text, {})], metadata=metadata, headings=tuple(headings_of(text))
    )


def _lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        end = text.find("\n", start) + 1 or len(text)
        yield start, end
        start = end


def _yaml_headings(text: str) -> Iterator[Heading]:
    for start, end in _lines(text):
        if match := _YAML_KEY.match(text, start, end):
            title = heading_title(match[1].strip("\"'"))
            yield Heading(start=start, end=end, level=1, title=title)


def _table_headings(text: str, *, has_strings: bool) -> Iterator[Heading]:
    above: list[str] = []  # the tables that contain the next one
    within: str | None = None  # a string of several lines, in which a bracket begins no table
    for start, end in _lines(text):
        line = text[start:end]
        if within is not None:
            within = None if within in line else within
            continue
        if match := _TABLE.match(text, start, end):
            title = heading_title(match[1])
            while above and not (has_strings and title.startswith(f"{above[-1]}.")):
                above.pop()
            above.append(title)
            yield Heading(start=start, end=end, level=len(above), title=title)
        elif has_strings:
            within = next((sign for sign in _TOML_STRINGS if line.count(sign) % 2), None)


YAML = Loader(
    load=partial(load, headings_of=_yaml_headings),
    example=b"hours:\n  open: 9  # sharp\n",
    example_text="hours:\n  open: 9  # sharp\n",
)
TOML = Loader(
    load=partial(load, headings_of=partial(_table_headings, has_strings=True)),
    example=b"[hours]\nopen = 9\n",
    example_text="[hours]\nopen = 9\n",
)
INI = Loader(
    load=partial(load, headings_of=partial(_table_headings, has_strings=False)),
    example=b"[hours]\nopen = 9\n",
    example_text="[hours]\nopen = 9\n",
)
