"""ONNX models by fastembed: a folder of one's own, models of its list, and what is not there."""

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest

from shared.config import Settings
from shared.errors import InvalidInput, ModelNotFound, Permanent
from tests.tiny.onnx_bert import HIDDEN, WINDOW_TOKENS, save_bert
from workers.retrieval.embed import Embedders

LISTED = "fastembed/BAAI/bge-small-en-v1.5"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    save_bert(folder / "own" / "tiny")
    return folder


def embedders(models: Path, **changes: Any) -> Embedders:
    return Embedders(Settings(_env_file=None, models_folder=models, **changes))


def test_a_folder_of_ones_own(models: Path) -> None:
    embedder = embedders(models).get("fastembed/own/tiny")
    assert (embedder.dimension, embedder.window) == (HIDDEN, WINDOW_TOKENS)
    assert embedder.tokenizer is not None
    assert embedder.tokenizer.encode("cat").offsets
    cats = embedder.encode(["A cat sleeps."], between=lambda: None)
    again = embedder.encode_queries(["A cat sleeps."], between=lambda: None)
    assert cats == pytest.approx(again, abs=1e-6)
    assert embedder.sizes(["cat"], is_query=False, between=lambda: None)[0] >= 3


def test_a_folder_of_a_listed_model_is_used_without_a_hub(tmp_path: Path) -> None:
    save_bert(tmp_path / "BAAI" / "bge-small-en-v1.5")
    embedder = embedders(tmp_path).get(LISTED)
    assert embedder.dimension == HIDDEN
    queries = embedder.encode_queries(["a cat"], between=lambda: None)
    passages = embedder.encode(["a cat"], between=lambda: None)
    assert not np.allclose(queries, passages), "its queries have a prompt"


def test_a_prompt_of_a_setting(models: Path) -> None:
    prompts = '{"fastembed/own/tiny": {"query": "word "}}'
    embedder = embedders(models, embedding_prompts=prompts).get("fastembed/own/tiny")
    asked = embedder.encode_queries(["cat"], between=lambda: None)
    assert asked == pytest.approx(embedder.encode(["word cat"], between=lambda: None), abs=1e-6)


def test_a_model_of_the_list_where_there_is_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelNotFound, match="SLUICE_MODELS_FOLDER"):
        embedders(tmp_path).get(LISTED)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE"):
        embedders(tmp_path).get(LISTED)


def test_a_model_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="fastembed has no model 'own/unknown'"):
        embedders(tmp_path).get("fastembed/own/unknown")
    with pytest.raises(InvalidInput, match="no name of a model"):
        embedders(tmp_path).get("fastembed//etc")


def test_a_folder_without_an_onnx_model(tmp_path: Path) -> None:
    save_bert(tmp_path / "own" / "empty")
    (tmp_path / "own" / "empty" / "model.onnx").unlink()
    with pytest.raises(ModelNotFound, match="holds no ONNX model"):
        embedders(tmp_path).get("fastembed/own/empty")


def test_a_damaged_model_says_what_to_do(tmp_path: Path) -> None:
    save_bert(tmp_path / "own" / "damaged")
    (tmp_path / "own" / "damaged" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(Permanent, match="Put all its files into"):
        embedders(tmp_path).get("fastembed/own/damaged")
