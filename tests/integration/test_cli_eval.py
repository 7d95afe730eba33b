"""`sluice eval` against a real HTTP server: what it sends, what it prints, what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from cli.commands.eval import search_types
from cli.main import run
from tests.integration.cli_process import document
from tests.integration.fake_api import State
from tests.integration.fake_bodies import make_document
from tests.integration.terminal import on_terminal

pytestmark = pytest.mark.usefixtures("cli_folder")

Captured = pytest.CaptureFixture[str]
QUERIES = [{"query": f"질문 {n}?", "relevant": [f"docs/{n}.md"]} for n in range(3)]


@pytest.fixture
def judged(cli_folder: Path, state: State) -> str:
    state.collections.add("handbook")
    lines = "\n".join(json.dumps(query, ensure_ascii=False) for query in QUERIES)
    (cli_folder / "judged.jsonl").write_text(lines, encoding="utf-8")
    return "judged.jsonl"


@pytest.fixture
def squad(cli_folder: Path) -> str:
    paragraphs = [
        {
            "context": f"Paragraph {n}.",
            "qas": [{"question": f"Which {n}?", "answers": [{"text": str(n)}]}],
        }
        for n in range(3)
    ]
    data = {"data": [{"title": "Numbers", "paragraphs": paragraphs}]}
    (cli_folder / "numbers.en.json").write_text(json.dumps(data), encoding="utf-8")
    return "numbers.en.json"


def job_of(state: State, kind: str) -> dict[str, Any]:
    (job,) = [job for job in state.jobs.values() if job["kind"] == kind]
    return job


def test_judged_queries_are_asked_in_the_collection_that_is_named(
    judged: str, state: State, capsys: Captured
) -> None:
    assert run(["eval", judged, "-c", "handbook", "--type", "similarity"]) == 0

    out, _ = capsys.readouterr()
    fields = out.removesuffix("\n").split("\t")
    # The measures in their order, each with its interval, and the times.
    assert fields == ["similarity", *["0.5", "0.4", "0.625"] * 5, "10.25", "20.5"]
    job = job_of(state, "eval")
    assert job["input"]["collection"] == "handbook"
    assert job["input"]["k"] == 10
    assert [kind["kind"] for kind in state.jobs.values()] == ["eval"]
    assert state.files == {}  # what was sent is deleted again
    assert state.count("POST", "/v1/files") == 1


def test_a_second_search_is_compared_with_the_first(
    judged: str, state: State, capsys: Captured
) -> None:
    rival = '{"filter": {"팀": "총무"}}'
    assert run(["eval", judged, "-c", "handbook", "--vs", rival]) == 0

    first, second, difference = capsys.readouterr().out.splitlines()
    name = search_types()[0]
    assert first.split("\t")[0] == name
    assert second.split("\t")[0] == f'{name}, filter {{"팀": "총무"}}'
    assert difference.split("\t")[0] == f'{name}, filter {{"팀": "총무"}} - {name}'
    assert difference.split("\t")[1:7] == ["-0.25", "-0.5", "0.0", "-0.25", "-0.5", "-0.125"]
    searches = job_of(state, "eval")["input"]["searches"]
    assert [search["filter"] for search in searches] == [None, {"팀": "총무"}]


def test_every_type_that_needs_nothing_else_is_measured_unless_one_is_named(
    judged: str, state: State, capsys: Captured
) -> None:
    assert run(["eval", judged, "-c", "handbook"]) == 0
    asked = [search["type"] for search in job_of(state, "eval")["input"]["searches"]]
    assert asked == [name for name in search_types() if name != "similarity_score_threshold"]
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(asked) - 1
    state.jobs.clear()
    assert run(["eval", judged, "-c", "handbook", "--type", "similarity"]) == 0
    assert [search["type"] for search in job_of(state, "eval")["input"]["searches"]] == [
        "similarity"
    ]


def test_a_terminal_gets_tables(judged: str, cli_folder: Path) -> None:
    rival = '{"filter": {"team": "office"}}'
    with on_terminal("eval", judged, "-c", "handbook", "--vs", rival, columns=140) as screen:
        assert screen.end() == 0
    lines = screen.seen.replace("\r", "").splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("3 queries, 3 documents, 6 "))
    assert lines[at + 1].split() == [
        "search", "recall@1", "recall@6", "MRR@10", "nDCG@10", "answer@6", "p50", "ms", "p99", "ms",
    ]  # fmt: skip
    assert "0.500 ±.112  " in lines[at + 2]
    assert lines[at + 2].split()[-2:] == ["10.2", "20.5"]
    difference = next(line for line in lines[at + 5 :] if "filter" in line)
    assert "-0.250 ±.250  -0.250* ±.188" in difference
    assert not (cli_folder / "report.html").exists()


def test_the_documents_of_a_squad_file_are_put_into_a_collection_of_its_name(
    squad: str, state: State, capsys: Captured
) -> None:
    assert run(["eval", squad, "--json", "--limit", "2"]) == 0

    result = document(capsys)
    assert result["collection"] == "numbers.en"
    assert [query["query"] for query in result["queries"]] != []
    assert len(result["queries"]) == 2
    assert result["dataset"] == squad
    assert result["job_id"] == job_of(state, "eval")["id"]
    sources = job_of(state, "ingest")["input"]["sources"]
    assert [source["name"] for source in sources] == ["Numbers/0", "Numbers/1", "Numbers/2"]
    assert job_of(state, "ingest")["lane"] == "bulk"
    assert state.collections == {"numbers.en"}


def test_what_was_put_there_can_be_deleted_afterwards(
    squad: str, state: State, capsys: Captured
) -> None:
    assert run(["eval", squad, "--delete", "--embedding-model", "a/b", "--chunk-size", "300"]) == 0
    assert job_of(state, "ingest")["input"]["splitter"] == {"chunk_size": 300}
    assert "Deleted the collection numbers.en." in capsys.readouterr().err
    assert state.collections == set()
    assert state.count("PUT", "/v1/collections/numbers.en") == 1


def test_a_collection_with_other_documents_is_left_alone(
    squad: str, state: State, capsys: Captured
) -> None:
    state.collections.add("handbook")
    assert run(["eval", squad, "-c", "handbook"]) == 2
    err = capsys.readouterr().err
    assert "has documents that are not of the data set ('docs/0.md'" in err
    assert "Name another one with --collection" in err
    assert state.jobs == {}


def test_a_collection_that_has_the_documents_already_is_used_again(
    squad: str, state: State
) -> None:
    state.collections.add("numbers.en")
    state.documents = [make_document("numbers.en", n) | {"source": f"Numbers/{n}"} for n in (0, 1)]
    assert run(["eval", squad]) == 0


def test_a_page_is_written_where_it_is_asked_for(judged: str, capsys: Captured) -> None:
    assert run(["eval", judged, "-c", "handbook", "--html", "report.html"]) == 0
    assert "Wrote report.html." in capsys.readouterr().err
    page = Path("report.html").read_text(encoding="utf-8")
    assert "질문 2?" in page
    assert "<svg" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judged.jsonl"], "name the collection that they are about with --collection"),
        (["judged.jsonl", "-c", "handbook", "--delete"], "has queries alone"),
        (["nothing.json"], "does not exist"),
        (["judged.jsonl", "-c", "handbook", "--vs", "hybrid"], "is no JSON object such as"),
        (["judged.jsonl", "-c", "handbook", "--vs", '{"typ": 1}'], "typ: Extra inputs"),
        (["judged.jsonl", "-c", "handbook", "--vs", "[1]"], "are no options of a search"),
        (["judged.jsonl", "-c", "handbook", "--type", "guess"], "'guess' is not"),
        (["judged.jsonl", "-c", "handbook", *["--vs", "{}"] * 16], "At most 16 searches"),
        (["judged.jsonl", "-c", "handbook", "--split", "dev"], "only BEIR folders have a split"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_sent(
    judged: str, state: State, capsys: Captured, arguments: list[str], message: str
) -> None:
    del judged
    assert run(["eval", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert state.jobs == {}


def test_a_job_that_fails_is_the_commands_failure(
    judged: str, state: State, capsys: Captured
) -> None:
    state.outcome = "failed"
    assert run(["eval", judged, "-c", "handbook"]) == 1
    assert capsys.readouterr().out == ""


def test_a_job_that_takes_too_long_goes_on(judged: str, state: State, capsys: Captured) -> None:
    state.outcome = "running"
    assert run(["eval", judged, "-c", "handbook", "--timeout", "0.2"]) == 7
    assert job_of(state, "eval")["state"] != "cancelled"
    assert len(state.files) == 1  # which the job needs
    capsys.readouterr()
