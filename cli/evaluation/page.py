"""The page of an evaluation: one HTML file without other files or scripts, with plots in SVG.

It shows the output of `sluice eval`, the ranks of relevant hits, the times of searches, and the
queries with the worst hits. Light or dark by the reader's settings. All data are escaped.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from cli.evaluation.dataset import Dataset
from cli.terminal.output import first_words
from shared.bounds import nfc
from shared.kinds.eval import Estimate, EvalResult, JudgedQuery, measure_names
from shared.kinds.search import SearchOptions
from sluice import Collection

WIDTH, LEFT, RIGHT, ROW, HEAD = 760, 210, 96, 24, 26
"""Sizes of plots, in their own units."""
COLOURS = 8
QUERIES_SHOWN = 200
SHOWN_CELLS = 600
"""The length of a query. A Latin letter takes one cell, a Korean syllable two."""
TITLES = {"mrr": "MRR", "ndcg": "nDCG"}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A result with its data set. The queries of both have the same order."""

    dataset: Dataset
    path: str
    result: EvalResult
    collection: Collection


def title_of(search: SearchOptions) -> str:
    """The type of the search and its options that are not defaults."""
    options = search.model_dump(mode="json", exclude_defaults=True) | {"type": None}
    others = [f"{key} {_value(value)}" for key, value in options.items() if value is not None]
    return ", ".join([str(search.model_dump(mode="json")["type"]), *others])


def heading_of(measure: str) -> str:
    name, at, depth = measure.partition("@")
    return f"{TITLES.get(name, name)}{at}{depth}"


def measures_of(result: EvalResult) -> list[str]:
    """The measures of the result, in the order in which they are shown."""
    return [name for name in measure_names(result.k) if name in result.searches[0].measures]


def page(evaluation: Evaluation) -> str:
    result, collection = evaluation.result, evaluation.collection
    titles = [title_of(figures.search) for figures in result.searches]
    facts = " · ".join(
        [
            f"{result.query_count:,} queries",
            f"{collection.documents:,} documents, {collection.chunks:,} chunks",
            f"model {result.embedding_model}",
            f"{result.k} hits a query",
        ]
    )
    parts = [
        f"<h1>{escape(evaluation.path)}</h1>",
        f"<p class=facts>Collection {escape(result.collection)} · {escape(facts)}</p>",
        "<h2>Measures</h2>",
        "<p>Means over the queries, with 95 % bootstrap intervals.</p>",
        _estimates_plot(
            [
                (
                    heading_of(name),
                    [
                        (titles[n], n, figures.measures[name])
                        for n, figures in enumerate(result.searches)
                    ],
                )
                for name in measures_of(result)
            ],
            label="Measures of each search",
        ),
        _measures_table(result, titles),
    ]
    if result.differences:
        parts += [
            f"<h2>Difference to {escape(titles[0])}</h2>",
            "<p>Query by query (paired). What does not touch zero is beyond chance.</p>",
            _estimates_plot(
                [
                    (
                        heading_of(name),
                        [
                            (titles[one.search], one.search, one.measures[name])
                            for one in result.differences
                        ],
                    )
                    for name in measures_of(result)
                ],
                label=f"Differences to {titles[0]}",
                signed=True,
            ),
        ]
    parts += [
        "<h2>Where the first relevant hit stands</h2>",
        "<p>The share of queries that have found something relevant by a place.</p>",
        _curves_plot(
            [
                [(float(place), _share(figures.places, place)) for place in range(1, result.k + 1)]
                for figures in result.searches
            ],
            titles,
            label="Share of queries with a relevant hit, by place",
            ticks=[(float(place), str(place)) for place in _steps(result.k)],
            unit="place",
        ),
        "<h2>Times</h2>",
        "<p>The share of searches that took no longer: within the worker, one after the other, "
        "without the queue and HTTP. The scale is logarithmic.</p>",
        _times_plot(result, titles),
        "<h2>Queries</h2>",
        *_queries(evaluation, titles),
    ]
    body = nfc("\n".join(parts))  # not every font can put letters together
    return _PAGE.replace("{title}", escape(evaluation.path)).replace("{body}", body)


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _share(places: Sequence[Sequence[int]], at_most: int) -> float:
    """The share of queries whose first relevant hit has at most this rank."""
    return sum(bool(ranks) and ranks[0] <= at_most for ranks in places) / max(len(places), 1)


def _steps(k: int) -> list[int]:
    return [place for place in range(1, k + 1) if k <= 12 or place == 1 or place % 10 == 0]


# Plots


def _estimates_plot(
    groups: Sequence[tuple[str, Sequence[tuple[str, int, Estimate]]]],
    *,
    label: str,
    signed: bool = False,
) -> str:
    """A plot with a row for each estimate: a dot, a line for its interval, and its value."""
    low, high = _bounds([one for _, rows in groups for _, _, one in rows]) if signed else (0, 1)

    def at(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    height = HEAD + sum(ROW * (len(rows) + 1) for _, rows in groups)
    marks = [*_grid([(at(tick), f"{tick:+g}" if signed and tick else f"{tick:g}")
                     for tick in _ticks(low, high)], height)]  # fmt: skip
    if signed:
        marks.append(f"<line class=zero x1={at(0):.1f} x2={at(0):.1f} y1={HEAD} y2={height} />")
    y = HEAD
    for name, rows in groups:
        y += ROW
        marks.append(f"<text class=group x=0 y={y - 7}>{escape(name)}</text>")
        for title, number, one in rows:
            y += ROW
            value = f"{one.value:+.3f}" if signed else f"{one.value:.3f}"
            title_text = escape(f"{name}, {title}: {value} [{one.low:.3f}, {one.high:.3f}]")
            middle = y - ROW / 2
            marks.append(
                f'<g class="c{number % COLOURS}"><title>{title_text}</title>'
                f"<line class=interval x1={at(one.low):.1f} x2={at(one.high):.1f} "
                f"y1={middle} y2={middle} />"
                f"<circle cx={at(one.value):.1f} cy={middle} r=5 /></g>"
                f"<text x=12 y={middle + 4}>{escape(first_words(title, 28))}</text>"
                f"<text class=value x={WIDTH} y={middle + 4}>{value}</text>"
            )
    return _svg(height + 4, marks, label)


def _bounds(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """A range around zero that contains all intervals."""
    reach = max([0.01, *(abs(end) for one in estimates for end in (one.low, one.high))]) * 1.05
    return -reach, reach


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round numbers."""
    step = 10 ** math.floor(math.log10(high - low))
    while (high - low) / step < 4:
        step /= 2 if (high - low) / step > 2 else 5
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 6) for number in range(first, last + 1)]


def _curves_plot(
    curves: Sequence[Sequence[tuple[float, float]]],
    titles: Sequence[str],
    *,
    label: str,
    ticks: Sequence[tuple[float, str]],
    unit: str,
    scale: Callable[[float], float] = float,
) -> str:
    """A plot with a line for each search; y is a share."""
    left, right, bottom = 44, 16, HEAD + 220
    first, last = scale(ticks[0][0]), scale(ticks[-1][0])

    def x(value: float) -> float:
        span = (last - first) or 1.0
        return left + (scale(value) - first) / span * (WIDTH - left - right)

    def y(share: float) -> float:
        return bottom - share * (bottom - HEAD)

    marks = [
        f"<line class=grid x1={left} x2={WIDTH - right} y1={y(share):.1f} y2={y(share):.1f} />"
        f"<text class=tick x={left - 6} y={y(share) + 4:.1f} text-anchor=end>{share:g}</text>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    marks += [
        f"<text class=tick x={x(value):.1f} y={bottom + 18} text-anchor=middle>{escape(text)}"
        "</text>"
        for value, text in ticks
    ]
    marks.append(
        f"<text class=tick x={WIDTH - right} y={bottom + 36} text-anchor=end>{unit}</text>"
    )
    for number, (title, curve) in enumerate(zip(titles, curves, strict=True)):
        points = " ".join(f"{x(value):.1f},{y(share):.1f}" for value, share in curve)
        marks.append(
            f'<g class="c{number % COLOURS}"><title>{escape(title)}</title>'
            f'<polyline points="{points}" /></g>'
        )
    top = bottom + 44
    for number, title in enumerate(titles):
        row = top + ROW * number
        marks.append(
            f'<g class="c{number % COLOURS}"><line class=interval x1={left} x2={left + 24} '
            f"y1={row} y2={row} /></g><text x={left + 32} y={row + 4}>"
            f"{escape(first_words(title, 90))}</text>"
        )
    return _svg(top + ROW * len(titles), marks, label)


def _times_plot(result: EvalResult, titles: Sequence[str]) -> str:
    curves = []
    for figures in result.searches:
        ordered = sorted(max(time, 0.01) for time in figures.times_ms)
        # A hundred points look the same as a million.
        places = sorted({round(n * (len(ordered) - 1) / 100) for n in range(101)})
        curves.append([(ordered[place], (place + 1) / len(ordered)) for place in places])
    shortest = min(curve[0][0] for curve in curves)
    longest = max(curve[-1][0] for curve in curves)
    low, high = math.floor(math.log10(shortest)), math.ceil(math.log10(longest) + 1e-9)
    decades = range(low, max(high, low + 1) + 1)
    ticks = [(10.0**decade * factor, f"{10.0**decade * factor:g}")
             for decade in decades for factor in (1, 2, 5)]  # fmt: skip
    below = [tick for tick in ticks if tick[0] <= shortest][-1:]
    inside = [tick for tick in ticks if shortest < tick[0] < longest]
    above = [tick for tick in ticks if tick[0] >= longest][:1]
    return _curves_plot(
        curves,
        titles,
        label="Share of searches by time",
        ticks=[*below, *inside, *above],
        unit="ms",
        scale=math.log10,
    )


def _grid(ticks: Sequence[tuple[float, str]], height: float) -> Iterator[str]:
    for x, text in ticks:
        yield (
            f"<line class=grid x1={x:.1f} x2={x:.1f} y1={HEAD} y2={height} />"
            f"<text class=tick x={x:.1f} y={HEAD - 8} text-anchor=middle>{text}</text>"
        )


def _svg(height: float, marks: Sequence[str], label: str) -> str:
    return (
        f'<div class=plot><svg viewBox="0 0 {WIDTH} {height:g}" role=img '
        f'aria-label="{escape(label)}">{"".join(marks)}</svg></div>'
    )


# Tables


def _measures_table(result: EvalResult, titles: Sequence[str]) -> str:
    names = measures_of(result)
    heads = "".join(f"<th>{escape(heading_of(name))}</th>" for name in names)
    rows = "".join(
        f"<tr><th>{escape(title)}</th>"
        + "".join(
            f"<td>{one.value:.3f}<br><small>{one.low:.3f} – {one.high:.3f}</small></td>"
            for one in map(figures.measures.__getitem__, names)
        )
        + f"<td>{figures.times.p50_ms:.1f}</td><td>{figures.times.p99_ms:.1f}</td></tr>"
        for title, figures in zip(titles, result.searches, strict=True)
    )
    return (
        f"<div class=table><table><tr><th>search</th>{heads}<th>p50 ms</th><th>p99 ms</th></tr>"
        f"{rows}</table></div>"
    )


def _queries(evaluation: Evaluation, titles: Sequence[str]) -> Iterator[str]:
    """The queries whose first hit is not relevant in some search, the worst first."""
    firsts = [
        [places[n][0] if places[n] else None for places in
         (figures.places for figures in evaluation.result.searches)]
        for n in range(evaluation.result.query_count)
    ]  # fmt: skip
    worth = [[1 / first if first else 0.0 for first in row] for row in firsts]
    order = sorted(range(len(worth)), key=lambda n: (sum(worth[n]), n))
    weak = [n for n in order if min(worth[n]) < 1]
    yield (
        f"<p>{len(weak):,} of {len(worth):,} are not answered by the first hit of every search"
        + (f"; the {QUERIES_SHOWN} worst of them" if len(weak) > QUERIES_SHOWN else "")
        + ". The numbers are the places of the first relevant hit; – is none.</p>"
    )
    heads = "".join(f"<th>{escape(title)}</th>" for title in titles)
    rows = "".join(
        f"<tr><td class=text>{escape(first_words(query.query, SHOWN_CELLS))}"
        f"<br><small>{escape(_relevant(query))}</small></td>"
        + "".join(f"<td>{first or '–'}</td>" for first in firsts[n])
        + "</tr>"
        for n in weak[:QUERIES_SHOWN]
        for query in [evaluation.dataset.queries[n]]
    )
    yield (
        f"<div class=table><table><tr><th>query, and what is relevant</th>{heads}</tr>{rows}"
        "</table></div>"
    )


def _relevant(query: JudgedQuery) -> str:
    names = [
        one.id or f"“{first_words(one.text or '', 60)}”" for one in query.judgements if one.grade
    ]
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    answers = f" — {first_words('; '.join(query.answers), 120)}" if query.answers else ""
    return ", ".join(names[:3]) + more + answers


_PAGE = """<!doctype html>
<html>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} – sluice eval</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b626b; --line: #d8dce2; --ground: #fff;
  --c0: #0b62a4; --c1: #c2410c; --c2: #0f7b55; --c3: #9333a8; --c4: #8a6d00; --c5: #0e7490;
  --c6: #b0305c; --c7: #4b5563; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a5adb8; --line: #3a4049;
  --ground: #15181c; --c0: #5aa9e6; --c1: #f2905a; --c2: #4cc38a; --c3: #c790e0; --c4: #d9b44a;
  --c5: #4cc9d9; --c6: #ee7fa4; --c7: #a8b0bb; } }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink);
  background: var(--ground); line-height: 1.5; word-break: keep-all; overflow-wrap: anywhere;
  font-family: system-ui, "Apple SD Gothic Neo", "Malgun Gothic", "Noto Sans KR",
    "Noto Sans CJK KR", "Noto Sans SC", sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, .facts, small { color: var(--soft); } p { margin: .3rem 0 .8rem; }
.plot, .table { overflow-x: auto; } svg { width: 100%; min-width: 34rem; height: auto; }
svg text { fill: var(--ink); font: 13px system-ui, "Apple SD Gothic Neo", "Malgun Gothic",
  "Noto Sans KR", "Noto Sans CJK KR", sans-serif; }
svg .tick { fill: var(--soft); font-size: 12px; } svg .group { font-weight: 600; }
svg .value { text-anchor: end; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); } svg .zero { stroke: var(--soft); }
svg .interval { stroke: currentColor; stroke-width: 3; opacity: .55; }
svg circle { fill: currentColor; } svg polyline { fill: none; stroke: currentColor;
  stroke-width: 2.5; stroke-linejoin: round; }
.c0 { color: var(--c0); } .c1 { color: var(--c1); } .c2 { color: var(--c2); }
.c3 { color: var(--c3); } .c4 { color: var(--c4); } .c5 { color: var(--c5); }
.c6 { color: var(--c6); } .c7 { color: var(--c7); }
table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; font-weight: 400; } th:first-child, td.text { text-align: left; }
tr:first-child th { color: var(--soft); border-bottom-color: var(--soft); }
td.text { min-width: 20rem; } td { white-space: nowrap; } td.text { white-space: normal; }
</style>
</head>
<body>
{body}
</body>
</html>
"""
