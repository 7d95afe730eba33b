"""Tables on terminals of any width, and the lines of a pipe: nothing is cropped in silence."""

import re
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from rich.cells import cell_len

from cli.main import run
from cli.terminal.output import print_fields, print_record, print_table
from tests.integration.fake_api import State
from tests.integration.fake_bodies import NOW, make_conversation, make_document, make_job
from tests.integration.terminal import on_terminal

IDS = [f"01a21957-3c86-7c1b-9aaa-{number:012d}" for number in range(4)]
LONG = "아주/긴/이름의/회의실-예약-안내와-출장비-정산-규정-그리고-연차-휴가-규정-개정판.md"
JAPANESE = "出張費精算に関する社内規程の改訂版とその説明資料.md"
ERROR = "Chroma refused: the collection of the embeddings was made with another dimension. " * 3
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
WIDTHS = [40, 60, 80, 120, 200]
Captured = pytest.CaptureFixture[str]

pytestmark = pytest.mark.usefixtures("cli_folder")


@pytest.fixture
def state() -> State:
    state = State()
    names = ("faq.json", LONG, JAPANESE, "a.md")
    numbers = ((30, 52_341), (80, 1_234_567), (9_999, 123_456_789), (1, 7))
    for id_, name, (chunks, size) in zip(IDS, names, numbers, strict=True):
        sizes = {"id": id_, "source": name, "chunks": chunks, "size_bytes": size}
        state.documents.append({**make_document("handbook", 0), **sizes})
    for id_ in IDS:
        job = make_job(id_, {"kind": "ingest", "input": {"sources": ["x"] * 100}})
        done = {"done": 1_234, "total": 56_789, "unit": "documents"}
        failed = {"state": "failed", "error": {"type": "Permanent", "message": ERROR}}
        state.jobs[id_] = {**job, "progress": done, **failed}
    state.models["hf/some-organisation/some-model-of-a-very-long-name-13B-instruct"] = {}
    state.collections.add("a-collection-with-a-name-that-is-quite-long-but-is-allowed")
    return state


@pytest.fixture
def on_screen(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> Callable[..., list[str]]:
    """What a call prints on a terminal of this width."""

    def lines(width: int, call: Callable[[], Any]) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setenv("FORCE_COLOR", "1")
            patch.setenv("TERM", "xterm")
            patch.setenv("COLUMNS", str(width))
            call()
        return ESCAPES.sub("", capsys.readouterr().out).splitlines()

    return lines


WHOLE: dict[str, list[str]] = {
    "documents -c handbook": [
        *IDS, "id", "source", "chunks", "bytes", "updated",
        *("30", "80", "9,999", "52,341", "1,234,567", "123,456,789"),
    ],
    "jobs": [*IDS, "id", "kind", "state", "progress", "age", "note", "1,234/56,789",
             "ingest", "failed"],
    "models": ["model", "kinds", "default", "workers", "extractive",
               "hf/some-organisation/some-model-of-a-very-long-name-13B-instruct"],
    "collections": ["name", "documents", "chunks", "model", "created",
                    "a-collection-with-a-name-that-is-quite-long-but-is-allowed"],
}  # fmt: skip


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("command", WHOLE)
def test_ids_numbers_and_columns_are_whole_at_any_width(
    command: str, width: int, on_screen: Callable[..., list[str]]
) -> None:
    lines = on_screen(width, lambda: run(command.split()))
    # What is too long for the screen by itself was broken by it, not cropped.
    text = "\n".join(lines)
    for whole in WHOLE[command]:
        if cell_len(whole) <= width - 2:
            assert re.search(rf"(?<![\w,]){re.escape(whole)}(?![\w,])", text), (whole, lines)
        else:
            assert whole in "".join(line.strip() for line in lines)
    assert all(cell_len(line) <= width for line in lines), lines


@pytest.mark.parametrize("width", range(30, 160))
def test_only_the_flexible_column_is_shortened_and_says_so(
    width: int, on_screen: Callable[..., list[str]]
) -> None:
    rows = [(IDS[0], 80, LONG, 1_234_567), (IDS[1], 8, "a.md", 12)]
    columns = ("id", "chunks", "source", "bytes")
    lines = on_screen(width, lambda: print_table(columns, rows, flexible="source"))
    assert all(cell_len(line) <= width for line in lines)
    if len(lines) == 3:  # a head and two rows
        assert cell_len(lines[0]) == cell_len(lines[1]) == cell_len(lines[2])
        id_, chunks, *source, size = lines[1].split()
        assert (id_, chunks, size) == (IDS[0], "80", "1,234,567")
        [shown] = source[:1]
        assert " ".join(source) == LONG or ("…" in "".join(source) and LONG.startswith(shown[:3]))
    else:  # a block for each row, where nothing at all is shortened
        assert "…" not in "".join(lines)
        assert LONG in "".join(line.strip() for line in lines[: lines.index("")]).replace(
            "source", ""
        )
        assert [line.split()[-1] for line in lines if line.startswith("chunks")] == ["80", "8"]


def test_a_table_without_a_flexible_column_never_loses_a_value(
    on_screen: Callable[..., list[str]],
) -> None:
    for width in range(12, 60):
        lines = on_screen(width, lambda: print_table(("model", "workers"), [("m" * 30, 1234567)]))
        assert "m" * 30 in "".join(line.strip() for line in lines)
        assert "1,234,567" in "".join(lines)
        assert "…" not in "".join(lines)


def test_a_terminal_of_80_columns_shows_the_numbers(state: State) -> None:
    del state.documents[2]  # the one with a size of nine digits
    with on_terminal("documents", "-c", "handbook", columns=80) as terminal:
        terminal.expect("chunks")
        assert terminal.end() == 0
    shown = [line.split() for line in terminal.seen.splitlines()]
    [faq] = [cells for cells in shown if "faq.json" in cells]
    assert faq[:4] == [IDS[0], "faq.json", "30", "52,341"]


def test_jobs_without_notes_fit_80_columns(
    state: State, on_screen: Callable[..., list[str]]
) -> None:
    for job in state.jobs.values():
        done = {"done": 60, "total": 300, "unit": "documents"}
        job |= {"state": "succeeded", "error": None, "progress": done}
    lines = on_screen(80, lambda: run(["jobs"]))
    assert lines[0].split() == ["id", "kind", "state", "progress", "age", "note"]
    assert [line.split()[:4] for line in lines[1:]] == [
        [id_, "ingest", "succeeded", "60/300"] for id_ in reversed(IDS)
    ]


# Pipes


def test_pipes_get_every_list_in_full_length(state: State, capsys: Captured) -> None:
    assert run(["jobs"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.split("\n")[:-1]]
    assert [row[0] for row in rows] == IDS[::-1]
    assert {row[5] for row in rows} == {ERROR}
    assert {row[3] for row in rows} == {"1,234/56,789 documents"}
    assert run(["documents", "-c", "handbook"]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.split("\n")[:-1]]
    assert [row[1] for row in rows] == ["faq.json", LONG, JAPANESE, "a.md"]
    assert [(row[2], row[3]) for row in rows[:2]] == [("30", "52341"), ("80", "1234567")]
    assert {row[4] for row in rows} == {NOW.replace("Z", "+00:00")}
    id_ = str(UUID(int=1))
    state.conversations[id_] = make_conversation(id_, metadata={"note": LONG * 9})
    assert run(["conversations"]) == 0
    assert LONG * 9 in capsys.readouterr().out


def test_pipes_get_whole_jobs_one_field_a_line(state: State, capsys: Captured) -> None:
    ended = {"kind": "hf", "state": "succeeded", "error": None}
    state.jobs[IDS[0]] |= {**ended, "result": {"hits": ["a\nb"] * 99}}
    assert run(["jobs", "show", IDS[0]]) == 0
    fields = dict(line.split("\t") for line in capsys.readouterr().out.split("\n")[:-1])
    assert fields["id"] == IDS[0]
    assert fields["hits"].count(r"a\\nb") == 99


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("a\tb\nc\r\\d", r"a\tb\nc\r\\d"),
        ("\x1b[31m", r"\x1b[31m"),
        ("a\u2028b\u2029c\x85d\x0be\x1cf", r"a\u2028b\u2029c\x85d\x0be\x1cf"),
        (None, ""),
        (1234567, "1234567"),
        (0.8125, "0.8125"),
        ("가" * 5000, "가" * 5000),
    ],
)
def test_a_record_is_one_line(value: object, line: str, capsys: Captured) -> None:
    print_record("x", value)
    assert capsys.readouterr().out == f"x\t{line}\n"
    print_fields([("name", value)])
    assert capsys.readouterr().out == f"name\t{line}\n"
    print_table(("a", "b"), [(value, "z")], flexible="a")
    assert capsys.readouterr().out == f"{line}\tz\n"


def test_korean_in_parts_takes_the_cells_that_it_shows(
    on_screen: Callable[..., list[str]],
) -> None:
    decomposed = "한글.md"
    lines = on_screen(100, lambda: print_table(("a", "b"), [(decomposed, 1), ("한글한글", 2)]))
    assert {cell_len(line) for line in lines} == {len("한글한글") * 2 + 2 + 1}
