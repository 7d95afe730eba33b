"""Tasks that compare texts: by their vectors, or by what a cross-encoder says of a pair."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from shared.bounds import Line, Natural
from shared.hf.classification import CLASSIFIER, count_labels
from shared.hf.task import (
    CallArguments,
    Checkpoints,
    HfTask,
    HubCall,
    OneToManyInput,
    ParameterValues,
    TableOutput,
    TableRow,
    TaskParameters,
    TextInput,
    TopK,
    UnexpectedAnswer,
    check_list,
    score_cell,
)

_SHOWN_NUMBERS = 4


class SimilarityParameters(TaskParameters):
    pass


class FeatureParameters(TaskParameters):
    """`truncate` False makes a text that is too long an error."""

    normalize: bool | None = None
    prompt_name: Line | None = None
    truncate: bool = True
    truncation_direction: Literal["left", "right"] = "right"
    dimensions: Natural | None = None
    encoding_format: Literal["float"] | None = None


class RankingParameters(TaskParameters):
    """`raw_scores` gives logits instead of what the model's activation makes of them."""

    top_k: TopK | None = None
    raw_scores: bool = False
    return_text: bool = False


def _similarities(output: Any, sentences: Sequence[str]) -> Iterator[TableRow]:
    for score, sentence in zip(output, sentences, strict=True):
        yield score_cell(score), sentence


def _vectors(output: Any, _: Sequence[str]) -> Iterator[TableRow]:
    rows = output if isinstance(output[0], list) else [output]
    size = f"{len(rows)} × {len(rows[0])}" if rows is output else f"{len(output)}"
    shown = ", ".join(f"{number:.4f}" for number in rows[0][:_SHOWN_NUMBERS])
    yield size, shown + (", …" if len(rows[0]) > _SHOWN_NUMBERS or len(rows) > 1 else "")


def _ranks(output: Any, texts: Sequence[str]) -> Iterator[TableRow]:
    for item in output:
        yield score_cell(item["score"]), item["index"], texts[item["index"]]


def _sentences(value: Any, _parameters: ParameterValues) -> CallArguments:
    return (value["source_sentence"], value["sentences"]), {}


def _scores(answer: Any, value: Any, _parameters: ParameterValues) -> Any:
    if not isinstance(answer, list) or len(answer) != len(value["sentences"]):
        raise UnexpectedAnswer("it has not a score for each sentence.")
    if not all(isinstance(score, int | float) for score in answer):
        raise UnexpectedAnswer("its scores are no numbers.")
    return answer


def _vector(answer: Any, _value: Any, _parameters: ParameterValues) -> Any:
    """Some servers answer with a batch of one."""
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], list):
        answer = answer[0]
    if not isinstance(answer, list) or not answer:
        raise UnexpectedAnswer("it is no vector.")
    return answer


def _ranked(answer: Any, value: Any, parameters: ParameterValues) -> Any:
    ranks = check_list(answer, value, parameters)
    return sorted(ranks, key=lambda rank: float(rank["score"]), reverse=True)


def _scores_pairs(_architecture: str, config: Mapping[str, Any]) -> int | None:
    """One label is a score, such as of how well a text answers a query."""
    return -1 if count_labels(config) == 1 else None


SENTENCE_SIMILARITY = HfTask(
    name="sentence-similarity",
    default_model="sentence-transformers/all-MiniLM-L6-v2",
    input=OneToManyInput("source_sentence", "sentences"),
    parameters=SimilarityParameters,
    output=TableOutput(columns=("score", "sentence"), rows=_similarities, wide_column="sentence"),
    load="workers.hf.tasks.sentences:load_sentence_similarity",
    checkpoints=Checkpoints(are_for_sentences=True),
    hub=HubCall(arguments=_sentences, settle=_scores),
    example={
        "inputs": {
            "source_sentence": "We open at nine.",
            "sentences": ["The shop opens at 9 o'clock.", "아홉 시에 엽니다."],
        }
    },
    example_output=[0.81, 0.22],
    takes='`{"source_sentence", "sentences"}`',
    returns="a score for each sentence",
)

FEATURE_EXTRACTION = HfTask(
    name="feature-extraction",
    default_model="sentence-transformers/all-MiniLM-L6-v2",
    input=TextInput(),
    parameters=FeatureParameters,
    output=TableOutput(columns=("numbers", "vector"), rows=_vectors),
    load="workers.hf.tasks.sentences:load_feature_extraction",
    checkpoints=Checkpoints(
        architectures=["ForMaskedLM", "BertForPreTraining", "Model"], are_for_sentences=True
    ),
    hub=HubCall(settle=_vector),
    example={"inputs": "We open at nine.", "parameters": {"normalize": True}},
    example_output=[0.6, 0.8],
    takes="a text",
    returns="a vector; of models that are not for sentences, a vector for each token",
)

TEXT_RANKING = HfTask(
    name="text-ranking",
    default_model="cross-encoder/ms-marco-MiniLM-L6-v2",
    input=OneToManyInput("query", "texts"),
    parameters=RankingParameters,
    output=TableOutput(columns=("score", "index", "text"), rows=_ranks, wide_column="text"),
    load="workers.hf.tasks.sentences:load_text_ranking",
    checkpoints=Checkpoints(architectures=[CLASSIFIER], rank=_scores_pairs),
    hub=HubCall(keys=frozenset({"index", "score"}), arguments=None, settle=_ranked),
    example={
        "inputs": {"query": "When do you open?", "texts": ["We open at nine.", "Tea is hot."]}
    },
    example_output=[{"index": 0, "score": 0.97}, {"index": 1, "score": 0.01}],
    takes='`{"query", "texts"}`',
    returns='`[{"index", "score"}, …]`, best first',
)
