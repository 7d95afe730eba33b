"""Ingestion of all forms of text: split, named and described as asked, and found by it."""

import io
from typing import Any

import pytest
from PIL import Image
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from shared.formats import FORMATS
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    counts,
    document_id,
    ingest,
    ingest_files,
    live_texts,
    order_sources,
    search,
    stores_agree,
    upload,
    vector_ids,
)
from tests.integration.job_runner import drain, job_of
from workers.attempts.process import Process
from workers.ingest.load import loader_of
from workers.retrieval.embedders.local import LocalEmbedder
from workers.retrieval.servers import store_of

MISSING = "00000000-0000-7000-8000-000000000000"


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


def test_sources_have_metadata_splitters_and_names_of_their_own(
    process: Process, collection: str
) -> None:
    file_id = upload(process, "plan.txt", f"{TRAINS} {TRAINS}".encode())
    sources = [
        {"type": "text", "name": "cats", "text": CATS, "metadata": {"topic": "animals"}},
        {"type": "file", "file_id": file_id, "name": "routes/plan.txt", "metadata": {"year": 1},
         "splitter": {"type": "token", "chunk_size": 16, "chunk_overlap": 0}},
    ]  # fmt: skip

    job_id = order_sources(
        process, collection, sources, metadata={"year": 2026}, splitter={"type": "recursive"}
    )
    drain(process)

    assert counts(process, job_id) == {"added": 2}
    texts = live_texts(process, collection)
    assert (texts["cats"], len(texts["routes/plan.txt"]) > 1) == ([CATS], True)
    years = {hit.source: hit.metadata["year"] for hit in search(process, collection, "a")}
    assert years == {"cats": 2026, "routes/plan.txt": 1}
    again = order_sources(
        process, collection, sources, metadata={"year": 2026}, splitter={"type": "recursive"}
    )
    drain(process)
    assert counts(process, again) == {"skipped": 2}


def test_a_document_gets_other_metadata_and_is_not_embedded_again(
    process: Process, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv = {"content_columns": ["question"], "metadata_columns": ["id"]}
    table = b"id,question\n7,When do you open?\n8,Where are you?\n"
    ingest_files(process, collection, {"faq.csv": table}, csv=csv, metadata={"team": "a", "old": 1})
    ingest(process, collection, {"cats": CATS})
    before = store_of(process).vectors(collection, sorted(vector_ids(process, collection)))
    faq = str(document_id(process, collection, "faq.csv"))

    def relabel(document_id: str, metadata: dict[str, Any]) -> dict[str, int]:
        source = {"type": "document", "document_id": document_id, "metadata": metadata}
        job_id = order_sources(process, collection, [source])
        drain(process)
        return counts(process, job_id)

    def encode(*_: Any, **__: Any) -> Any:
        raise AssertionError("nothing is to be embedded")

    with monkeypatch.context() as patched:
        patched.setattr(LocalEmbedder, "encode", encode)
        assert relabel(faq, {"team": "b", "id": "x"}) == {"replaced": 1}
        assert relabel(faq, {"team": "b", "id": "x"}) == {"skipped": 1}
        assert relabel(MISSING, {"team": "b"}) == {"failed": 1}

    hits = search(process, collection, "open", k=9, search={"filter": {"team": "b"}})
    assert sorted(hit.metadata["id"] for hit in hits) == [7, 8], "the rows' own is not changed"
    assert all("old" not in hit.metadata for hit in hits)
    assert search(process, collection, "open", search={"filter": {"old": 1}}) == []
    after = store_of(process).vectors(collection, sorted(vector_ids(process, collection)))
    as_rows = [sorted(map(bytes, vectors.values())) for vectors in (before, after)]
    assert as_rows[0] == as_rows[1]
    stores_agree(process, collection)
    # What was ingested with other metadata is not taken for unchanged.
    again = ingest_files(
        process, collection, {"faq.csv": table}, csv=csv, metadata={"team": "a", "old": 1}
    )
    assert again == {"replaced": 1}


def test_sentences_of_office_documents_are_found_where_they_stand(
    process: Process, collection: str
) -> None:
    uploads = {
        f"{name.replace(' ', '_')}{FORMATS[name].suffixes[0]}": loader_of(FORMATS[name]).example
        for name in (
            *("PDF", "Word", "Excel", "PowerPoint"),
            *("OpenDocument text", "HWPX", "HWP 5", "EPUB"),
        )
    }
    assert ingest_files(process, collection, uploads) == {"added": len(uploads)}

    hits = {hit.source: hit.metadata for hit in search(process, collection, "open at nine", k=20)}

    assert hits["PDF.pdf"]["page"] == 1
    assert hits["Word.docx"]["heading"] == "Hours"
    assert (hits["Excel.xlsx"]["sheet"], hits["Excel.xlsx"]["row"]) == ("Hours", 2)
    assert hits["PowerPoint.pptx"]["slide"] == 1
    assert hits["OpenDocument_text.odt"]["heading"] == "Hours"
    assert hits["EPUB.epub"]["heading"] == "Hours"
    assert {"HWPX.hwpx", "HWP_5.hwp"} <= set(hits)


def test_what_was_not_read_of_a_document_is_a_warning_of_the_job(
    process: Process, collection: str
) -> None:
    picture = ImageReader(Image.new("L", (80, 80), 255))
    stream = io.BytesIO()
    canvas = Canvas(stream)
    canvas.drawString(60, 700, "We open at nine.")
    canvas.showPage()
    canvas.drawImage(picture, 60, 600)
    canvas.save()
    source = {"type": "file", "file_id": upload(process, "scan.pdf", stream.getvalue())}
    job_id = order_sources(process, collection, [source])
    drain(process)

    assert counts(process, job_id) == {"added": 1}
    (warning,) = job_of(process, job_id).warnings
    assert warning.startswith("scan.pdf: pages that are pictures were not read (2).")
