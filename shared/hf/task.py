"""What a Hugging Face task is: all that the API, the workers, the command line and the pages know
of it.

A task is one record, and `TASKS` in `shared/kinds/hf.py` lists them. Tasks that share their shapes
share a module. How to add one: CONTRIBUTING.md. Inputs, parameters and outputs are those of the
inference API's task specifications (`huggingface_hub.inference`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import core_schema

from shared.bounds import TEXT_LIMIT_CHARS, shown
from shared.errors import InvalidInput

# Inputs: each shape checks one input, and names what is wrong by its path, as in
# `inputs.3.context`.

_STRING = {"type": "string"}


class InputShape(ABC):
    """What one input of a task is."""

    fields: Sequence[str] = ()
    """The fields, where an input is an object."""
    is_file: ClassVar[bool] = False
    """Whether it is a file: base64, or the id of an upload."""

    @abstractmethod
    def check(self, value: Any, path: str) -> None:
        """Raises InvalidInput."""

    def properties(self) -> dict[str, Any]:
        """The fields as JSON Schema."""
        return dict.fromkeys(self.fields, _STRING)


class TextInput(InputShape):
    def check(self, value: Any, path: str) -> None:
        check_text(value, path)


class PairInput(InputShape):
    """An object of two texts. The command line takes the second as `--context`."""

    def __init__(self, first: str, second: str) -> None:
        self.first, self.second = self.fields = (first, second)

    def check(self, value: Any, path: str) -> None:
        check_object(value, path, self.fields)
        for name in self.fields:
            check_text(value[name], f"{path}.{name}")


class OneToManyInput(InputShape):
    """An object of a text and a list of others. The command line takes them one after the other."""

    def __init__(self, one: str, many: str) -> None:
        self.one, self.many = self.fields = (one, many)

    def check(self, value: Any, path: str) -> None:
        check_object(value, path, self.fields)
        check_text(value[self.one], f"{path}.{self.one}")
        texts = value[self.many]
        if not isinstance(texts, list) or not texts:
            raise InvalidInput(f"{path}.{self.many} must be a list of at least one text.")
        for n, text in enumerate(texts):
            check_text(text, f"{path}.{self.many}.{n}")

    def properties(self) -> dict[str, Any]:
        return {self.one: _STRING, self.many: {"type": "array", "items": _STRING}}


class FileInput(InputShape):
    is_file = True

    def __init__(self, media: Literal["audio", "image"]) -> None:
        self.media = media

    def check(self, value: Any, path: str) -> None:
        if isinstance(value, dict):
            check_object(value, path, ("file_id",))
            file_ids(value)
        elif not isinstance(value, str):
            raise InvalidInput(
                f"{path} is {_what(value)}; this task takes a file, in base64 or as "
                '{"file_id": "..."} of an upload.'
            )
        elif not value:
            raise InvalidInput(f"{path} is empty; give a file in base64.")


def check_text(value: Any, path: str) -> None:
    if not isinstance(value, str):
        raise InvalidInput(f"{path} is {_what(value)}; this task takes a text (a string).")
    if not value.strip():
        raise InvalidInput(f"{path} is empty; give a text.")
    if len(value) > TEXT_LIMIT_CHARS:
        raise InvalidInput(
            f"{path} has {len(value):,} characters; {TEXT_LIMIT_CHARS:,} are the limit. Split it."
        )


def check_object(value: Any, path: str, names: Sequence[str]) -> None:
    if not isinstance(value, dict) or set(value) != set(names):
        fields = ", ".join(f'"{name}"' for name in sorted(names))
        what = shown(value) if isinstance(value, dict) else _what(value)
        raise InvalidInput(f"{path} is {what}; this task takes an object with {fields}.")


def file_ids(inputs: Any) -> list[UUID]:
    """The uploads that inputs of files name. Raises InvalidInput for a wrong id."""
    ids = []
    for value in inputs if isinstance(inputs, list) else [inputs]:
        if isinstance(value, dict) and "file_id" in value:
            try:
                ids.append(UUID(str(value["file_id"])))
            except ValueError:
                raise InvalidInput(
                    f"inputs names the file {shown(value['file_id'])}; ids are UUIDs, as "
                    "`POST /v1/files` answers them."
                ) from None
    return ids


def _what(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    return "null" if value is None else names.get(type(value), "a number")


# Parameters: names, types and defaults of the inference API.
#
# An unknown parameter is an error that lists the known ones: a misspelt one must not be ignored.

TopK = Annotated[int, Field(ge=1, le=10_000)]


class TaskParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True)
class Only:
    """The one value of a parameter that is only known because clients send it by default: the one
    that changes nothing, or null."""

    value: bool | float | None = None

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        same_kind = isinstance(value, bool) == isinstance(self.value, bool)
        if value is None or (value == self.value and same_kind):
            return value
        shown = "null" if self.value is None else self.value
        raise ValueError(f"Input should be {shown}: no other is supported here; leave it out")


def settable(shape: type[BaseModel]) -> list[str]:
    """The parameters that somebody may want to set."""
    return [
        name
        for name, info in shape.model_fields.items()
        if not any(isinstance(part, Only) for part in info.metadata)
    ]


# Outputs, as the command line shows them to a person. Where an output has another shape, it shows
# JSON.

TableRow = tuple[object, ...]


def _no_lines(_output: Any) -> Iterator[str]:
    return iter(())


def _no_line(_output: Any) -> None:
    return None


@dataclass(frozen=True, kw_only=True)
class TextOutput:
    """Outputs are objects with a text in this field."""

    field: str
    details: Callable[[Any], Iterator[str]] = _no_lines
    """What else an output has, a line each."""


@dataclass(frozen=True, kw_only=True)
class TableOutput:
    """An output is some rows of a table."""

    columns: Sequence[str]
    rows: Callable[[Any, Sequence[str]], Iterator[TableRow]]
    """From an output and the names of what was compared, or of the input."""
    wide_column: str | None = None
    """What may be shortened: one knows it already. An answer is never shortened."""
    line: Callable[[Any], str | None] = _no_line
    """The output of one input as a line, where it needs no table."""


def score_cell(value: float) -> str:
    return f"{value:.4f}"


# The inference API: how it is called, and what it answers.

ParameterValues = Mapping[str, Any]
"""The parameters that a job sets, by name."""
CallArguments = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional ones, and those with names."""


class UnexpectedAnswer(Exception):
    """The answer is JSON, and not what the task answers."""


def one_value(value: Any, parameters: ParameterValues) -> CallArguments:
    return (value,), parameters


def check_list(answer: Any, _value: Any, _parameters: ParameterValues) -> Any:
    if not isinstance(answer, list):
        raise UnexpectedAnswer("it is no list.")
    return answer


def check_single(answer: Any, _value: Any, _parameters: ParameterValues) -> Any:
    if isinstance(answer, list):
        raise UnexpectedAnswer("it is a list.")
    return answer


@dataclass(frozen=True, kw_only=True)
class HubCall:
    """By default a task is called as the method of its name of `huggingface_hub.InferenceClient`,
    with an input and the parameters."""

    keys: frozenset[str] = frozenset()
    """What every object of an answer has."""
    arguments: Callable[[Any, ParameterValues], CallArguments] | None = one_value
    """Of the client's method. None where it has no such method, or one that takes less than jobs
    may ask for: input and parameters are sent as they are."""
    settle: Callable[[Any, Any, ParameterValues], Any] = check_list
    """From the answer, the input and the parameters to the output of the local back end: servers
    differ. Raises UnexpectedAnswer."""


# Local models


def can_always(_architecture: str, _config: Mapping[str, Any]) -> int | None:
    return 0


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """Which models are for a task, by their files."""

    architectures: Sequence[str] = ()
    """How the names of its architectures end. Of all tasks' endings the longest one counts."""
    rank: Callable[[str, Mapping[str, Any]], int | None] = can_always
    """From an architecture and the model's configuration: None where the model cannot do the task;
    the lower, the nearer it is to what the model was made for. Between equals, the order of `TASKS`
    decides."""
    are_for_sentences: bool = False
    """Whether models of sentence-transformers that make vectors can do it."""


# An answer for an input that did not come in a list


def as_it_is(output: Any) -> Any:
    return output


def in_a_list(output: Any) -> Any:
    return [output]


def as_a_list(output: Any) -> Any:
    """In a list, unless it is one."""
    return output if isinstance(output, list) else [output]


@dataclass(frozen=True, kw_only=True, eq=False)
class HfTask:
    """A task by the name that the hub calls it (`pipeline_tag`).

    `default_model` is what people use for it; SLUICE_HF_MODELS names others. `load` names what
    loads a model for it, as `module:name`; only workers import it. It is a function from a folder
    and `LoadOptions` to a `LocalTask` (`workers/hf/task.py`) or, where no batches are needed, to a
    function from an input and the parameters to the output.
    """

    name: str
    default_model: str
    input: InputShape
    parameters: type[TaskParameters]
    output: TextOutput | TableOutput
    load: str
    checkpoints: Checkpoints
    hub: HubCall
    example: Mapping[str, Any]
    """`inputs` of a job, which are a single one, and its `parameters`."""
    example_output: Any
    """The output for that input; the model may give other words and numbers."""
    takes: str
    """`inputs`, as the page says it."""
    returns: str
    """The output for one input, as the page says it."""
    alone: Callable[[Any], Any] = as_it_is
    """The answer for an input that did not come in a list: some are in a list all the same."""
    signs: frozenset[str] = field(default=frozenset())
    """Parameters by each of which a job without a task is known to be for this one."""

    @property
    def required_parameters(self) -> frozenset[str]:
        shape = self.parameters.model_fields
        return frozenset(name for name, info in shape.items() if info.is_required())
