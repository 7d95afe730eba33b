"""Puts a library in the place of a module of ours while the module's own tests run.

    pip install inscriptis trafilatura lxml_html_clean clevercsv simpleeval
    LIBRARY=inscriptis python -m pytest -p bench.other_libraries tests/unit/test_html.py -W ignore

`trafilatura` is for the same tests, `charset_normalizer` for `test_decode.py`, `clevercsv` for
`test_load_tables.py`, `langchain_text_splitters` for `test_split.py` and `simpleeval` for
`test_tools_calculator.py`, all in `tests/unit`. What fails is what the library does otherwise;
whether that matters, docs/decisions/0010 to 0012 say.
"""

import io
import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from shared.errors import DocumentError, InvalidInput
from workers.ingest.formats import html, markdown, tables, text
from workers.tools import calculator


def render(page: str, *, name: str) -> html.HtmlPage:
    if os.environ["LIBRARY"] == "inscriptis":
        rendered = import_module("inscriptis").get_text(page)
    else:
        extract = import_module("trafilatura").extract
        rendered = extract(page, favor_recall=True, include_tables=True) or ""
    if not rendered.strip():
        raise DocumentError(f"{name}: the HTML has no text in it")
    return html.HtmlPage(text=rendered.strip("\n"), title=None)


def decode(data: bytes, *, name: str, hint: str, **_: Any) -> text.Decoded:
    best = import_module("charset_normalizer").from_bytes(data).best()
    if best is None:
        raise DocumentError(f"{name}: {hint}")
    return text.Decoded(text=str(best), encoding=best.encoding.replace("_", "-"))


def rows(table: str, *, name: str, options: Any, **_: Any) -> Iterator[tuple[str, Any]]:
    library = import_module("clevercsv")
    try:
        dialect = library.Sniffer().sniff(table[:100_000])
        records = [row for row in library.reader(io.StringIO(table), dialect) if any(row)]
    except Exception as error:
        raise DocumentError(f"{name}: {error}") from error
    if len(records) < 2:
        raise DocumentError(f"{name}: has a header and no rows.")
    header = records[0]
    chosen = options.metadata_columns or []
    for number, cells in enumerate(records[1:], start=1):
        row = dict(zip(header, cells, strict=False))
        content = options.content_columns or [key for key in header if key not in chosen]
        lines = [f"{key}: {row[key]}" for key in content if row.get(key)]
        yield "\n".join(lines), {"row": number, **{key: row[key] for key in chosen if key in row}}


def sections(page: str) -> Iterator[markdown.Section]:
    splitter = import_module("langchain_text_splitters").MarkdownHeaderTextSplitter
    levels = [("#" * level, str(level)) for level in range(1, 7)]
    parts = splitter(levels, strip_headers=False).split_text(page)
    starts = [0]
    for part in parts[1:]:
        starts.append(max(page.find(part.page_content, starts[-1]), starts[-1]))
    for part, start, end in zip(parts, starts, [*starts[1:], len(page)], strict=True):
        heading = " > ".join(part.metadata.values()) or None
        yield markdown.Section(start=start, end=end, heading=heading)


def calculate(expression: str) -> str:
    try:
        value = import_module("simpleeval").simple_eval(expression.replace("^", "**"))
    except Exception as error:
        raise InvalidInput(f"{expression!r} cannot be computed: {error}.") from error
    return str(value)


REPLACED: dict[str, tuple[Any, Callable[..., Any]]] = {
    "inscriptis": (html, render),
    "trafilatura": (html, render),
    "charset_normalizer": (text, decode),
    "clevercsv": (tables, rows),
    "langchain_text_splitters": (markdown, sections),
    "simpleeval": (calculator, calculate),
}

if library := os.environ.get("LIBRARY"):
    module, function = REPLACED[library]
    setattr(module, function.__name__, function)
