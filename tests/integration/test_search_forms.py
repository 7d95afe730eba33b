"""One question finds one passage, and its answer quotes it, in whatever form either is written."""

import unicodedata
from collections.abc import Callable
from typing import Any

import pytest

from shared.kinds import registry as kinds
from shared.kinds.kind import Kind
from shared.kinds.rag import RagInput
from shared.kinds.search import SearchInput, SearchOptions, SearchType
from tests.integration.ingestion import CATS, TRAINS, ingest, new_collection
from tests.integration.job_runner import drain, job_of, submit
from workers.attempts.process import Process


def wide(text: str) -> str:
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


FORMS: dict[str, Callable[[str], str]] = {
    "NFC": lambda text: text,
    "NFD": lambda text: unicodedata.normalize("NFD", text),
    "wide": wide,
    "upper": str.upper,
}
CASES = {
    "연차 휴가는 1년에 18일입니다. 쓰지 않은 휴가는 다음 해 3월까지 쓸 수 있습니다.":
        ("연차 휴가는 며칠입니까?", "18일"),
    "The gate of the École opens at 9 and closes at 17.": ("When does the école gate open?", "9"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_text_in_any_form_answers_a_question_in_any_form(process: Process, form: str) -> None:
    collection = new_collection(process)
    written = {text: FORMS[form](text) for text in CASES}
    texts = {str(n): text for n, text in enumerate(written.values())}
    ingest(process, collection, {**texts, "cats": CATS, "trains": TRAINS}, splitter={})
    other = list(FORMS)[list(FORMS).index(form) - 1]
    for text, (question, fact) in CASES.items():
        questions = [ask(question) for ask in FORMS.values()]
        options = SearchOptions(type=SearchType.SIMILARITY)
        search = SearchInput(collection=collection, queries=questions, search=options)
        firsts = [row["hits"][0] for row in run(process, kinds.SEARCH, search)["results"]]
        assert {hit["text"] for hit in firsts} == {unicodedata.normalize("NFC", written[text])}
        scores = [hit["score"] for hit in firsts]
        assert max(scores) - min(scores) < 0.02
        rag = RagInput(collection=collection, question=FORMS[other](question))
        answer = run(process, kinds.RAG, rag)["answer"]
        assert unicodedata.normalize("NFC", FORMS[form](fact)) in answer


def run(process: Process, kind: Kind, input_: SearchInput | RagInput) -> dict[str, Any]:
    job_id = submit(process, kind, input_.model_dump(mode="json"))
    drain(process)
    job = job_of(process, job_id)
    assert job.state == "succeeded", job.error
    result: dict[str, Any] | None = job.result
    assert result is not None
    return result
