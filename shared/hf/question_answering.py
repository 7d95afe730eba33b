"""Question answering: the part of a text that answers a question."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field

from shared.bounds import INT32_MAX, Natural
from shared.hf.task import (
    CallArguments,
    Checkpoints,
    HfTask,
    HubCall,
    PairInput,
    ParameterValues,
    TableOutput,
    TableRow,
    TaskParameters,
    TopK,
    score_cell,
)


class QuestionAnsweringParameters(TaskParameters):
    """Lengths in tokens, but `max_answer_len`, which counts words' tokens likewise."""

    top_k: TopK = 1
    doc_stride: Natural = 128
    max_answer_len: Natural = 15
    max_seq_len: Annotated[int, Field(ge=8, le=INT32_MAX)] = 384
    max_question_len: Natural = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True


def _answers(output: Any, _: Sequence[str]) -> Iterator[TableRow]:
    for item in output if isinstance(output, list) else [output]:
        yield score_cell(item["score"]), item["start"], item["end"], item["answer"]


def _answer(output: Any) -> str | None:
    if not isinstance(output, dict):
        return None
    where = f"{output['score']:.2f}, from character {output['start']:,}"
    return f"{output['answer']} ({where})" if output["answer"] else f"No answer ({where})"


def _question(value: Any, parameters: ParameterValues) -> CallArguments:
    return (), {**value, **parameters}


def _single(answer: Any, _value: Any, parameters: ParameterValues) -> Any:
    """Some servers answer with a list of one where one was asked for."""
    if isinstance(answer, list) and len(answer) == 1 and parameters.get("top_k", 1) == 1:
        return answer[0]
    return answer


QUESTION_ANSWERING = HfTask(
    name="question-answering",
    default_model="deepset/roberta-base-squad2",
    input=PairInput("question", "context"),
    parameters=QuestionAnsweringParameters,
    output=TableOutput(columns=("score", "start", "end", "answer"), rows=_answers, line=_answer),
    load="workers.hf.tasks.question_answering:load_question_answering",
    checkpoints=Checkpoints(architectures=["ForQuestionAnswering"]),
    hub=HubCall(
        keys=frozenset({"answer", "score", "start", "end"}), arguments=_question, settle=_single
    ),
    example={"inputs": {"question": "When do you open?", "context": "We open at nine."}},
    example_output={"answer": "nine", "score": 0.93, "start": 11, "end": 15},
    takes='`{"question", "context"}`',
    returns='`{"answer", "score", "start", "end"}`; a list of these for `top_k` > 1',
)
