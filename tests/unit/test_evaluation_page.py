"""The page of an evaluation: whole in itself, right in every script, safe with any text."""

import re
import unicodedata
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from cli.evaluation.dataset import Dataset
from cli.evaluation.page import Evaluation, page, title_of
from shared.kinds.eval import EvalResult, JudgedQuery, Judgement
from shared.kinds.search import SearchOptions
from sluice import Collection

VOID = {"meta", "br"}
EVIL = '<script>alert("&")</script>'


class Balanced(HTMLParser):
    """Every tag that is opened is closed; of all, the names and attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.125, "high": value + 0.0625}


def evaluation(*searches: SearchOptions, times_ms: Any = (3.0, 9.0, 250.0)) -> Evaluation:
    names = ["answer@6", "mrr@10", "ndcg@10", "recall@1", "recall@6"]
    queries = [
        JudgedQuery(query="黑豹队", relevant=["a"]),
        JudgedQuery(query=EVIL, relevant=[Judgement(text=EVIL)]),
        JudgedQuery(
            query=unicodedata.normalize("NFD", "출장비 정산은 언제?"),
            relevant=["규정/출장.md", "b", "c", "d", "e"],
            answers=[unicodedata.normalize("NFD", "열흘 안에")],
        ),
    ]
    figures = [
        {
            "search": search,
            "measures": {name: estimate(0.5) for name in names},
            "times": {"mean_ms": 1.0, "p50_ms": 1.0, "p99_ms": 2.0},
            "places": [[1, 4], [3], []],
            "times_ms": list(times_ms),
        }
        for search in searches
    ]
    differences = [
        {"search": n, "measures": {name: estimate(0.03) for name in names}}
        for n in range(1, len(searches))
    ]
    result = EvalResult.model_validate(
        {
            "collection": "handbook", "embedding_model": EVIL, "query_count": 3, "k": 10,
            "searches": figures, "differences": differences,
        }
    )  # fmt: skip
    collection = Collection(name="handbook", documents=1234, chunks=5678)
    dataset = Dataset(name="handbook", documents={}, queries=queries)
    return Evaluation(dataset=dataset, path=f"{EVIL}.jsonl", result=result, collection=collection)


SEARCHES = [SearchOptions(), SearchOptions(filter={"team": EVIL}), SearchOptions()]


def parsed(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_it_needs_no_other_file_and_runs_no_script() -> None:
    text = page(evaluation(*SEARCHES))
    reading = parsed(text)

    assert {tag for tag, _ in reading.tags}.isdisjoint({"script", "link", "img", "iframe", "use"})
    for _, attributes in reading.tags:
        assert attributes.keys().isdisjoint({"src", "href", "onclick", "onload", "style"})
    assert "url(" not in text
    assert "://" not in text
    assert "prefers-color-scheme: dark" in text
    assert '<meta charset="utf-8">' in text


def test_whatever_is_in_the_data_is_text() -> None:
    text = page(evaluation(*SEARCHES))

    assert "<script" not in text
    assert EVIL in parsed(text).text
    for word in ("출장비 정산은 언제?", "규정/출장.md, b, c and 2 more", "열흘 안에"):
        assert word in parsed(text).text


@pytest.mark.parametrize(
    "times_ms", [(3.0, 9.0, 250.0), (5.0, 5.0, 5.0), (0.0, 0.0, 0.0), (10.0, 10.0, 10.0)]
)
@pytest.mark.parametrize("count", [1, 2, 12])
def test_its_plots_are_drawings_that_stay_within_their_frames(count: int, times_ms: Any) -> None:
    text = page(evaluation(*[SearchOptions()] * count, times_ms=times_ms))

    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == (3 if count == 1 else 4)
    for drawing in drawings:
        quoted = re.sub(r"(\s[\w:-]+)=([^\s\"'>]+)", r'\1="\2"', drawing)
        root = ElementTree.fromstring(quoted)
        assert root.attrib["aria-label"]
        width, height = map(float, root.attrib["viewBox"].split()[2:])
        for mark in root.iter():
            for name, end in (("x", width), ("x1", width), ("x2", width), ("cx", width),
                              ("y", height), ("y1", height), ("y2", height)):  # fmt: skip
                if name in mark.attrib:
                    assert -0.5 <= float(mark.attrib[name]) <= end + 0.5, (mark.tag, mark.attrib)
            for point in mark.attrib.get("points", "").split():
                x, y = map(float, point.split(","))
                assert 0 <= x <= width
                assert 0 <= y <= height


def test_measures_stand_in_their_order_with_their_intervals() -> None:
    text = parsed(page(evaluation(*SEARCHES))).text

    heads = ["recall@1", "recall@6", "MRR@10", "nDCG@10", "answer@6", "p50 ms", "p99 ms"]
    assert f"search{''.join(heads)}" in text
    assert "0.375 – 0.562" in text
    assert "+0.030" in text


def test_queries_that_are_not_answered_at_once_are_listed_the_worst_first() -> None:
    text = parsed(page(evaluation(SearchOptions()))).text

    assert "2 of 3 are not answered by the first hit" in text
    assert text.index("출장비 정산은 언제?") < text.rindex(EVIL)
    assert "黑豹队" not in text


def test_a_search_is_called_by_its_type_and_what_else_was_chosen() -> None:
    assert title_of(SearchOptions()) == SearchOptions().model_dump(mode="json")["type"]
    assert title_of(SearchOptions(filter={"팀": "총무", "year": 2024})) == (
        f'{title_of(SearchOptions())}, filter {{"팀": "총무", "year": 2024}}'
    )
