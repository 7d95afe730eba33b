"""Our code against libraries that could do its work.

    python -m bench.code.libraries LIBRARY

The library is to be installed by hand; Sluice does not depend on it.

`bm25s` (with pysbd and kiwipiepy): quotes, on the cases of `bench/extractive.py`, without a model.
The library's answer is the best three sentences (pysbd or Kiwi) by BM25 (words, in Korean Kiwi's
morphemes), or nothing below a score, set so that it says nothing on as many of the unanswerable
cases as ours does. Reads `../shared/data`. Decision 0016 has the figures.

`json_repair`: every beginning of three answers, as `max_tokens` cuts them off. Decision 0017.

All others take the place of a module of ours while the module's own tests run: `inscriptis` and
`trafilatura` (with lxml_html_clean) read HTML, `charset_normalizer` decodes, `clevercsv` reads
tables, `langchain_text_splitters` splits Markdown, `simpleeval` calculates. What fails is what the
library does otherwise; whether that matters, decisions 0010 to 0012 say.
"""

import argparse
import io
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import pytest

from bench.extractive import DATA, Case, klue, korean, measure, same_score, squad
from shared.errors import DocumentError, InvalidInput, NotJson
from workers.generation.answers.structured import parse
from workers.ingest.formats.texts import html, markdown, tables, text
from workers.tools import calculator

QUOTES = 3
ANSWERS: list[Any] = [
    {"name": "Kim", "ages": [31, 4], "city": {"name": "부산", "zip": "48058"}},
    {"items": [{"id": 1, "price": 12.5}, {"id": 2, "price": 700}], "total": 712.5},
    [["a", True], ["b", False], ["c", None]],
]


# Quotes


@cache
def kiwi() -> Any:
    return import_module("kiwipiepy").Kiwi()


@cache
def english() -> Any:
    return import_module("pysbd").Segmenter(language="en", clean=False)


@lru_cache(100_000)
def sentences(passage: str, is_korean: bool) -> tuple[str, ...]:
    if is_korean:
        return tuple(sentence.text for sentence in kiwi().split_into_sents(passage))
    return tuple(text for part in english().segment(passage) if (text := part.strip()))


@lru_cache(100_000)
def tokens(text: str, is_korean: bool) -> tuple[str, ...]:
    if is_korean:
        return tuple(
            token.form
            for token in kiwi().tokenize(text)
            if token.tag[0] in "NVM" or token.tag == "SL"
        )
    return tuple(re.findall(r"\w+", text.lower()))


def ranked(case: Case, is_korean: bool) -> list[tuple[float, str]]:
    texts = [text for passage in case.passages for text in sentences(passage, is_korean)]
    corpus = [list(tokens(text, is_korean)) or ["-"] for text in texts]
    index = import_module("bm25s").BM25()
    index.index(corpus, show_progress=False)
    scores = index.get_scores(list(tokens(case.question, is_korean)) or ["-"])
    return sorted(zip(scores.tolist(), texts, strict=True), reverse=True)[:QUOTES]


def compare(label: str, right: Sequence[Case], wrong: Sequence[Case], *, is_korean: bool) -> None:
    started = time.perf_counter()
    ours, nothing = measure(right), measure(wrong).nothing
    ours_s = time.perf_counter() - started
    started = time.perf_counter()
    answers = [ranked(case, is_korean) for case in right]
    best = sorted(ranked(case, is_korean)[0][0] for case in wrong)
    theirs_s = time.perf_counter() - started
    enough = best[min(len(best) - 1, round(nothing * len(best)))]
    shown = [[text for _, text in answer] if answer[0][0] >= enough else [] for answer in answers]
    held = sum(
        any(gold in text for text in texts for gold in case.gold)
        for case, texts in zip(right, shown, strict=True)
    )
    first = sum(
        bool(texts) and any(gold in texts[0] for gold in case.gold)
        for case, texts in zip(right, shown, strict=True)
    )
    total = len(right)
    print(
        f"{label:<12} {total:>5} cases, nothing on {nothing:.1%} of the unanswerable; "
        f"contained, in first: ours {ours.contained:.1%}, {ours.first:.1%} ({ours_s:.1f} s); "
        f"libraries {held / total:.1%}, {first / total:.1%} ({theirs_s:.1f} s)"
    )


def bm25s() -> int:
    if not DATA.is_dir():
        print(f"skipped: {DATA} is absent (it holds xquad.en.json and klue-sts-v1.1_dev.json)")
        return 0
    right, _, wrong, _ = squad(DATA / "xquad.en.json")
    compare("XQuAD", right, wrong, is_korean=False)
    compare("Korean", *korean(same_score), is_korean=True)
    compare("KLUE-STS", *klue(DATA / "klue-sts-v1.1_dev.json", same_score), is_korean=True)
    return 0


# JSON


def json_repair() -> int:
    loads = import_module("json_repair").loads
    ours = theirs = total = 0
    for value in ANSWERS:
        text = json.dumps(value, ensure_ascii=False)
        for end in range(1, len(text)):
            total += 1
            theirs += bool(loads(text[:end]))
            try:
                parse(text[:end])
                ours += 1
            except NotJson:
                pass
    print(f"{total} answers that were cut off; taken for whole: ours {ours}, json-repair {theirs}")
    return 0


# In the place of a module of ours


def inscriptis(page: str, *, name: str) -> html.HtmlPage:
    return _page(import_module("inscriptis").get_text(page), name)


def trafilatura(page: str, *, name: str) -> html.HtmlPage:
    extract = import_module("trafilatura").extract
    return _page(extract(page, favor_recall=True, include_tables=True) or "", name)


def _page(rendered: str, name: str) -> html.HtmlPage:
    if not rendered.strip():
        raise DocumentError(f"{name}: the HTML has no text in it")
    return html.HtmlPage(text=rendered.strip("\n"), title=None)


def charset_normalizer(data: bytes, *, name: str, hint: str, **_: Any) -> text.Decoded:
    best = import_module("charset_normalizer").from_bytes(data).best()
    if best is None:
        raise DocumentError(f"{name}: {hint}")
    return text.Decoded(text=str(best), encoding=best.encoding.replace("_", "-"))


def clevercsv(table: str, *, name: str, options: Any, **_: Any) -> Iterator[tuple[str, Any]]:
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


def langchain_text_splitters(page: str) -> Iterator[markdown.Section]:
    splitter = import_module("langchain_text_splitters").MarkdownHeaderTextSplitter
    levels = [("#" * level, str(level)) for level in range(1, 7)]
    parts = splitter(levels, strip_headers=False).split_text(page)
    starts = [0]
    for part in parts[1:]:
        starts.append(max(page.find(part.page_content, starts[-1]), starts[-1]))
    for part, start, end in zip(parts, starts, [*starts[1:], len(page)], strict=True):
        heading = " > ".join(part.metadata.values()) or None
        yield markdown.Section(start=start, end=end, heading=heading)


def simpleeval(expression: str) -> str:
    try:
        value = import_module("simpleeval").simple_eval(expression.replace("^", "**"))
    except Exception as error:
        raise InvalidInput(f"{expression!r} cannot be computed: {error}.") from error
    return str(value)


@dataclass(frozen=True, kw_only=True)
class Replaced:
    module: Any
    name: str
    tests: str
    by: Callable[..., Any]

    def run(self) -> int:
        """The tests are imported behind this, and so get the library's function."""
        import_module(self.by.__name__)  # missing, it would only make tests fail
        setattr(self.module, self.name, self.by)
        return pytest.main(["-W", "ignore", "-q", f"tests/unit/{self.tests}"])


LIBRARIES: dict[str, Callable[[], int]] = {
    "bm25s": bm25s,
    "json_repair": json_repair,
    **{
        by.__name__: Replaced(module=module, name=name, tests=tests, by=by).run
        for module, name, tests, by in (
            (html, "render", "test_html.py", inscriptis),
            (html, "render", "test_html.py", trafilatura),
            (text, "decode", "test_decode.py", charset_normalizer),
            (tables, "rows", "test_load_tables.py", clevercsv),
            (markdown, "sections", "test_split.py", langchain_text_splitters),
            (calculator, "calculate", "test_tools_calculator.py", simpleeval),
        )
    },
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("library", choices=list(LIBRARIES))
    return LIBRARIES[parser.parse_args().library]()


if __name__ == "__main__":
    sys.exit(main())
