"""Sentence similarity gives the cosines that sentence-transformers gives."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.util import cos_sim
from transformers import BertConfig, BertModel, BertTokenizer

from shared.hf.sentences import SimilarityParameters
from shared.kinds.hf import Task
from tests.models.hf_tasks import OPTIONS, outputs, warnings
from tests.tiny.wordpiece import vocabulary
from tests.tiny_models import one_thread
from workers.hf.tasks import sentences
from workers.hf.tasks.sentences import SentenceSimilarity
from workers.models.locate import bundled

SIMILARITY = Task("sentence-similarity")
ENGLISH: dict[str, Any] = {
    "source_sentence": "That is a happy person",
    "sentences": [
        "That is a happy dog",
        "That is a very happy person",
        "Today is a sunny day",
        "That is a very happy person",
        "That is a happy person",
    ],
}
KOREAN: dict[str, Any] = {
    "source_sentence": "오늘은 날씨가 맑다.",
    "sentences": [
        "오늘은 하늘이 파랗다.",
        "주식 시장이 크게 내렸다.",
        "The weather is clear today.",
    ],
}
LONG: dict[str, Any] = {
    "source_sentence": "A short one.",
    "sentences": ["word " * 400, "another " * 300, "x"],
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As workers have it."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def folder() -> Path:
    folder = bundled("sentence-transformers/all-MiniLM-L6-v2")
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def true_model(folder: Path) -> SentenceSimilarity:
    return sentences.load_sentence_similarity(folder, OPTIONS)


def _cosines(model: SentenceTransformer, value: dict[str, Any]) -> list[float]:
    sentences = model.encode(value["sentences"])
    cosines: list[float] = cos_sim(model.encode([value["source_sentence"]]), sentences)[0].tolist()
    return cosines


def test_the_true_model_gives_its_known_scores(
    true_model: SentenceSimilarity, folder: Path
) -> None:
    library = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    values = [ENGLISH, KOREAN, LONG]
    for scores, value in zip(outputs(true_model, SIMILARITY, values), values, strict=True):
        assert scores == pytest.approx(_cosines(library, value), abs=1e-5)
        assert all(type(score) is float for score in scores)
    # As the model's page on the hub shows them.
    [scores] = outputs(true_model, SIMILARITY, [ENGLISH])
    assert scores[:3] == pytest.approx([0.695, 0.943, 0.257], abs=1e-3)
    assert scores[4] == pytest.approx(1)


def test_each_different_sentence_is_read_once(true_model: SentenceSimilarity) -> None:
    prepared = true_model.prepare(ENGLISH, SimilarityParameters())
    assert len(prepared.rows) == 4
    [scores] = outputs(true_model, SIMILARITY, [ENGLISH])
    assert len(scores) == 5
    assert scores[1] == scores[3]


def test_sentences_that_are_cut_are_reported(true_model: SentenceSimilarity) -> None:
    assert warnings(true_model, SIMILARITY, ENGLISH) == []
    assert warnings(true_model, SIMILARITY, LONG) == [
        "has 2 of 4 different sentences cut to 256 tokens, which is all that the model takes at "
        "once; the longest had 402."
    ]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare encoder, whose card says that it is for sentences."""
    folder = tmp_path_factory.mktemp("bert")
    words = vocabulary(ENGLISH["sentences"], size=100, lowercase=True)
    BertTokenizer(vocab=words, model_max_length=64).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    (folder / "README.md").write_text("---\npipeline_tag: sentence-similarity\n---\n")
    return folder


def test_a_bare_encoder_gets_mean_pooling_and_a_warning(bert: Path) -> None:
    task = sentences.load_sentence_similarity(bert, OPTIONS)
    pooled = SentenceTransformer(modules=[Transformer(str(bert)), Pooling(16)], device="cpu")
    [scores] = outputs(task, SIMILARITY, [ENGLISH])
    assert scores == pytest.approx(_cosines(pooled, ENGLISH), abs=1e-5)
    [warning] = warnings(task, SIMILARITY, ENGLISH)
    assert "no modules.json" in warning


def test_the_prompt_that_a_model_always_wants_is_put_first(bert: Path, tmp_path: Path) -> None:
    modules = [Transformer(str(bert)), Pooling(16)]
    SentenceTransformer(
        modules=modules,
        device="cpu",
        prompts={"same": "that is "},
        default_prompt_name="same",
        truncate_dim=9,
    ).save(str(tmp_path))
    library = SentenceTransformer(str(tmp_path), device="cpu")
    [scores] = outputs(sentences.load_sentence_similarity(tmp_path, OPTIONS), SIMILARITY, [ENGLISH])
    assert scores == pytest.approx(_cosines(library, ENGLISH), abs=1e-5)
    plain = SentenceTransformer(modules=modules, device="cpu")
    assert scores != pytest.approx(_cosines(plain, ENGLISH), abs=1e-3)
