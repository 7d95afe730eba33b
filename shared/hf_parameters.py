"""The `parameters` of each Hugging Face task: names, types and defaults of the inference API.

An unknown parameter is an error that lists the known ones: a misspelt one must not be ignored.
Parameters of generation are those of transformers' `GenerationConfig`; `None` leaves what the
model's own configuration says.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from shared.errors import InvalidInput
from shared.hf import Task

TopK = Annotated[int, Field(ge=1, le=10_000)]
Truncation = Literal["do_not_truncate", "longest_first", "only_first", "only_second"]


class TaskParameters(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClassificationParameters(TaskParameters):
    """`top_k` None gives every label, best first."""

    top_k: TopK | None = None
    function_to_apply: Literal["sigmoid", "softmax", "none"] | None = None


class ZeroShotParameters(TaskParameters):
    candidate_labels: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1000)
    ]
    hypothesis_template: str = "This example is {}."
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
    ignore_labels: list[str] = ["O"]
    stride: Annotated[int, Field(ge=0)] = 0


class FillMaskParameters(TaskParameters):
    top_k: TopK = 5
    targets: list[str] | None = None


class FeatureParameters(TaskParameters):
    """`truncate` False makes a text that is too long an error."""

    normalize: bool | None = None
    prompt_name: str | None = None
    truncate: bool = True
    truncation_direction: Literal["left", "right"] = "right"
    dimensions: Annotated[int, Field(ge=1)] | None = None
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
    doc_stride: Annotated[int, Field(ge=1)] = 128
    max_answer_len: Annotated[int, Field(ge=1)] = 15
    max_seq_len: Annotated[int, Field(ge=8)] = 384
    max_question_len: Annotated[int, Field(ge=1)] = 64
    handle_impossible_answer: bool = False
    align_to_words: bool = True


class GenerationParameters(TaskParameters):
    """What a caller may ask of `generate`; `max_new_tokens` goes before `max_length`."""

    max_length: Annotated[int, Field(ge=1, le=32_768)] | None = None
    min_length: Annotated[int, Field(ge=0, le=32_768)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=32_768)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=64)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] | None = None
    early_stopping: bool | Literal["never"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class Seq2SeqParameters(GenerationParameters):
    """`truncation: do_not_truncate` makes a text that is too long an error."""

    clean_up_tokenization_spaces: bool | None = None
    truncation: Truncation | None = None
    generate_parameters: GenerationParameters | None = None


class TranslationParameters(Seq2SeqParameters):
    src_lang: str | None = None
    tgt_lang: str | None = None


class TextGenerationParameters(GenerationParameters):
    return_full_text: bool = True
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)] = []
    truncate: Annotated[int, Field(ge=1)] | None = None
    watermark: Literal[False] | None = None
    details: Literal[False] | None = None
    stream: Literal[False] | None = None
    num_return_sequences: Annotated[int, Field(ge=1, le=64)] | None = None


class SpeechParameters(TaskParameters):
    """`return_timestamps` True gives segments (Whisper) or words (CTC)."""

    return_timestamps: bool | Literal["word", "char"] = False
    language: str | None = None
    task: Literal["transcribe", "translate"] | None = None
    chunk_length_s: Annotated[float, Field(gt=0, le=300)] | None = None
    generate_kwargs: GenerationParameters | None = None
    generation_parameters: GenerationParameters | None = None


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


def parse_parameters(task: Task, given: dict[str, Any]) -> TaskParameters:
    """Raises InvalidInput, which names each wrong parameter; a null stands for the default."""
    shape = PARAMETERS[task]
    try:
        return shape.model_validate({k: v for k, v in given.items() if v is not None})
    except ValidationError as error:
        raise InvalidInput(_told(task, shape, error)) from None


def _told(task: Task, shape: type[TaskParameters], error: ValidationError) -> str:
    lines = []
    for entry in error.errors(include_input=False, include_url=False):
        place = ".".join(str(part) for part in ("parameters", *entry["loc"]))
        message = entry["msg"].removeprefix("Value error, ")
        if entry["type"] == "extra_forbidden":
            known = ", ".join(shape.model_fields) or "none"
            message = f"{task} has no such parameter; it knows: {known}"
        lines.append(f"{place}: {message}")
    return "; ".join(lines)
