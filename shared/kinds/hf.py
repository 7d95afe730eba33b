"""Jobs of the kind `hf`: Hugging Face tasks, which `TASKS` lists, a line each.

What a task takes is checked here, for the API and for workers alike: a worker may be the first to
know which task a model is for.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Literal, get_args

from pydantic import BaseModel, ValidationError, model_validator
from sqlalchemy.orm import Session

from shared import files
from shared.bounds import ModelName, TaskInputs, TaskParameterValues, cut
from shared.config import HfSettings
from shared.errors import InvalidInput
from shared.hf.classification import (
    IMAGE_CLASSIFICATION,
    TEXT_CLASSIFICATION,
    ZERO_SHOT_CLASSIFICATION,
)
from shared.hf.generation import SUMMARIZATION, TEXT_GENERATION, TRANSLATION
from shared.hf.question_answering import QUESTION_ANSWERING
from shared.hf.sentences import FEATURE_EXTRACTION, SENTENCE_SIMILARITY, TEXT_RANKING
from shared.hf.speech import SPEECH_RECOGNITION
from shared.hf.task import HfTask, TaskParameters, file_ids, settable
from shared.hf.tokens import FILL_MASK, TOKEN_CLASSIFICATION
from shared.kinds.kind import Kind, StepType
from shared.models.hub_names import full_name
from shared.vocabulary import Queue, Shape

TASKS: Final[Mapping[str, HfTask]] = {
    task.name: task
    for task in (
        SUMMARIZATION,
        QUESTION_ANSWERING,
        SENTENCE_SIMILARITY,
        TEXT_CLASSIFICATION,
        TRANSLATION,
        SPEECH_RECOGNITION,
        ZERO_SHOT_CLASSIFICATION,
        TOKEN_CLASSIFICATION,
        FILL_MASK,
        FEATURE_EXTRACTION,
        TEXT_GENERATION,
        TEXT_RANKING,
        IMAGE_CLASSIFICATION,
    )
}


class Task(StrEnum):
    """A task by the name that the hub calls it (`pipeline_tag`)."""

    # The members are the names in `TASKS`.
    locals().update({name.upper().replace("-", "_"): name for name in TASKS})


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


def single_inputs(task: str, inputs: Any) -> tuple[list[Any], bool]:
    """The inputs one by one, and whether they came as a list. Raises InvalidInput.

    Messages name what is wrong by its path, as in `inputs.3.context`.
    """
    many = isinstance(inputs, list)
    values = inputs if many else [inputs]
    if not values:
        raise InvalidInput("inputs is an empty list; give at least one input.")
    for n, value in enumerate(values):
        TASKS[task].input.check(value, f"inputs.{n}" if many else "inputs")
    return values, many


ERRORS_SHOWN = 10


def parse_parameters(task: str, parameters: dict[str, Any]) -> TaskParameters:
    """Raises InvalidInput, which names each wrong parameter; a null stands for the default."""
    shape = TASKS[task].parameters
    try:
        return shape.model_validate({k: v for k, v in parameters.items() if v is not None})
    except ValidationError as error:
        raise InvalidInput(_error_message(task, shape, error)) from None


def _error_message(task: str, shape: type[TaskParameters], error: ValidationError) -> str:
    lines = []
    for entry in error.errors(include_input=False, include_url=False)[:ERRORS_SHOWN]:
        path = ".".join(cut(str(part), 64) for part in ("parameters", *entry["loc"]))
        message = entry["msg"].removeprefix("Value error, ")
        if entry["type"] == "extra_forbidden":
            known = ", ".join(settable(_shape_at(shape, entry["loc"][:-1]))) or "none"
            message = f"{task} has no such parameter; it knows: {known}"
        lines.append(f"{path}: {message}")
    if error.error_count() > ERRORS_SHOWN:
        lines.append(f"and {error.error_count() - ERRORS_SHOWN} more")
    return "; ".join(lines)


def _shape_at(shape: type[BaseModel], path: Sequence[int | str]) -> type[BaseModel]:
    """The shape of the parameters that are nested at a path."""
    for name in path:
        info = shape.model_fields.get(str(name))
        types = get_args(info.annotation) if info is not None else ()
        shapes = [
            type_ for type_ in types if isinstance(type_, type) and issubclass(type_, BaseModel)
        ]
        shape = shapes[0] if shapes else shape
    return shape


def takes_files(task: str | None) -> bool:
    """Whether inputs are files; False where no task is named."""
    return task is not None and TASKS[task].input.is_file


def default_models(settings: HfSettings) -> dict[Task, str]:
    return {
        Task(name): settings.hf_models.get(name, task.default_model) for name, task in TASKS.items()
    }


def model_of(job_input: HfInput, settings: HfSettings) -> str:
    """The model that the job names, or the task's default."""
    if job_input.model is not None:
        return full_name(job_input.model)
    # The shape lets no input through that names neither.
    assert job_input.task is not None
    return full_name(settings.hf_models.get(job_input.task, TASKS[job_input.task].default_model))


def check(job_input: HfInput, settings: HfSettings) -> None:
    """Raises InvalidInput. Where the task is not named, the worker looks at the rest."""
    count = len(job_input.inputs) if isinstance(job_input.inputs, list) else 1
    if count > settings.hf_limit_inputs:
        raise InvalidInput(
            f"inputs has {count:,} entries; a job takes {settings.hf_limit_inputs:,} "
            "(SLUICE_HF_LIMIT_INPUTS). Submit several jobs: they share batches."
        )
    if job_input.inputs is None:
        raise InvalidInput("inputs is missing; give what the task is to work on.")
    if job_input.task is not None:
        single_inputs(job_input.task, job_input.inputs)
        parse_parameters(job_input.task, job_input.parameters)


def _require(session: Session, inputs: Sequence[Mapping[str, Any]]) -> None:
    """The uploads that tasks are to work on."""
    ids = [
        file_id
        for input_ in inputs
        if input_["task"] is None or takes_files(input_["task"])
        for file_id in file_ids(input_["inputs"])
    ]
    if ids:
        files.require(session, ids)


HF = Kind(
    name="hf",
    summary="a Hugging Face task",
    input=HfInput,
    result=None,
    steps=[StepType(name="hf.run", queue=Queue.HF, handler="workers.hf.steps:HF_RUN")],
    example={"task": SENTENCE_SIMILARITY.name, **SENTENCE_SIMILARITY.example},
    check=check,
    defaults=lambda job_input, settings: {"model": model_of(job_input, settings)},
    require=_require,
    batch_key=batch_key_of,
    file_path="$.inputs.file_id",
)
