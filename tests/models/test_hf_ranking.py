"""Text ranking gives what sentence-transformers' cross-encoders give, and says what it cuts off."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sentence_transformers import CrossEncoder

from shared.errors import Permanent, WrongTask
from shared.kinds.hf import Task
from tests.models.hf_tasks import OPTIONS, assert_same, outputs, warnings
from tests.tiny import crossencoder, distilbert
from tests.tiny_models import one_thread
from workers.hf.tasks import sentences
from workers.hf.tasks.sentences import TextRanking

RANK = Task("text-ranking")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As workers have it; more of them only wait for each other over models this small."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def ranker() -> TextRanking:
    return sentences.load_text_ranking(crossencoder.folder(), OPTIONS)


def test_the_answer_to_each_query_ranks_first(ranker: TextRanking) -> None:
    texts = list(crossencoder.ANSWERS.values())
    values = [{"query": query, "texts": texts} for query in crossencoder.ANSWERS]
    for n, ranked in enumerate(outputs(ranker, RANK, values, return_text=True)):
        assert ranked[0]["index"] == n
        assert ranked[0]["score"] > 0.9 > 0.1 > ranked[1]["score"]
        assert ranked[0]["text"] == texts[n]
        assert [hit["score"] for hit in ranked] == sorted(
            (hit["score"] for hit in ranked), reverse=True
        )
    assert len(outputs(ranker, RANK, values[:1], top_k=2)[0]) == 2


@pytest.mark.parametrize("length", [1, 200])
def test_ranks_are_those_of_sentence_transformers(ranker: TextRanking, length: int) -> None:
    reference = CrossEncoder(str(crossencoder.folder()), device="cpu")
    texts = [*crossencoder.ANSWERS.values(), "no answer to anything", "words " * length]
    for query in ["How many people live in Berlin?", "museums " * length]:
        value = {"query": query, "texts": texts}
        expected = [
            {"index": hit["corpus_id"], "score": hit["score"]}
            for hit in reference.rank(query, texts)
        ]
        assert_same(outputs(ranker, RANK, [value])[0], expected)
        [raw] = outputs(ranker, RANK, [value], raw_scores=True)
        logits = reference.predict(
            [(query, text) for text in texts], activation_fn=torch.nn.Identity()
        )
        assert_same([hit["score"] for hit in raw], sorted(map(float, logits), reverse=True))


def test_pairs_that_are_cut_are_reported_once(ranker: TextRanking) -> None:
    value = {"query": "What is Berlin known for?", "texts": ["a " * 500, "short", "b " * 200]}
    [warning] = warnings(ranker, RANK, value)
    assert warning.startswith("has 2 of 3 texts that were cut, with the query, to 128 tokens")
    assert "(texts.0) from " in warning


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid(), torch.nn.Tanh()])
@pytest.mark.parametrize("prompt", [None, "museums: "])
def test_what_the_model_was_saved_with_counts(
    tmp_path: Path, activation: torch.nn.Module, prompt: str | None
) -> None:
    reference = CrossEncoder(str(crossencoder.folder()), device="cpu", activation_fn=activation)
    if prompt:
        reference.prompts = {"usual": prompt}
        reference.default_prompt_name = "usual"
    reference.save_pretrained(str(tmp_path), create_model_card=False)
    texts = list(crossencoder.ANSWERS.values())
    [answer] = outputs(
        sentences.load_text_ranking(tmp_path, OPTIONS), RANK, [{"query": "Berlin?", "texts": texts}]
    )
    expected = reference.rank("Berlin?", texts)
    assert_same([hit["score"] for hit in answer], [hit["score"] for hit in expected])


def test_an_activation_of_the_models_own_is_not_run(tmp_path: Path) -> None:
    reference = CrossEncoder(str(crossencoder.folder()), device="cpu")
    reference.save_pretrained(str(tmp_path), create_model_card=False)
    saved = tmp_path / sentences.SAVED_WITH
    saved.write_text(saved.read_text().replace("torch.nn.modules.activation.Sigmoid", "os.abort"))
    with pytest.raises(Permanent, match=r"os\.abort"):
        sentences.load_text_ranking(tmp_path, OPTIONS)


def test_a_model_of_many_labels_does_not_rank() -> None:
    with pytest.raises(WrongTask, match="text-ranking"):
        sentences.load_text_ranking(distilbert.folder(), OPTIONS)
