"""Tasks that say something of single tokens of a text: which names they are part of, which ones a
mask stands for."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from shared.bounds import Count, Line
from shared.hf.task import (
    Checkpoints,
    HfTask,
    HubCall,
    TableOutput,
    TableRow,
    TaskParameters,
    TextInput,
    TopK,
    score_cell,
)


class TokenClassificationParameters(TaskParameters):
    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = "simple"
    ignore_labels: Annotated[list[Line], Field(fail_fast=True, max_length=10_000)] = Field(
        default=["O"]
    )
    stride: Count = 0


class FillMaskParameters(TaskParameters):
    top_k: TopK = 5
    targets: Annotated[list[Line], Field(fail_fast=True, max_length=10_000)] | None = None


def _entities(output: Any, _: Sequence[str]) -> Iterator[TableRow]:
    for item in output:
        name = item.get("entity_group") or item["entity"]
        yield name, score_cell(item["score"]), item["start"], item["end"], item["word"]


def _fillings(output: Any, _: Sequence[str]) -> Iterator[TableRow]:
    """With several masks there is a list for each."""
    masks = output if output and isinstance(output[0], list) else [output]
    for mask, items in enumerate(masks, start=1):
        for item in items:
            yield mask, score_cell(item["score"]), item["token_str"].strip(), item["sequence"]


TOKEN_CLASSIFICATION = HfTask(
    name="token-classification",
    default_model="dslim/bert-base-NER",
    input=TextInput(),
    parameters=TokenClassificationParameters,
    output=TableOutput(columns=("entity", "score", "start", "end", "word"), rows=_entities),
    load="workers.hf.tasks.tokens:load_token_classification",
    checkpoints=Checkpoints(architectures=["ForTokenClassification"]),
    hub=HubCall(keys=frozenset({"word", "score", "start", "end"})),
    example={"inputs": "Ann moved."},
    example_output=[
        {"entity_group": "PER", "score": 0.99, "word": "Ann", "start": 0, "end": 3},
    ],
    takes="a text",
    returns='`[{"entity_group", "score", "word", "start", "end"}, …]`',
)

FILL_MASK = HfTask(
    name="fill-mask",
    default_model="google-bert/bert-base-uncased",
    input=TextInput(),
    parameters=FillMaskParameters,
    output=TableOutput(
        columns=("mask", "score", "token", "sequence"), rows=_fillings, wide_column="sequence"
    ),
    load="workers.hf.tasks.tokens:load_fill_mask",
    checkpoints=Checkpoints(architectures=["ForMaskedLM", "BertForPreTraining"]),
    hub=HubCall(keys=frozenset({"sequence", "score", "token", "token_str"})),
    example={"inputs": "Paris is the [MASK] of France.", "parameters": {"top_k": 1}},
    example_output=[
        {
            "score": 0.99,
            "token": 3007,
            "token_str": "capital",
            "sequence": "paris is the capital of france.",
        }
    ],
    takes="a text with the model's mask",
    returns='`[{"score", "token", "token_str", "sequence"}, …]`',
)
