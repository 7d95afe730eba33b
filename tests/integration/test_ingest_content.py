"""Ingestion of all forms of text: split, named and described as asked, and found by it."""

from typing import Any

import pytest

from tests.integration.ingestion import (
    CATS,
    TRAINS,
    counts,
    ingest,
    ingest_files,
    live_texts,
    order_sources,
    search,
    stores_agree,
)
from tests.integration.workbench import drain
from workers.attempts.process import Process


@pytest.mark.parametrize(
    ("splitter", "text_", "first"),
    [
        (
            {"type": "token", "chunk_size": 16, "chunk_overlap": 4},
            "one two three four five six seven eight nine ten " * 6,
            "one two three four five six seven eight nine ten one two three four five six",
        ),
        (
            {"type": "character", "chunk_size": 30, "chunk_overlap": 0},
            "First paragraph here.\n\nSecond paragraph here.\n\nThird paragraph here.",
            "First paragraph here.",
        ),
        (
            {"type": "markdown", "chunk_size": 60, "chunk_overlap": 0},
            "# Guide\n\nWelcome.\n\n## Install\n\nRun it.\n\n## Use\n\nPress the key.",
            "# Guide\n\nWelcome.",
        ),
    ],
    ids=["token", "character", "markdown"],
)
def test_every_splitter_goes_the_whole_way(
    process: Process, collection: str, splitter: dict[str, Any], text_: str, first: str
) -> None:
    outcome, _ = ingest(process, collection, {"d": text_}, splitter=splitter)

    assert outcome == {"added": 1}
    chunks = live_texts(process, collection)["d"]
    assert chunks[0] == first
    assert len(chunks) > 2
    stores_agree(process, collection)
    for hit in search(process, collection, text_[:40], k=20):
        assert text_[hit.start : hit.start + len(hit.text)] == hit.text


def test_rows_of_tables_and_records_carry_their_metadata_into_search(
    process: Process, collection: str
) -> None:
    csv = "id,question,answer\n1,When do you open?,At nine.\n2,Where are you?,In Busan.\n"
    jsonl = '{"text": "The boiler was repaired.", "year": 2021, "done": true}\n' * 1
    outcome = ingest_files(
        process,
        collection,
        {"faq.csv": csv.encode("cp949"), "log.jsonl": jsonl.encode()},
        csv={"content_columns": ["question", "answer"], "metadata_columns": ["id"]},
        metadata={"team": "ops"},
    )

    assert outcome == {"added": 2}
    stores_agree(process, collection)
    (hit,) = search(process, collection, "where is the place?", k=1)
    assert (hit.source, "Busan" in hit.text, hit.metadata["team"]) == ("faq.csv", True, "ops")
    assert str(hit.metadata["id"]) == "2"
    (hit,) = search(process, collection, "anything", k=1, search={"filter": {"year": 2021}})
    assert (hit.source, hit.metadata["done"]) == ("log.jsonl", True)


def test_a_filter_leaves_only_what_matches_all_of_it(process: Process, collection: str) -> None:
    ingest(process, collection, {"a": CATS}, metadata={"team": "zoo", "year": 2020})
    ingest(process, collection, {"b": CATS}, metadata={"team": "zoo", "year": 2021})
    ingest(process, collection, {"c": CATS}, metadata={"team": "rail", "year": 2021})

    def sources_where(**filter_: Any) -> set[str]:
        return {
            hit.source
            for hit in search(process, collection, "cat", k=20, search={"filter": filter_})
        }

    assert sources_where(team="zoo") == {"a", "b"}
    assert sources_where(team="zoo", year=2021) == {"b"}
    assert sources_where(source="c") == {"c"}
    assert sources_where(team="nobody") == set()


def test_korean_text_under_a_korean_name_in_a_korean_encoding(
    process: Process, collection: str
) -> None:
    cats = "고양이는 하루의 대부분을 잔다. 고양이는 평균 열다섯 시간을 잔다."
    trains = "부산행 기차는 아홉 시에 출발한다. 기차는 삼십 분마다 있다."

    outcome = ingest_files(
        process,
        collection,
        {"고양이 이야기.txt": cats.encode("cp949"), "기차 시간표.txt": trains.encode()},
    )

    assert outcome == {"added": 2}
    texts = live_texts(process, collection)
    assert set(texts) == {"고양이 이야기.txt", "기차 시간표.txt"}
    assert texts["고양이 이야기.txt"][0].startswith("고양이는 하루의")
    stores_agree(process, collection)
    hit = search(process, collection, "부산행 기차는 아홉 시에 출발한다.", k=1)[0]
    assert hit.source == "기차 시간표.txt"
    assert hit.text in trains


def test_text_sent_inline_may_carry_any_name(process: Process, collection: str) -> None:
    outcome, _ = ingest(process, collection, {"annual report.pdf": CATS, "photo.png": TRAINS})

    assert outcome == {"added": 2}


def test_a_text_without_a_name_is_named_by_its_content(process: Process, collection: str) -> None:
    sources = [{"type": "text", "text": CATS}, {"type": "text", "text": CATS}]
    job_id = order_sources(process, collection, sources)
    drain(process)

    assert counts(process, job_id) == {"added": 1, "skipped": 1}
    (name,) = live_texts(process, collection)
    assert name.startswith("text-")


def test_metadata_that_chroma_would_refuse_does_not_cost_a_document(
    process: Process, collection: str
) -> None:
    big = """[{"text": "fine", "n": 99999999999999999999999, "$id": "x", "#": 1, "": 2,
        "chroma:document": "y", "kept": "z"}]"""
    outcome = ingest_files(process, collection, {"a.json": big.encode(), "b.txt": CATS.encode()})

    assert outcome == {"added": 2}
    stores_agree(process, collection)
    (hit,) = search(process, collection, "fine", search={"filter": {"kept": "z"}})
    assert (hit.text, hit.metadata["$id"], hit.metadata["#"]) == ("fine", "x", 1)
