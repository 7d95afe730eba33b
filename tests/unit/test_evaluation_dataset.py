"""Data sets as `sluice eval` reads them: SQuAD, BEIR, judged queries; and what is none of these."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.evaluation.dataset import Dataset, read_dataset
from shared.errors import InvalidInput
from shared.kinds.eval import Judgement

SQUAD: dict[str, Any] = {
    "version": "2.0",
    "data": [
        {
            "title": "여권",
            "paragraphs": [
                {
                    "context": "여권 갱신은 만료 여섯 달 전부터 한다.",
                    "qas": [
                        {
                            "question": "언제부터 갱신하나?",
                            "answers": [{"text": "여섯 달"}, {"text": "여섯 달"}],
                        },
                        {"question": "얼마인가?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "Trains leave at nine.", "qas": []},
            ],
        },
        {
            "paragraphs": [
                {
                    "context": "Trains leave at nine.",
                    "qas": [{"question": "When?", "answers": [{"text": "at nine"}]}],
                }
            ]
        },
    ],
}


def written(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_squad_file_has_a_document_for_each_paragraph(tmp_path: Path) -> None:
    dataset = read_dataset(written(tmp_path, "my set.json", SQUAD), split=None)

    assert dataset.name == "my-set"
    assert dataset.documents == {
        "여권/0": "여권 갱신은 만료 여섯 달 전부터 한다.",
        "여권/1": "Trains leave at nine.",  # which comes twice
    }
    first, second = dataset.queries
    assert (first.query, first.relevant, first.answers) == (
        "언제부터 갱신하나?", ["여권/0"], ["여섯 달"],
    )  # fmt: skip
    assert second.relevant == ["여권/1"]
    assert dataset.remarks == ["Left out 1 questions without an answer."]


def beir(folder: Path, **files: str) -> Path:
    contents = {
        "corpus.jsonl": '{"_id": "d1", "title": "Cats", "text": "They sleep."}\n'
        '{"_id": "d2", "title": "", "text": "A\\u2028dog barks."}\n{"_id": "d3", "text": ""}\n',
        "queries.jsonl": '{"_id": "q1", "text": "Who sleeps?"}\n{"_id": "q2", "text": "Who?"}\n',
        "qrels/test.tsv": "query-id\tcorpus-id\tscore\r\nq1\td1\t2\r\nq1\td2\t0\r\nq2\td2\t1\r\n",
        "qrels/train.tsv": "query-id\tcorpus-id\tscore\nq2\td1\t1\n",
    } | files
    for name, content in contents.items():
        written(folder, name, content)
    return folder


def test_a_beir_folder_has_documents_queries_and_grades(tmp_path: Path) -> None:
    dataset = read_dataset(beir(tmp_path / "scifact"), split=None)

    assert dataset.name == "scifact"
    assert dataset.documents == {"d1": "Cats\n\nThey sleep.", "d2": "A\u2028dog barks."}
    assert [query.query for query in dataset.queries] == ["Who sleeps?", "Who?"]
    assert dataset.queries[0].judgements == [Judgement(id="d1", grade=2)]
    assert dataset.queries[1].judgements == [Judgement(id="d2", grade=1)]
    assert dataset.remarks == ["Left out 1 documents without text."]
    train = read_dataset(tmp_path / "scifact", split="train")
    assert [query.relevant for query in train.queries] == [["d1"]]


def test_qrels_of_trec_have_four_columns(tmp_path: Path) -> None:
    folder = beir(tmp_path / "trec", **{"qrels/test.tsv": "q1\t0\td1\t1\n"})
    assert [query.relevant for query in read_dataset(folder, split=None).queries] == [["d1"]]


def test_judged_queries_are_about_a_collection_of_ones_own(tmp_path: Path) -> None:
    lines = '{"query": "a", "relevant": ["x.md", {"text": "a quotation"}]}\n'
    dataset = read_dataset(written(tmp_path, "judged.jsonl", lines), split=None)

    assert dataset.documents == {}
    assert dataset.queries[0].judgements == [Judgement(id="x.md"), Judgement(text="a quotation")]


def bad_squad(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    squad: dict[str, Any] = json.loads(json.dumps(SQUAD))
    change(squad)
    return squad


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "holds no JSON object. Give a SQuAD file"),
        ("a.json", "[]", "holds no JSON object"),
        ("a.json", {"rows": []}, "is no data set. Give a SQuAD file"),
        ("a.json", {"data": {}}, "`data` is no list"),
        ("a.json", {"data": ["a"]}, "article 1 is no object"),
        ("a.json", {"data": []}, "has no questions with answers"),
        ("a.json", bad_squad(lambda squad: squad["data"][0].pop("paragraphs")), "`paragraphs` is"),
        (
            "a.json",
            bad_squad(lambda squad: squad["data"][0]["paragraphs"][0].update(context="")),
            "여권/0: `context` is no text",
        ),
        (
            "a.json",
            bad_squad(lambda squad: squad["data"][0]["paragraphs"][0]["qas"][0].pop("question")),
            "여권/0, question 1: `question` is no text",
        ),
        ("a.jsonl", '{"query": "a", "relevant": ["b"]}\n{"query"\n', "a.jsonl, line 2: is no JSON"),
        ("a.jsonl", '{"query": "", "relevant": ["b"]}', "line 1: query: "),
        ("a.jsonl", "", "has no queries"),
    ],
)
def test_a_file_that_is_none_is_refused_at_its_place(
    tmp_path: Path, name: str, content: Any, message: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_dataset(written(tmp_path, name, content), split=None)
    assert message in raised.value.message


@pytest.mark.parametrize(
    ("files", "split", "message"),
    [
        ({"corpus.jsonl": '{"_id": "d1"'}, None, "corpus.jsonl, line 1: is no JSON object"),
        ({"corpus.jsonl": '{"text": "a"}'}, None, "corpus.jsonl, line 1: has no `_id`"),
        ({"corpus.jsonl": '{"_id": "a", "text": "b"}\n' * 2}, None, "another document 'a'"),
        ({"queries.jsonl": '{"_id": "q1"}'}, None, "queries.jsonl, line 1: `text` is no text"),
        ({"qrels/test.tsv": "h\th\th\nq1\td1\n"}, None, "test.tsv, line 2: "),
        ({"qrels/test.tsv": "h\th\th\nq1\td1\tmuch\n"}, None, "test.tsv, line 2: "),
        ({"qrels/test.tsv": "q9\td1\t1\n"}, None, "judges the query 'q9', which is not in"),
        ({"qrels/test.tsv": "q1\td1\t0\n"}, None, "calls nothing relevant"),
        ({}, "dev", "has test, train; choose one with --split"),
    ],
)
def test_a_folder_that_is_none_is_refused_at_its_place(
    tmp_path: Path, files: dict[str, str], split: str | None, message: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_dataset(beir(tmp_path / "set", **files), split=split)
    assert message in raised.value.message


def test_a_folder_without_its_files_is_told_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"has no corpus\.jsonl"):
        read_dataset(tmp_path, split=None)
    with pytest.raises(InvalidInput, match="only BEIR folders have a split"):
        read_dataset(written(tmp_path, "a.json", SQUAD), split="test")


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("xquad.en", "xquad.en"),
        ("my questions (2)", "my-questions-2"),
        ("a" * 100, "a" * 63),
        ("한글", "eval-"),
        ("x", "eval-"),
    ],
)
def test_the_collection_is_called_as_the_file_where_that_can_be(
    tmp_path: Path, stem: str, name: str
) -> None:
    form = unicodedata.normalize("NFD", stem)
    dataset = read_dataset(written(tmp_path, f"{form}.json", SQUAD), split=None)
    assert dataset.name.startswith(name)
    assert 3 <= len(dataset.name) <= 63
    composed = read_dataset(written(tmp_path, f"{stem}.json", SQUAD), split=None)
    assert composed.name == dataset.name


def test_a_sample_is_drawn_by_its_seed_and_keeps_the_order(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"query": str(n), "relevant": ["x"]}) for n in range(100))
    dataset = read_dataset(written(tmp_path, "q.jsonl", lines), split=None)

    def sampled(of: Dataset) -> list[int]:
        return [int(query.query) for query in of.queries]

    first = sampled(dataset.sample(10, 0))
    assert len(first) == 10
    assert first == sorted(first) == sampled(dataset.sample(10, 0))
    assert first != sampled(dataset.sample(10, 1))
    assert sampled(dataset.sample(None, 0)) == sampled(dataset.sample(200, 0)) == list(range(100))
