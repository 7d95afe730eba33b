"""What the window of the embedding model cuts is in the warnings of the job."""

import base64
import re
from collections import defaultdict
from typing import Any

import pytest
from sqlalchemy import select

from shared.kinds import registry as kinds
from shared.kinds.embed import EmbedInput
from shared.kinds.ingest import SplitterType
from shared.kinds.kind import Kind
from shared.kinds.rag import RagInput
from shared.kinds.search import SearchInput
from shared.tables import Chunk, Document, Version
from shared.vocabulary import Lane
from tests.integration.ingestion import (
    TRAINS,
    counts,
    ingest,
    live_texts,
    load_all,
    new_collection,
    order,
    order_sources,
    upload,
)
from tests.integration.job_runner import drain, embedders, job_of, submit
from workers.attempts.process import Process

KOREAN = "창고의 문은 평일 아침 여덟 시에 열고 저녁 일곱 시에 닫습니다. " * 20
"""Some 740 letters, which the model spells out in about a thousand tokens."""
ENGLISH = "The gate opens at nine and closes at five.\n\n" * 60


def tokens(text: str) -> int:
    tokenizer = embedders().get().tokenizer
    assert tokenizer is not None
    return len(tokenizer.encode(text))


def of_length(warnings: list[str]) -> list[str]:
    """Without those that the model does not know a script."""
    return [warning for warning in warnings if "longer than" in warning]


def chunks_of_sources(process: Process) -> dict[str, list[str]]:
    """Source -> the texts of its chunks, whether they are embedded yet or not."""
    chunks: defaultdict[str, list[str]] = defaultdict(list)
    with process.ledger.read() as session:
        for source, text in session.execute(
            select(Document.source, Chunk.text)
            .join(Version, Version.document_id == Document.id)
            .join(Chunk, Chunk.version_id == Version.id)
            .order_by(Document.source, Chunk.ordinal)
        ):
            chunks[source].append(text)
    return chunks


def warnings_of(process: Process, kind: Kind, input_: Any) -> list[str]:
    job_id = submit(process, kind, input_.model_dump(mode="json"), lane=Lane.INTERACTIVE)
    drain(process)
    job = job_of(process, job_id)
    assert job.state == "succeeded", job.error
    return job.warnings


@pytest.mark.parametrize(
    ("text", "splitter"),
    [
        (KOREAN, {"type": "recursive", "chunk_size": 1000, "chunk_overlap": 200}),
        (KOREAN * 2, {"type": "token", "chunk_size": 1200, "chunk_overlap": 100}),
        (ENGLISH, {"type": "character", "chunk_size": 4000, "chunk_overlap": 0}),
        (KOREAN.replace("\n", " "), {"type": "character", "chunk_size": 500, "chunk_overlap": 0}),
        (f"# A\n\n{KOREAN}", {"type": "markdown", "chunk_size": 1000, "chunk_overlap": 0}),
    ],
)
def test_ingesting_says_what_is_not_read_and_a_size_that_fits(
    process: Process, text: str, splitter: dict[str, Any]
) -> None:
    collection = new_collection(process)
    _, job = ingest(process, collection, {"long.md": text, "short.md": TRAINS}, splitter=splitter)

    warning = job.warnings[0]
    assert "long.md (" in warning
    said = re.search(r"of ([\d,]+) tokens ([\d,]+) are not read", warning)
    assert said is not None
    all_tokens, unread = (int(number.replace(",", "")) for number in said.groups())
    assert tokens(text) * 0.9 < all_tokens < tokens(text) * 1.6  # chunks overlap
    chunks = int(warning.split(" ")[0])
    assert unread == all_tokens - 256 * chunks
    assert "short.md" not in warning
    assert embedders().get().name in warning
    size = int(warning.split("chunk_size of at most ")[1].split(" ")[0].replace(",", ""))
    assert 16 <= size < splitter["chunk_size"]
    fitting = splitter | {"chunk_size": size, "chunk_overlap": 0}
    if splitter["type"] == "character":  # it does not divide a paragraph, whatever its size
        assert "with the splitter recursive, a chunk_size" in warning
        fitting["type"] = "recursive"
    else:
        assert "the splitter recursive" not in warning
    again = new_collection(process)
    _, job = ingest(process, again, {"long.md": text, "short.md": TRAINS}, splitter=fitting)
    assert of_length(job.warnings) == []


def test_chunks_are_counted_over_all_steps_and_documents(process: Process) -> None:
    collection = new_collection(process)
    names = [f"number {n:02}.txt" for n in range(14)]
    splitter = {"type": "recursive", "chunk_size": 800, "chunk_overlap": 0}
    texts = {name: KOREAN * (2 if n == 0 else 1) + str(n) for n, name in enumerate(names)}
    _, job = ingest(process, collection, texts, splitter=splitter)

    (warning,) = of_length(job.warnings)
    assert warning.startswith("15 chunks are longer than what ")
    assert "number 00.txt (2), number 01.txt (1)" in warning
    assert "number 09.txt (1) and 4 more documents." in warning
    assert len(warning) < 1000
    _, job = ingest(process, collection, texts, splitter=splitter)
    assert job.warnings == []  # nothing was embedded


def test_rows_of_tables_are_chunks_like_others(process: Process) -> None:
    collection = new_collection(process)
    file_id = upload(process, "rows.csv", f'text\n"{KOREAN}"\nshort\n'.encode())
    source = {"type": "file", "file_id": file_id}
    splitter = {"type": "recursive", "chunk_size": 1000, "chunk_overlap": 0}
    job_id = order_sources(process, collection, [source], splitter=splitter)
    drain(process)
    assert counts(process, job_id) == {"added": 1}
    assert "1 chunk is longer" in job_of(process, job_id).warnings[0]


def test_short_chunks_warn_of_nothing(process: Process) -> None:
    collection = new_collection(process)
    job_id = order(process, collection, {"a": TRAINS, "b": KOREAN})  # in small pieces
    drain(process)
    assert of_length(job_of(process, job_id).warnings) == []


@pytest.mark.parametrize("splitter", [{}, *({"type": type_} for type_ in SplitterType)])
def test_without_a_size_every_chunk_is_read_to_its_end(
    process: Process, splitter: dict[str, Any]
) -> None:
    log = "".join(
        f"2026-11-{n % 28 + 1:02}T09:{n % 60:02}:12Z [pid {n * 7919}] GET /a/{n * 104729:x} 200\n"
        for n in range(20)
    )
    code = base64.b64encode(bytes(n * 37 % 251 for n in range(1300))).decode()
    texts = {
        "ko.md": KOREAN, "en.md": ENGLISH[: len(ENGLISH) // 2], "log.txt": log, "code.txt": code,
        "ja.txt": "倉庫は朝八時に開き、夜七時に閉まります。" * 27,
        "numbers.csv": "a,b\n" + "\n".join(f"{n / 7:.9f},{n / 11:.9f}" for n in range(30)),
    }  # fmt: skip
    order(process, new_collection(process), texts, splitter=splitter)
    load_all(process)
    overlong = embedders().get().overlong
    loaded = chunks_of_sources(process)
    assert set(loaded) == set(texts)
    for name, chunks in loaded.items():
        assert overlong(chunks, between=lambda: None) == {}, name
        assert len("".join(chunks).replace(" ", "")) >= len(texts[name].replace(" ", "")) * 0.9


def test_a_late_fact_is_in_the_vectors(process: Process) -> None:
    """Of a text of 745 Korean letters the model read 200."""
    fact = "연은 빨갛다."
    collection = new_collection(process)
    ingest(process, collection, {"late.txt": KOREAN + fact}, splitter={})
    chunks = live_texts(process, collection)["late.txt"]
    assert fact in chunks[-1]
    encode = embedders().get().encode
    whole, less = encode([chunks[-1], chunks[-1].replace(fact, "")], between=lambda: None)
    assert float(whole @ less) < 0.999


def test_a_model_that_does_not_know_the_script_is_named_once(process: Process) -> None:
    texts = {f"{n}.txt": f"{n}. {KOREAN}" for n in range(7)}
    russian = "Склад открывается в восемь часов утра и закрывается вечером."
    _, job = ingest(process, new_collection(process), {"en": ENGLISH, **texts, "ru": russian})
    (warning,) = job.warnings
    assert "8 documents (Hangul, Cyrillic; 0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 3 more)" in warning
    assert "intfloat/multilingual-e5-small" in warning
    assert embedders().get().name in warning

    names = "The names Kim (김), Park (박) and Lee (이) are common. " * 3
    _, job = ingest(process, new_collection(process), {"en": ENGLISH, "names": names})
    assert job.warnings == []


def test_embedding_names_the_texts(process: Process) -> None:
    long = "word " * 300
    exact = "word " * 254
    assert (tokens(long), tokens(exact)) == (302, 256)

    texts = ["short", long, exact, KOREAN]
    (warning,) = warnings_of(process, kinds.EMBED, EmbedInput(texts=texts))
    assert "first 256 tokens" in warning
    assert f"text 2 has 302, text 4 has {tokens(KOREAN):,}." in warning
    (warning,) = warnings_of(process, kinds.EMBED, EmbedInput(texts=[long] * 40))
    assert "text 10 has 302 and 30 more" in warning
    assert warnings_of(process, kinds.EMBED, EmbedInput(texts=["short", exact])) == []


def test_a_long_query_or_question_is_named(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"trains": TRAINS})
    question = "When does the train to Busan leave? " * 60

    search = SearchInput(collection=collection, query=question)
    (warning,) = warnings_of(process, kinds.SEARCH, search)
    assert f"The query has {tokens(question.strip()):,} tokens" in warning
    rag = RagInput(collection=collection, question=question)
    (warning,) = warnings_of(process, kinds.RAG, rag)
    assert f"The question has {tokens(question.strip()):,} tokens" in warning
    short = SearchInput(collection=collection, query="When?")
    assert warnings_of(process, kinds.SEARCH, short) == []
