"""Tasks that choose labels: for texts, from the caller's own labels, for images."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.bounds import FullLine, Line
from shared.hf.task import (
    Checkpoints,
    FileInput,
    HfTask,
    HubCall,
    TableOutput,
    TableRow,
    TaskParameters,
    TextInput,
    TopK,
    in_a_list,
    score_cell,
)

Function = Literal["sigmoid", "softmax", "none"]


class ClassificationParameters(TaskParameters):
    """`top_k` None gives every label, best first."""

    top_k: TopK | None = None
    function_to_apply: Function | None = None


class ImageClassificationParameters(TaskParameters):
    top_k: TopK = 5
    function_to_apply: Function | None = None


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
    def _template_has_braces(self) -> "ZeroShotParameters":
        if "{}" not in self.hypothesis_template:
            raise ValueError("hypothesis_template needs the place {} for the label")
        return self


def _labels(output: Any, _: Sequence[str]) -> Iterator[TableRow]:
    for item in output:
        yield score_cell(item["score"]), item["label"]


LABELS = TableOutput(columns=("score", "label"), rows=_labels)
LABELS_CALL = HubCall(keys=frozenset({"label", "score"}))
CLASSIFIER = "ForSequenceClassification"


def count_labels(config: Mapping[str, Any]) -> int:
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)


def _entails(_architecture: str, config: Mapping[str, Any]) -> int | None:
    """Labels that say whether one sentence follows from another can stand for any labels."""
    by_number = config.get("id2label")
    names = [*(by_number.values() if isinstance(by_number, dict) else ())]
    names += config.get("label2id") or {}
    is_nli = any(str(name).lower().startswith("entail") for name in names)
    return 1 if is_nli and count_labels(config) != 1 else None


TEXT_CLASSIFICATION = HfTask(
    name="text-classification",
    default_model="distilbert/distilbert-base-uncased-finetuned-sst-2-english",
    input=TextInput(),
    parameters=ClassificationParameters,
    output=LABELS,
    load="workers.hf.tasks.classification:load_text_classification",
    checkpoints=Checkpoints(architectures=[CLASSIFIER]),
    hub=LABELS_CALL,
    example={"inputs": "I like it.", "parameters": {"top_k": 1}},
    example_output=[{"label": "POSITIVE", "score": 0.99}],
    takes="a text",
    returns='`[[{"label", "score"}, …]]`, best first',
    alone=in_a_list,
)

ZERO_SHOT_CLASSIFICATION = HfTask(
    name="zero-shot-classification",
    default_model="facebook/bart-large-mnli",
    input=TextInput(),
    parameters=ZeroShotParameters,
    output=LABELS,
    load="workers.hf.tasks.classification:load_zero_shot_classification",
    checkpoints=Checkpoints(architectures=[CLASSIFIER], rank=_entails),
    hub=LABELS_CALL,
    example={
        "inputs": "The match ended in a draw.",
        "parameters": {"candidate_labels": ["sports", "politics"]},
    },
    example_output=[{"label": "sports", "score": 0.98}, {"label": "politics", "score": 0.02}],
    takes="a text, and `candidate_labels` in `parameters`",
    returns='`[{"label", "score"}, …]`, best first',
)

IMAGE_CLASSIFICATION = HfTask(
    name="image-classification",
    default_model="google/vit-base-patch16-224",
    input=FileInput("image"),
    parameters=ImageClassificationParameters,
    output=LABELS,
    load="workers.hf.tasks.classification:load_image_classification",
    checkpoints=Checkpoints(
        architectures=["ForImageClassification", "ForImageClassificationWithTeacher"]
    ),
    hub=LABELS_CALL,
    example={"inputs": "iVBORw0KGgo=", "parameters": {"top_k": 1}},
    example_output=[{"label": "tabby cat", "score": 0.91}],
    takes="an image",
    returns='`[{"label", "score"}, …]`, best first',
)
