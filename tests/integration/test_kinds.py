"""A kind that needs no more than its record and a function."""

import pytest

from shared.bounds import Text
from shared.kinds.kind import Kind, StepType
from shared.kinds.registry import KINDS
from shared.vocabulary import Queue, Shape
from tests.integration.job_runner import drain, job_of, submit
from workers.app import handlers_of
from workers.attempts.process import Process


class CountInput(Shape):
    text: Text


class CountResult(Shape):
    words: int


def count(input_: CountInput) -> CountResult:
    return CountResult(words=len(input_.text.split()))


COUNT = Kind(
    name="count",
    summary="how many words a text has",
    input=CountInput,
    result=CountResult,
    steps=[StepType(name="count", queue=Queue.QUERY, handler=f"{__name__}:count")],
    example={"text": "We open at nine."},
)


def test_a_function_is_handler_enough(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, COUNT.name, COUNT)
    job_id = submit(process, COUNT, {"text": "하나 둘 셋"})
    assert drain(process, handlers_of([Queue.QUERY])) == 1
    job = job_of(process, job_id)
    assert job.state == "succeeded"
    assert job.result == {"words": 3}
