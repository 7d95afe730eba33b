"""`rag` with `extractive` through real steps: what is quoted, what is cited, what is refused."""

from pathlib import Path
from typing import Any, Final, Literal
from unicodedata import normalize

import pytest

from shared.kinds import registry as kinds
from tests.integration.ingestion import ingest, new_collection
from tests.integration.job_runner import drain, job_of, submit
from workers.attempts.process import Process
from workers.generation.languages import CHINESE, ENGLISH, JAPANESE, KOREAN

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
FORMS: Final[tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...]] = ("NFC", "NFD", "NFKC", "NFKD")
HANDBOOK = {
    "museum.txt": "Opens at nine.\n\nClosed on Mondays.",
    "library.txt": "Opens at ten.\n\nClosed on Sundays.",
    "연차 휴가 안내.md": (
        "# 연차 휴가\n\n홈 > 인사 > 휴가\n\n1년에 18일입니다.\n\n"
        "© 2024 한빛. All rights reserved.\n\n12쪽"
    ),
    "staff.txt": "Name | Role | Phone\n--- | --- | ---\nMina | Lead | 4120\nJoon | Staff | 4121",
}


def answered(process: Process, collection: str, question: str) -> dict[str, Any]:
    job_id = submit(process, kinds.RAG, {"collection": collection, "question": question})
    drain(process)
    job = job_of(process, job_id)
    assert job.state == "succeeded", job.error
    assert job.result is not None
    result: dict[str, Any] = job.result
    return result


def test_answers_from_a_handbook(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, HANDBOOK, splitter={})

    # The name of a document says what its sentences are about.
    result = answered(process, collection, "When does the library open?")
    assert result["answer"].startswith("Opens at ten. [1]")
    assert result["citations"][0]["source"] == "library.txt"

    # Neither headings nor furniture are quoted.
    for form in FORMS:
        result = answered(process, collection, normalize(form, "연차 휴가는 1년에 며칠인가요?"))
        assert result["answer"] == "1년에 18일입니다. [1]", form
        (citation,) = result["citations"]
        assert (citation["marker"], citation["source"]) == ("[1]", "연차 휴가 안내.md")

    # A row is quoted with its header.
    result = answered(process, collection, "What is the phone of Joon?")
    assert result["answer"] == "Name | Role | Phone\nJoon | Staff | 4121 [1]"

    # What is not there is refused in the question's language.
    for question, language in (
        ("Who won the chess championship in Reykjavik?", ENGLISH),
        ("체스 선수권 대회에서 누가 이겼나요?", KOREAN),
        ("谁赢得了国际象棋锦标赛？", CHINESE),
        ("チェスの選手権で優勝したのは誰ですか？", JAPANESE),
    ):
        for form in FORMS[:2]:
            result = answered(process, collection, normalize(form, question))
            assert (result["answer"], result["citations"]) == (language.not_found, []), question


@pytest.mark.data
@pytest.mark.parametrize(
    ("case", "question", "expected"),
    [
        ("T07/nfd_body.txt", "연차 휴가는 1년에 며칠인가요?", "연차 휴가는 1년에 18일입니다. [1]"),
        ("T15/fullwidth.txt", "When does the gate open?", "Ｔｈｅ ｇａｔｅ ｏｐｅｎｓ ａｔ ９."),
        ("H05/hidden.html", "What is the distance?", "Distance | 27,994 [1]"),
    ],
)
def test_cases_of_other_systems(process: Process, case: str, question: str, expected: str) -> None:
    path = CASES / case
    if not path.exists():
        pytest.skip(f"{path} is absent: cases that a stranger's clone does not have")
    collection = new_collection(process)
    ingest(process, collection, {path.name: path.read_text("utf-8")})
    assert answered(process, collection, question)["answer"].startswith(expected)
