"""The real model: its vectors against plain SentenceTransformer, its batches, its errors."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import Cancelled, InvalidInput, Permanent
from tests.integration.job_runner import embedders
from workers.models.devices import Vectors, unit_of_model
from workers.models.locate import bundled
from workers.retrieval.embed import Embedder, Embedders
from workers.retrieval.embedders.local import LocalEmbedder

PAIRS = [
    ("A man is eating food.", "A man is eating a piece of bread."),
    ("The new movie is awesome.", "The new film is so great."),
    ("When does the museum open?", "The museum opens at ten in the morning."),
    ("The cat sits outside.", "The stock market fell by two percent."),
    ("부산행 기차는 아홉 시에 출발한다.", "기차는 아홉 시에 부산으로 떠난다."),
]
TEXTS = [text for pair in PAIRS for text in pair]


@cache
def plain() -> SentenceTransformer:
    """What everyone uses, in float32."""
    return SentenceTransformer(
        str(bundled(DEFAULT_EMBEDDING_MODEL)), device="cpu", model_kwargs={"dtype": torch.float32}
    )


def encode(texts: list[str], embedder: Embedder | None = None) -> Vectors:
    return (embedder or embedders().get()).encode(texts, between=lambda: None)


def with_settings(**changes: Any) -> LocalEmbedder:
    embedder = Embedders(Settings(_env_file=None, **changes)).get()
    assert isinstance(embedder, LocalEmbedder)
    return embedder


def test_vectors_are_those_of_the_plain_model() -> None:
    ours, theirs = encode(TEXTS), plain().encode(TEXTS, normalize_embeddings=True)

    assert ours.dtype == np.float32
    assert ours.shape == (len(TEXTS), 384)
    assert (ours * theirs).sum(axis=1) == pytest.approx(np.ones(len(TEXTS)), abs=1e-2)


def test_scores_of_pairs_are_those_of_the_plain_model_and_mean_something() -> None:
    ours, theirs = encode(TEXTS), plain().encode(TEXTS, normalize_embeddings=True)

    scores = (ours[::2] * ours[1::2]).sum(axis=1)
    assert scores == pytest.approx((theirs[::2] * theirs[1::2]).sum(axis=1), abs=1e-2)
    assert min(scores[:3]) > 0.6 > 0.2 > scores[3]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_vector_has_length_one(dtype: str) -> None:
    # Some processors compute bfloat16 a hundred times slower than float32.
    texts = ["A man is eating.", "기차", " ", "x", "word " * 40]
    vectors = encode(texts, with_settings(embedding_dtype=dtype))

    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)), abs=1e-5)


def test_a_text_has_its_vector_whatever_it_is_sent_with() -> None:
    """Batches are made by length; the answer is in the order of the question."""
    chance = random.Random(1)
    texts = [
        " ".join(chance.choices(["apple", "sea", "train", "고양이", "year"], k=n % 40 + 1))
        for n in range(120)
    ]
    chance.shuffle(texts)
    small = with_settings(embedding_batch_tokens=256, embedding_dtype="float32")

    together = encode(texts, small)

    theirs = plain().encode(texts, normalize_embeddings=True)
    assert (together * theirs).sum(axis=1) == pytest.approx(np.ones(120), abs=1e-4)


@pytest.mark.parametrize(
    ("odd", "text"),
    [
        ("Ｔｈｅ ｇａｔｅ ｏｐｅｎｓ ａｔ ９", "The gate opens at 9"),
        ("㈜한빛 ①번 ㎏ ﬁle", "(주)한빛 1번 kg file"),
        ("THE GATE", "the gate"),
    ],
)
def test_width_and_case_make_no_difference(odd: str, text: str) -> None:
    """To the vocabulary of this model letters in full width are unknown."""
    long = " ".join([odd] * 300)
    for encode in (embedders().get().encode, embedders().get().encode_queries):
        assert (encode([odd], between=lambda: None) == encode([text], between=lambda: None)).all()
    counts = embedders().get().overlong([long], between=lambda: None)
    same = embedders().get().overlong([long.replace(odd, text)], between=lambda: None)
    assert counts == same != {}


@pytest.mark.parametrize("word", ["year", "고양이는", "naïve"])
def test_batches_hold_every_text_once_and_keep_to_the_budget(word: str) -> None:
    budget = 1024
    embedder = with_settings(embedding_batch_tokens=budget)
    texts = [" ".join([word] * (n % 60 + 1)) for n in range(200)]

    batches = list(embedder.batches(texts))
    tokenizer = embedder.tokenizer
    assert tokenizer is not None

    assert sorted(n for batch in batches for n in batch) == list(range(200))
    assert len(batches) > 1
    for batch in batches:
        longest = max(min(256, len(tokenizer.encode(texts[n]).ids)) for n in batch)
        assert len(batch) == 1 or longest * len(batch) <= budget


def test_one_text_above_the_budget_is_a_batch_of_its_own() -> None:
    embedder = with_settings(embedding_batch_tokens=1)

    assert list(embedder.batches(["a", "b"])) == [[0], [1]]


def test_nothing_gives_nothing() -> None:
    assert encode([]).shape == (0, 384)


def test_it_can_be_stopped_between_two_batches() -> None:
    calls: list[None] = []

    def between() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        with_settings(embedding_batch_tokens=1).encode(["a"] * 9, between=between)
    assert len(calls) == 3


def test_the_tokenizer_neither_truncates_nor_pads() -> None:
    tokenizer = with_settings().tokenizer
    assert tokenizer is not None

    assert len(tokenizer.encode("word " * 1000).ids) == 1002
    assert len(tokenizer.encode("word").ids) == 3


def test_a_model_is_loaded_once_and_only_the_last_ones_are_kept() -> None:
    folder = bundled(DEFAULT_EMBEDDING_MODEL)
    assert folder is not None
    kept = Embedders(Settings(_env_file=None, models_extra_folders=(folder.parent,)))

    first = kept.get()

    assert kept.get(DEFAULT_EMBEDDING_MODEL) is first
    assert kept.get(str(folder)) is not first
    assert kept.get() is first
    kept.get(f"{folder}/.")  # a third name, for which the least recently used goes
    assert kept.get() is first


def put(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_model_that_cannot_be_loaded_names_the_setting_that_names_it(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path, embedding_model=str(tmp_path / "broken"))
    put(tmp_path / "broken", **{"config.json": "{}"})
    put(tmp_path / "models" / "own" / "broken", **{"config.json": "{}"})
    kept = Embedders(settings)

    with pytest.raises(Permanent, match="SLUICE_EMBEDDING_MODEL"):
        kept.get()
    with pytest.raises(Permanent, match=f"{tmp_path}/models/own/broken anew") as caught:
        kept.get("own/broken")
    assert "SLUICE_EMBEDDING_MODEL" not in caught.value.message


@pytest.mark.parametrize("name", ["/etc", "~root", "../..", "./x", "file:///etc", "/no/such"])
def test_no_folder_outside_of_those_of_models_is_looked_at(tmp_path: Path, name: str) -> None:
    kept = Embedders(Settings(_env_file=None, home=tmp_path))
    with pytest.raises(InvalidInput, match=r"no name of a model: .*SLUICE_MODELS_EXTRA_FOLDERS"):
        kept.get(name)


def test_a_model_may_lie_below_the_folder_of_models(tmp_path: Path) -> None:
    folder = bundled(DEFAULT_EMBEDDING_MODEL)
    assert folder is not None
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "model").symlink_to(folder)
    settings = Settings(
        _env_file=None, models_folder=tmp_path, models_extra_folders=(folder.parent,)
    )
    assert Embedders(settings).get("own/model").dimension == 384


def test_a_model_that_is_too_large_is_refused(tmp_path: Path) -> None:
    folder = put(tmp_path / "models" / "own" / "large", **{"config.json": "{}"})
    with (folder / "model.safetensors").open("wb") as weights:
        weights.truncate(3 * 2**20)
    kept = Embedders(Settings(_env_file=None, home=tmp_path, embedding_model_limit_mib=2))
    with pytest.raises(Permanent, match=r"take 3 MiB.*2 MiB \(SLUICE_EMBEDDING_MODEL_LIMIT_MIB\)"):
        kept.get("own/large")


def test_vectors_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(Permanent, match=r"a broken one returned NaN .* SLUICE_EMBEDDING_DTYPE"):
        unit_of_model(np.array([[0.5, float("nan")]], dtype=np.float32), "a broken one")
