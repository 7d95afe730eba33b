"""Jobs of the kind `hf`: Hugging Face tasks, with inputs and outputs as that API has them.

Shapes are those of the inference API's task specifications (`huggingface_hub.inference`). What a
task takes is checked here, for the API and for workers alike: a worker may be the first to know
which task a model is for.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

from pydantic import model_validator

from shared.bounds import TEXT_LIMIT_CHARS as TEXT_LIMIT_CHARS
from shared.bounds import ModelName, TaskInputs, TaskParameterValues, shown
from shared.errors import InvalidInput
from shared.shapes import Shape


class Task(StrEnum):
    """A task by the name that the hub calls it (`pipeline_tag`)."""

    SUMMARIZATION = "summarization"
    QUESTION_ANSWERING = "question-answering"
    SENTENCE_SIMILARITY = "sentence-similarity"
    TEXT_CLASSIFICATION = "text-classification"
    TRANSLATION = "translation"
    SPEECH_RECOGNITION = "automatic-speech-recognition"
    ZERO_SHOT_CLASSIFICATION = "zero-shot-classification"
    TOKEN_CLASSIFICATION = "token-classification"
    FILL_MASK = "fill-mask"
    FEATURE_EXTRACTION = "feature-extraction"
    TEXT_GENERATION = "text-generation"
    TEXT_RANKING = "text-ranking"
    IMAGE_CLASSIFICATION = "image-classification"


DEFAULT_MODELS: dict[Task, str] = {
    Task.SUMMARIZATION: "facebook/bart-large-cnn",
    Task.QUESTION_ANSWERING: "deepset/roberta-base-squad2",
    Task.SENTENCE_SIMILARITY: "sentence-transformers/all-MiniLM-L6-v2",
    Task.TEXT_CLASSIFICATION: "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    Task.TRANSLATION: "Helsinki-NLP/opus-mt-ru-en",
    Task.SPEECH_RECOGNITION: "facebook/wav2vec2-base-960h",
    Task.ZERO_SHOT_CLASSIFICATION: "facebook/bart-large-mnli",
    Task.TOKEN_CLASSIFICATION: "dslim/bert-base-NER",
    Task.FILL_MASK: "google-bert/bert-base-uncased",
    Task.FEATURE_EXTRACTION: "sentence-transformers/all-MiniLM-L6-v2",
    Task.TEXT_GENERATION: "HuggingFaceTB/SmolLM2-135M-Instruct",
    Task.TEXT_RANKING: "cross-encoder/ms-marco-MiniLM-L6-v2",
    Task.IMAGE_CLASSIFICATION: "google/vit-base-patch16-224",
}
"""What people use for each; SLUICE_HF_MODELS names others."""

BINARY = frozenset({Task.SPEECH_RECOGNITION, Task.IMAGE_CLASSIFICATION})
"""Tasks whose input is a file: base64, or the id of an upload."""

OBJECTS: Mapping[Task, frozenset[str]] = {
    Task.QUESTION_ANSWERING: frozenset({"question", "context"}),
    Task.SENTENCE_SIMILARITY: frozenset({"source_sentence", "sentences"}),
    Task.TEXT_RANKING: frozenset({"query", "texts"}),
}
"""Tasks whose input is an object, and its fields."""


class HfInput(Shape):
    """`task` may be left out where a model is named: then its own configuration tells it.

    A single input gives a single output; a list gives a list, one output an input.
    """

    task: Task | None = None
    model: ModelName | None = None
    inputs: TaskInputs
    parameters: TaskParameterValues = {}
    backend: Literal["local", "hub"] = "local"

    @model_validator(mode="after")
    def _is_known(self) -> "HfInput":
        if self.task is None and self.model is None:
            raise ValueError("name a task, or a model whose task is known")
        if self.task is None and self.backend == "hub":
            raise ValueError("name the task that the hub is to run")
        return self


def batch_key_of(input_: Mapping[str, Any]) -> str:
    """Steps of one key may run in one batch: those of one model, on one back end."""
    return f"{input_['backend']}:{input_['model']}"


def single_inputs(task: Task, inputs: Any) -> tuple[list[Any], bool]:
    """The inputs one by one, and whether they came as a list. Raises InvalidInput.

    What is wrong is told with its place, as in `inputs.3.context`.
    """
    many = isinstance(inputs, list)
    each = inputs if many else [inputs]
    if not each:
        raise InvalidInput("inputs is an empty list; give at least one input.")
    check = _CHECKS.get(task, _check_text)
    for n, value in enumerate(each):
        check(value, f"inputs.{n}" if many else "inputs")
    return each, many


def file_ids(inputs: Any) -> list[UUID]:
    """The uploads that the inputs of a binary task name. Raises InvalidInput for a wrong id."""
    each: Sequence[Any] = inputs if isinstance(inputs, list) else [inputs]
    found = []
    for value in each:
        if isinstance(value, dict) and "file_id" in value:
            try:
                found.append(UUID(str(value["file_id"])))
            except ValueError:
                raise InvalidInput(
                    f"inputs names the file {shown(value['file_id'])}; ids are UUIDs, as "
                    "`POST /v1/files` answers them."
                ) from None
    return found


def _check_text(value: Any, place: str) -> None:
    if not isinstance(value, str):
        raise InvalidInput(f"{place} is {_what(value)}; this task takes a text (a string).")
    if not value.strip():
        raise InvalidInput(f"{place} is empty; give a text.")
    if len(value) > TEXT_LIMIT_CHARS:
        raise InvalidInput(
            f"{place} has {len(value):,} characters; {TEXT_LIMIT_CHARS:,} are the limit. Split it."
        )


def _check_pair(one: str, other: str) -> Callable[[Any, str], None]:
    def check(value: Any, place: str) -> None:
        _check_object(value, place, {one, other})
        _check_text(value[one], f"{place}.{one}")
        _check_text(value[other], f"{place}.{other}")

    return check


def _check_one_to_many(one: str, many: str) -> Callable[[Any, str], None]:
    def check(value: Any, place: str) -> None:
        _check_object(value, place, {one, many})
        _check_text(value[one], f"{place}.{one}")
        if not isinstance(value[many], list) or not value[many]:
            raise InvalidInput(f"{place}.{many} must be a list of at least one text.")
        for n, text in enumerate(value[many]):
            _check_text(text, f"{place}.{many}.{n}")

    return check


def _check_file(value: Any, place: str) -> None:
    if isinstance(value, dict):
        _check_object(value, place, {"file_id"})
        file_ids(value)
    elif not isinstance(value, str):
        raise InvalidInput(
            f"{place} is {_what(value)}; this task takes a file, in base64 or as "
            '{"file_id": "..."} of an upload.'
        )
    elif not value:
        raise InvalidInput(f"{place} is empty; give a file in base64.")


def _check_object(value: Any, place: str, names: set[str]) -> None:
    if not isinstance(value, dict) or set(value) != names:
        fields = ", ".join(f'"{name}"' for name in sorted(names))
        got = shown(value) if isinstance(value, dict) else _what(value)
        raise InvalidInput(f"{place} is {got}; this task takes an object with {fields}.")


def _what(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


_CHECKS: dict[Task, Callable[[Any, str], None]] = {
    Task.QUESTION_ANSWERING: _check_pair("question", "context"),
    Task.SENTENCE_SIMILARITY: _check_one_to_many("source_sentence", "sentences"),
    Task.TEXT_RANKING: _check_one_to_many("query", "texts"),
    Task.SPEECH_RECOGNITION: _check_file,
    Task.IMAGE_CLASSIFICATION: _check_file,
}
