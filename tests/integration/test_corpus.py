"""Documents of every format, made by the programs that write such: each is found by what stands in
it, and the hit says where."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shared.config import Settings
from shared.formats import FORMATS
from shared.kinds import registry as kinds
from shared.kinds.search import SearchInput, SearchOptions, SearchType
from shared.vocabulary import Queue
from tests.integration.corpus import ENGLISH_ALONE, WRITERS, Language, Sample
from tests.integration.ingestion import new_collection, order_sources, stores_agree, upload
from tests.integration.job_runner import drain, job_of, make_process, submit
from tests.tiny import wav2vec2
from tests.tiny_models import one_thread
from workers.app import handlers_of
from workers.attempts.process import Process

HAS_TESSERACT = shutil.which("tesseract") is not None


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """A sample under its name in the job, and the sentence that only it has."""

    name: str
    sentence: str
    sample: Sample

    @property
    def document(self) -> str:
        stem = self.name.partition(".")[0]
        return "!/".join(filter(None, (self.name, self.sample.member.format(stem=stem))))


# One a format.
_ENGLISH = """
bicycles bread candles carpets cats chairs cheese clocks coffee coins diamonds dolls drums eggs
engines feathers fish flutes flowers glass gloves gold grapes hats honey horses ice insurance
jackets kites ladders lamps lemons letters maps mirrors needles onions passports pianos rice salt
shoes soap stamps taxes tea tents tractors umbrellas violins wine
"""
_KOREAN = """
자전거 빵 양초 양탄자 고양이 의자 치즈 시계 커피 동전 보석 인형 북
달걀 엔진 깃털 생선 피리 꽃 유리 장갑 황금 포도 모자 꿀 말 얼음
보험 외투 연 사다리 전등 레몬 편지 지도 거울 바늘 양파 여권 피아노
쌀 소금 신발 비누 우표 세금 홍차 천막 경운기 우산 바이올린 와인
"""
THINGS = {"en": _ENGLISH.split(), "ko": _KOREAN.split()}


def _placed(number: int, format_: str, language: Language) -> _Placed:
    thing = THINGS[language][number]
    sentence = {
        "en": f"For {thing} go to counter {4000 + number} in room {7000 + number}.",
        "ko": f"{thing} 접수는 {8000 + number}번 창구, {9000 + number}호입니다.",
    }[language]
    sample = WRITERS[format_](sentence, language)
    stem = f"{format_}-{language}".replace(" ", "-")
    return _Placed(name=f"{stem}{sample.suffix}", sentence=sample.spoken or sentence, sample=sample)


@pytest.fixture
def worker(process: Process, settings: Settings, tmp_path: Path) -> Iterator[Process]:
    """It has a model of speech, laid out as SLUICE_MODELS_FOLDER is."""
    del process  # empty tables
    shutil.copytree(wav2vec2.folder(), tmp_path / "tiny/wav2vec2")
    own = make_process(
        settings, models_folder=tmp_path, load_step_documents=64, embed_step_chunks=256
    )
    with one_thread():
        yield own
    own.close()


def test_a_sentence_of_every_format_is_found_where_it_stands(worker: Process) -> None:
    lacking = FORMATS.keys() - WRITERS.keys()
    assert not lacking, f"tests/integration/corpus.py has no writer of {', '.join(lacking)}"
    languages: dict[str, list[Language]] = {
        name: ["en"] if name in ENGLISH_ALONE else ["en", "ko"] for name in FORMATS
    }
    placed = [
        _placed(number, name, language)
        for number, (name, of_format) in enumerate(languages.items())
        for language in of_format
    ]
    collection = new_collection(worker)
    sources = [
        {"type": "file", "file_id": upload(worker, one.name, one.sample.data), **one.sample.source}
        for one in placed
    ]
    table = handlers_of(list(Queue))

    job_id = order_sources(worker, collection, sources, splitter={"type": "recursive"})
    drain(worker, table)

    job = job_of(worker, job_id)
    assert job.state == "succeeded", job.error
    failed = {error["source"]: error["message"] for error in job.result["errors"]}
    pictures = {one.name for one in placed if "ocr" in one.sample.source}
    if not HAS_TESSERACT:
        assert failed.keys() == pictures
        assert all("no tesseract" in message for message in failed.values())
        placed = [one for one in placed if one.name not in pictures]
    else:
        assert failed == {}
    wrong = {
        one.document: problem
        for one, hits in zip(placed, _hits(worker, collection, placed), strict=True)
        if (problem := _problem(one, hits))
    }
    assert wrong == {}
    stores_agree(worker, collection)


def _hits(worker: Process, collection: str, placed: list[_Placed]) -> list[list[dict[str, Any]]]:
    """The best hits of each sentence, by one job, and by its words: the others mean much the
    same."""
    queries = [one.sentence for one in placed]
    by_words = SearchOptions(type=SearchType.LEXICAL)
    input_ = SearchInput(collection=collection, queries=queries, k=1, search=by_words)
    job_id = submit(worker, kinds.SEARCH, input_.model_dump(mode="json"))
    drain(worker)
    job = job_of(worker, job_id)
    assert job.state == "succeeded", job.error
    return [row["hits"] for row in job.result["results"]]


def _problem(one: _Placed, hits: list[dict[str, Any]]) -> str:
    hit = hits[0]
    if hit["source"] != one.document:
        return f"found in {hit['source']}: {hit['text']!r}"
    if one.sentence not in hit["text"]:
        return f"another passage: {hit['text']!r}"
    other = {
        key: (hit["metadata"].get(key), value)
        for key, value in one.sample.metadata.items()
        if not _is_same(hit["metadata"].get(key), value)
    }
    return f"metadata: {other}" if other else ""


def _is_same(value: Any, expected: Any) -> bool:
    """Times of recordings are those of a model's frames, to a fifth of a second."""
    if isinstance(expected, float) and isinstance(value, (int, float)):
        return abs(value - expected) <= 0.2
    return bool(value == expected)
