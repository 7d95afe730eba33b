"""Feature extraction gives what sentence-transformers and transformers' pipeline give, in batches
of any company, and says what it cuts off."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
)

from shared.errors import InvalidInput
from shared.hf.sentences import FeatureParameters
from shared.kinds.hf import Task
from tests.models.hf_tasks import OPTIONS, outputs, reference_pipeline, warnings
from tests.tiny.wordpiece import vocabulary
from tests.tiny_models import one_thread
from workers.hf.tasks.sentences import SentenceFeatures, TokenFeatures, load_feature_extraction
from workers.models.locate import bundled

FEATURES = Task("feature-extraction")
TEXTS = [
    "Rivers run to the sea.",
    "강은 바다로 흐른다.",
    "A much longer text, of more tokens than the others have, to make them be padded. 🌉",
    "?",
]
LONG = "to the sea " * 60
WINDOW = 40
SIZE = 24
PROMPTS = {"query": "find: ", "passage": "text: ", "plain": ""}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As workers have it; more of them only wait for each other over models this small."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare encoder."""
    folder = tmp_path_factory.mktemp("bert")
    words = vocabulary([*TEXTS, *PROMPTS.values()], size=200, lowercase=True)
    BertTokenizer(vocab=words, model_max_length=WINDOW).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=SIZE, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=WINDOW, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def _sentence_model(bert: Path, folder: Path, **options: Any) -> Path:
    """With every kind of module that such models have, and a mean without the prompt."""
    torch.manual_seed(1)
    encoder = Transformer(str(bert))
    modules = [
        encoder,
        Pooling(SIZE, pooling_mode="mean", include_prompt=False),
        Dense(SIZE, 16),
        Normalize(),
    ]
    SentenceTransformer(modules=modules, device="cpu", **options).save(str(folder))
    return folder


@pytest.fixture(scope="module")
def sentence_folder(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentences")
    return _sentence_model(bert, folder, prompts=PROMPTS, default_prompt_name="passage")


@pytest.fixture(scope="module")
def sentences(sentence_folder: Path) -> SentenceFeatures:
    task = load_feature_extraction(sentence_folder, OPTIONS)
    assert isinstance(task, SentenceFeatures)
    return task


@pytest.fixture(scope="module")
def library(sentence_folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(sentence_folder), device="cpu")


@pytest.fixture(scope="module")
def tokens(bert: Path) -> TokenFeatures:
    task = load_feature_extraction(bert, OPTIONS)
    assert isinstance(task, TokenFeatures)
    return task


def _assert_close(actual: Any, expected: Any, *, within: float = 1e-5) -> None:
    assert np.asarray(actual).shape == np.asarray(expected).shape
    assert np.abs(np.asarray(actual) - np.asarray(expected)).max() < within


def test_the_true_model_gives_its_known_vectors() -> None:
    folder = bundled("sentence-transformers/all-MiniLM-L6-v2")
    assert folder is not None
    task = load_feature_extraction(folder, OPTIONS)
    vectors = outputs(task, FEATURES, TEXTS)
    _assert_close(vectors, SentenceTransformer(str(folder), device="cpu").encode(TEXTS))
    assert len(vectors[0]) == 384
    assert all(type(number) is float for number in vectors[0])
    json.dumps(vectors, allow_nan=False)


def test_vectors_are_those_of_the_library(
    sentences: SentenceFeatures, library: SentenceTransformer
) -> None:
    vectors = outputs(sentences, FEATURES, TEXTS)
    _assert_close(vectors, library.encode(TEXTS))
    _assert_close(np.linalg.norm(vectors, axis=1), np.ones(len(TEXTS)))


@pytest.mark.parametrize("name", list(PROMPTS))
def test_prompts_stand_before_the_text(
    sentences: SentenceFeatures, library: SentenceTransformer, name: str
) -> None:
    vectors = outputs(sentences, FEATURES, TEXTS, prompt_name=name)
    _assert_close(vectors, library.encode(TEXTS, prompt_name=name))
    usual = outputs(sentences, FEATURES, TEXTS)
    assert np.allclose(vectors, usual, atol=1e-5) == (name == "passage")


def test_an_unknown_prompt_is_reported_with_the_known_ones(
    sentences: SentenceFeatures, tokens: TokenFeatures
) -> None:
    with pytest.raises(InvalidInput, match=r"no prompt 'qeury'; it knows .*passage, plain, query"):
        outputs(sentences, FEATURES, TEXTS, prompt_name="qeury")
    with pytest.raises(InvalidInput, match="no prompt 'query': only models of sentence-transf"):
        outputs(tokens, FEATURES, TEXTS, prompt_name="query")


def test_vectors_are_of_length_one_or_not_by_parameter(
    sentences: SentenceFeatures, library: SentenceTransformer
) -> None:
    plain = outputs(sentences, FEATURES, TEXTS, normalize=False)
    lengths = np.linalg.norm(plain, axis=1)
    assert (np.abs(lengths - 1) > 0.01).all()
    _assert_close(plain / lengths[:, None], library.encode(TEXTS))
    _assert_close(outputs(sentences, FEATURES, TEXTS, normalize=True), library.encode(TEXTS))


def test_vectors_are_cut_to_dimensions(
    sentences: SentenceFeatures, library: SentenceTransformer
) -> None:
    short = outputs(sentences, FEATURES, TEXTS, dimensions=5)
    _assert_close(short, library.encode(TEXTS, truncate_dim=5))
    unit = outputs(sentences, FEATURES, TEXTS, dimensions=5, normalize=True)
    _assert_close(unit, library.encode(TEXTS, truncate_dim=5, normalize_embeddings=True))
    with pytest.raises(InvalidInput, match="dimensions is 17; the model's vectors have 16"):
        outputs(sentences, FEATURES, TEXTS, dimensions=17)


def test_a_model_that_is_meant_to_be_cut_is(bert: Path, tmp_path: Path) -> None:
    folder = _sentence_model(bert, tmp_path / "short", truncate_dim=8)
    task = load_feature_extraction(folder, OPTIONS)
    library = SentenceTransformer(str(folder), device="cpu")
    vectors = outputs(task, FEATURES, TEXTS)
    _assert_close(vectors, library.encode(TEXTS))
    assert len(vectors[0]) == 8
    assert len(outputs(task, FEATURES, TEXTS, dimensions=12)[0]) == 12


@pytest.mark.parametrize("kind", ["sentences", "tokens"])
def test_a_long_text_is_cut_with_a_warning_or_refused(
    kind: str, bert: Path, request: pytest.FixtureRequest
) -> None:
    task = request.getfixturevalue(kind)
    prompt = PROMPTS["passage"] if kind == "sentences" else ""
    size = len(BertTokenizer.from_pretrained(bert)(prompt + LONG, verbose=False)["input_ids"])
    assert warnings(task, FEATURES, TEXTS[0]) == []
    assert warnings(task, FEATURES, LONG) == [
        f"was cut from {size} to {WINDOW} tokens, which is all that the model takes at once."
    ]
    with pytest.raises(InvalidInput, match=f"has {size} tokens; the model takes {WINDOW}"):
        outputs(task, FEATURES, [LONG], truncate=False)
    assert outputs(task, FEATURES, TEXTS, truncate=False) == outputs(task, FEATURES, TEXTS)


@pytest.mark.parametrize("kind", ["sentences", "tokens"])
def test_a_long_text_is_cut_on_the_side_of_the_parameter(
    kind: str, request: pytest.FixtureRequest
) -> None:
    task = request.getfixturevalue(kind)
    options = {"prompt_name": "plain"} if kind == "sentences" else {}
    beginning, end = "rivers " * 60, LONG
    for side, part in (("right", beginning), ("left", end), ("right", beginning)):
        cut, alone = outputs(
            task, FEATURES, [beginning + end, part], truncation_direction=side, **options
        )
        _assert_close(cut, alone)
    right, left = (
        outputs(task, FEATURES, [beginning + end], truncation_direction=side)[0]
        for side in ("right", "left")
    )
    assert np.abs(np.asarray(right) - np.asarray(left)).max() > 0.01


def test_tokens_have_the_vectors_of_the_pipeline(tokens: TokenFeatures) -> None:
    extract = reference_pipeline(
        "feature-extraction", model=tokens.model, tokenizer=tokens.tokenizer
    )
    for vectors, text in zip(outputs(tokens, FEATURES, TEXTS), TEXTS, strict=True):
        _assert_close(vectors, extract(text))
        assert np.asarray(vectors).shape == (1, len(tokens.tokenizer(text)["input_ids"]), SIZE)
    [[unit]] = outputs(tokens, FEATURES, TEXTS[:1], normalize=True, dimensions=7)
    assert np.asarray(unit).shape[1] == 7
    _assert_close(np.linalg.norm(unit, axis=1), np.ones(len(unit)))
    with pytest.raises(InvalidInput, match="dimensions is 25; the model's vectors have 24"):
        outputs(tokens, FEATURES, TEXTS, dimensions=25)


def test_rows_that_are_cut_or_prompted_otherwise_share_no_batch(
    sentences: SentenceFeatures,
) -> None:
    variants = [
        FeatureParameters(),
        FeatureParameters(truncation_direction="left"),
        FeatureParameters(prompt_name="query"),
        FeatureParameters(prompt_name="passage", normalize=True, dimensions=3),
    ]
    groups = [sentences.prepare("a", parameters).rows[0].group for parameters in variants]
    assert groups[0] == groups[3]
    assert len(set(groups)) == 3


def test_company_does_not_matter(sentences: SentenceFeatures, tokens: TokenFeatures) -> None:
    for task in (sentences, tokens):
        together = outputs(task, FEATURES, TEXTS)
        for vectors, text in zip(together, TEXTS, strict=True):
            _assert_close(outputs(task, FEATURES, [text])[0], vectors)


def test_vectors_are_of_length_one_in_short_numbers_too(sentence_folder: Path) -> None:
    task = load_feature_extraction(sentence_folder, replace(OPTIONS, dtype=torch.bfloat16))
    vectors = outputs(task, FEATURES, TEXTS)
    _assert_close(np.linalg.norm(vectors, axis=1), np.ones(len(TEXTS)))
    _assert_close(
        vectors,
        outputs(load_feature_extraction(sentence_folder, OPTIONS), FEATURES, TEXTS),
        within=0.1,
    )


def test_static_vectors_take_texts_of_any_length(bert: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    static = StaticEmbedding(Tokenizer.from_file(str(bert / "tokenizer.json")), embedding_dim=8)
    SentenceTransformer(modules=[static], device="cpu").save(str(tmp_path))
    task = load_feature_extraction(tmp_path, OPTIONS)
    library = SentenceTransformer(str(tmp_path), device="cpu")
    texts = [*TEXTS, LONG]
    _assert_close(outputs(task, FEATURES, texts), library.encode(texts))
    assert warnings(task, FEATURES, LONG) == []
