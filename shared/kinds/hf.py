"""Jobs of the kind `hf`: Hugging Face tasks, with inputs and outputs as that API has them.

Shapes are those of the inference API's task specifications (`huggingface_hub.inference`). What a
task takes is checked here, for the API and for workers alike: a worker may be the first to know
which task a model is for.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import core_schema
from sqlalchemy.orm import Session

from shared import files
from shared.bounds import (
    INT32_MAX,
    Count,
    FullLine,
    Line,
    ModelName,
    Natural,
    TaskInputs,
    TaskParameterValues,
    cut,
    shown,
)
from shared.bounds import TEXT_LIMIT_CHARS as TEXT_LIMIT_CHARS
from shared.config import HfSettings
from shared.errors import InvalidInput
from shared.kinds.kind import Kind, StepType
from shared.vocabulary import Queue, Shape


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
    ids = []
    for value in each:
        if isinstance(value, dict) and "file_id" in value:
            try:
                ids.append(UUID(str(value["file_id"])))
            except ValueError:
                raise InvalidInput(
                    f"inputs names the file {shown(value['file_id'])}; ids are UUIDs, as "
                    "`POST /v1/files` answers them."
                ) from None
    return ids


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


# The `parameters` of each Hugging Face task: names, types and defaults of the inference API.
#
# An unknown parameter is an error that lists the known ones: a misspelt one must not be
# ignored. Parameters of generation are those of transformers' `GenerationConfig`; `None`
# leaves what the model's own configuration says.

ERRORS_SHOWN = 10
TopK = Annotated[int, Field(ge=1, le=10_000)]
Truncation = Literal["do_not_truncate", "longest_first", "only_first", "only_second"]


@dataclass(frozen=True)
class Only:
    """The one value of a parameter that is only known because clients send it unasked: the one
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


class TaskParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class ClassificationParameters(TaskParameters):
    """`top_k` None gives every label, best first."""

    top_k: TopK | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class ZeroShotParameters(TaskParameters):
    candidate_labels: Annotated[
        list[FullLine], Field(fail_fast=True, min_length=1, max_length=1000)
    ]
    hypothesis_template: Line = "This example is {}."
    multi_label: bool = False

    @model_validator(mode="before")
    @classmethod
    def _labels_in_one_string(cls, values: Any) -> Any:
        """`"a, b"` is taken for a list, as transformers does."""
        labels = values.get("candidate_labels") if isinstance(values, dict) else None
        if isinstance(labels, str):
            split = [label.strip() for label in labels.split(",") if label.strip()]
            return {**values, "candidate_labels": split}
        return values

    @model_validator(mode="after")
    def _template_has_a_place(self) -> "ZeroShotParameters":
        if "{}" not in self.hypothesis_template:
            raise ValueError("hypothesis_template needs the place {} for the label")
        return self


class TokenClassificationParameters(TaskParameters):
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "simple"
    ignore_labels: Annotated[list[Line], Field(fail_fast=True, max_length=10_000)] = ["O"]
    stride: Count = 0


class FillMaskParameters(TaskParameters):
    top_k: TopK = 5
    targets: Annotated[list[Line], Field(fail_fast=True, max_length=10_000)] | None = None


class FeatureParameters(TaskParameters):
    """`truncate` False makes a text that is too long an error."""

    normalize: bool | None = None
    prompt_name: Line | None = None
    truncate: bool = True
    truncation_direction: Literal["left", "right"] = "right"
    dimensions: Natural | None = None
    encoding_format: Literal["float"] | None = None


class SimilarityParameters(TaskParameters):
    pass


class RankingParameters(TaskParameters):
    """`raw_scores` gives logits instead of what the model's activation makes of them."""

    top_k: TopK | None = None
    raw_scores: bool = False
    return_text: bool = False


class QuestionAnsweringParameters(TaskParameters):
    """Lengths in tokens, but `max_answer_len`, which counts words' tokens likewise."""

    top_k: TopK = 1
    doc_stride: Natural = 128
    max_answer_len: Natural = 15
    max_seq_len: Annotated[int, Field(ge=8, le=INT32_MAX)] = 384
    max_question_len: Natural = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True


class GenerationParameters(TaskParameters):
    """What a caller may ask of `generate`; `max_new_tokens` goes before `max_length`. After
    `max_time` seconds of generating, the text ends where it is."""

    max_length: Annotated[int, Field(ge=1, le=32_768)] | None = None
    min_length: Annotated[int, Field(ge=0, le=32_768)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=32_768)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=64)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    epsilon_cutoff: Annotated[float, Field(ge=0, lt=1)] | None = None
    eta_cutoff: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] | None = None
    no_repeat_ngram_size: Count | None = None
    early_stopping: bool | Literal["never"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_time: Annotated[float, Field(ge=0, le=86_400)] | None = None
    num_beam_groups: Annotated[int | None, Only(1)] = None
    penalty_alpha: Annotated[float | None, Only(0)] = None
    use_cache: bool | None = None


class Seq2SeqParameters(GenerationParameters):
    """`truncation: do_not_truncate` makes a text that is too long an error."""

    clean_up_tokenization_spaces: bool | None = None
    truncation: Truncation | None = None
    generate_parameters: GenerationParameters | None = None


class TranslationParameters(Seq2SeqParameters):
    src_lang: Line | None = None
    tgt_lang: Line | None = None


class TextGenerationParameters(GenerationParameters):
    """With those of text-generation-inference: what clients of it send without being asked to is
    taken, as is `stop_sequences` for `stop`; what only that server can do is refused."""

    return_full_text: bool = True
    stop: Annotated[list[FullLine], Field(fail_fast=True, max_length=16)] = []
    truncate: Natural | None = None
    watermark: Annotated[bool | None, Only(False)] = None
    details: Annotated[bool | None, Only(False)] = None
    decoder_input_details: Annotated[bool | None, Only(False)] = None
    stream: Annotated[bool | None, Only(False)] = None
    best_of: Annotated[int | None, Only(1)] = None
    top_n_tokens: Annotated[int | None, Only(0)] = None
    frequency_penalty: Annotated[float | None, Only(0)] = None
    grammar: Annotated[Any, Only()] = None
    adapter_id: Annotated[Any, Only()] = None
    num_return_sequences: Annotated[int, Field(ge=1, le=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _stop_by_its_other_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "stop_sequences" not in values:
            return values
        others = {name: value for name, value in values.items() if name != "stop_sequences"}
        if values.get("stop"):
            raise ValueError("give stop or stop_sequences, not both")
        return others | {"stop": values["stop_sequences"] or []}


class SpeechGenerationParameters(GenerationParameters):
    """The language and the task may stand here too, as transformers' pipeline has them."""

    language: Line | None = None
    task: Literal["transcribe", "translate"] | None = None


class SpeechParameters(TaskParameters):
    """`return_timestamps` True gives segments (Whisper) or words (CTC). What `generate_kwargs` says
    goes before the same in `generation_parameters`, and that before the same beside them."""

    return_timestamps: bool | Literal["word", "char"] = False
    language: Line | None = None
    task: Literal["transcribe", "translate"] | None = None
    chunk_length_s: Annotated[float, Field(gt=0, le=300)] | None = None
    generate_kwargs: SpeechGenerationParameters | None = None
    generation_parameters: SpeechGenerationParameters | None = None

    @property
    def spoken(self) -> str | None:
        """The language that is named, wherever it is."""
        return self._first("language")

    @property
    def wanted_task(self) -> str | None:
        return self._first("task")

    def _first(self, name: str) -> str | None:
        places = (self.generate_kwargs, self.generation_parameters, self)
        values = (getattr(place, name, None) for place in places)
        return next((value for value in values if value is not None), None)


class ImageClassificationParameters(TaskParameters):
    top_k: TopK = 5
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


PARAMETERS: dict[Task, type[TaskParameters]] = {
    Task.SUMMARIZATION: Seq2SeqParameters,
    Task.QUESTION_ANSWERING: QuestionAnsweringParameters,
    Task.SENTENCE_SIMILARITY: SimilarityParameters,
    Task.TEXT_CLASSIFICATION: ClassificationParameters,
    Task.TRANSLATION: TranslationParameters,
    Task.SPEECH_RECOGNITION: SpeechParameters,
    Task.ZERO_SHOT_CLASSIFICATION: ZeroShotParameters,
    Task.TOKEN_CLASSIFICATION: TokenClassificationParameters,
    Task.FILL_MASK: FillMaskParameters,
    Task.FEATURE_EXTRACTION: FeatureParameters,
    Task.TEXT_GENERATION: TextGenerationParameters,
    Task.TEXT_RANKING: RankingParameters,
    Task.IMAGE_CLASSIFICATION: ImageClassificationParameters,
}


def parse_parameters(task: Task, parameters: dict[str, Any]) -> TaskParameters:
    """Raises InvalidInput, which names each wrong parameter; a null stands for the default."""
    shape = PARAMETERS[task]
    try:
        return shape.model_validate({k: v for k, v in parameters.items() if v is not None})
    except ValidationError as error:
        raise InvalidInput(_error_message(task, shape, error)) from None


def _error_message(task: Task, shape: type[TaskParameters], error: ValidationError) -> str:
    lines = []
    for entry in error.errors(include_input=False, include_url=False)[:ERRORS_SHOWN]:
        place = ".".join(cut(str(part), 64) for part in ("parameters", *entry["loc"]))
        message = entry["msg"].removeprefix("Value error, ")
        if entry["type"] == "extra_forbidden":
            known = ", ".join(settable(_shape_at(shape, entry["loc"][:-1]))) or "none"
            message = f"{task} has no such parameter; it knows: {known}"
        lines.append(f"{place}: {message}")
    if error.error_count() > ERRORS_SHOWN:
        lines.append(f"and {error.error_count() - ERRORS_SHOWN} more")
    return "; ".join(lines)


def settable(shape: type[BaseModel]) -> list[str]:
    """The parameters that somebody may want to set."""
    return [
        name
        for name, field in shape.model_fields.items()
        if not any(isinstance(each, Only) for each in field.metadata)
    ]


def _shape_at(shape: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel]:
    """The shape of the parameters that are nested at a place."""
    for name in place:
        field = shape.model_fields.get(str(name))
        inner = get_args(field.annotation) if field is not None else ()
        shapes = [each for each in inner if isinstance(each, type) and issubclass(each, BaseModel)]
        shape = shapes[0] if shapes else shape
    return shape


def model_of(job_input: HfInput, settings: HfSettings) -> str:
    """The model that the job names, or the task's default."""
    if job_input.model is not None:
        return job_input.model
    # The shape lets no input through that names neither.
    assert job_input.task is not None
    return settings.hf_models.get(job_input.task, DEFAULT_MODELS[job_input.task])


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
        if Task(input_["task"] or Task.SPEECH_RECOGNITION) in BINARY
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
    example={
        "task": "sentence-similarity",
        "inputs": {
            "source_sentence": "We open at nine.",
            "sentences": ["The shop opens at 9 o'clock.", "아홉 시에 엽니다."],
        },
    },
    check=check,
    defaults=lambda job_input, settings: {"model": model_of(job_input, settings)},
    require=_require,
    batch_key=batch_key_of,
    file_path="$.inputs.file_id",
)
