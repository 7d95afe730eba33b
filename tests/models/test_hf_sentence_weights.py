"""Loading models of the library sentence-transformers, which are made of modules."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import Permanent, WrongTask
from shared.kinds.hf import Task
from tests.models.checkpoints import (
    HIDDEN,
    OPTIONS,
    Touch,
    as_pickle,
    make_sentence_transformer,
    save,
)
from workers.models.load import load_sentence_transformer
from workers.models.locate import locate

POOLING = ("sentence_transformers.models.Pooling", "1_Pooling")
DENSE = ("sentence_transformers.models.Dense", "2_Dense")


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """An encoder, pooling, and a layer behind it."""
    folder = save(tmp_path / "sentences", "encoder")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": HIDDEN, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "2_Dense").mkdir()
    dense = {
        "in_features": HIDDEN,
        "out_features": 4,
        "bias": True,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    (folder / "2_Dense" / "config.json").write_text(json.dumps(dense))
    layer = torch.nn.Linear(HIDDEN, 4)
    tensors = {f"linear.{name}": parameter.detach() for name, parameter in layer.named_parameters()}
    save_file(tensors, folder / "2_Dense" / "model.safetensors")
    return make_sentence_transformer(folder, POOLING, DENSE)


def test_a_sentence_model_loads(sentences: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = load_sentence_transformer(sentences, OPTIONS)
    assert model.encode("rivers run to the sea", show_progress_bar=False).shape == (4,)
    assert capfd.readouterr() == ("", "")


def test_a_sentence_model_is_of_one_type(sentences: Path) -> None:
    model = load_sentence_transformer(sentences, replace(OPTIONS, dtype=torch.bfloat16))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.encode("rivers", show_progress_bar=False, convert_to_tensor=True).shape == (4,)


def test_code_in_a_module_is_not_run(sentences: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    (sentences / "2_Dense" / "model.safetensors").unlink()
    torch.save({"linear.weight": Touch(touched)}, sentences / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(Permanent, match="contains code"):
        load_sentence_transformer(sentences, OPTIONS)
    assert not touched.exists()


def test_a_module_from_elsewhere_is_refused(sentences: Path) -> None:
    make_sentence_transformer(sentences, ("own.Own", ""))
    (sentences / "own.py").write_text("raise SystemExit('was run')\n")
    with pytest.raises(Permanent, match="SLUICE_HF_TRUST_REMOTE_CODE"):
        load_sentence_transformer(sentences, OPTIONS)


def test_a_sentence_model_without_weights_is_reported(sentences: Path) -> None:
    (sentences / "model.safetensors").rename(sentences / "tf_model.h5")
    with pytest.raises(Permanent, match=r"only tf_model\.h5"):
        load_sentence_transformer(sentences, OPTIONS)


def test_a_classifier_is_no_sentence_model(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "classifier")
    with pytest.raises(WrongTask, match="for text-classification, not for sentence-similarity"):
        load_sentence_transformer(folder, OPTIONS)


@pytest.mark.parametrize("pickled", [False, True])
def test_missing_tensors_of_the_encoder_are_reported(sentences: Path, pickled: bool) -> None:
    kept = load_file(sentences / "model.safetensors")
    name = "encoder.layer.0.output.dense.weight"
    del kept[name]
    save_file(kept, sentences / "model.safetensors", metadata={"format": "pt"})
    if pickled:
        as_pickle(sentences)
    with pytest.raises(Permanent, match=f"incomplete: they lack 1 tensors .* {name}"):
        load_sentence_transformer(sentences, OPTIONS)


def test_a_bare_encoder_gets_mean_pooling(tmp_path: Path) -> None:
    folder = save(tmp_path / "model", "encoder")
    (folder / "README.md").write_text("---\npipeline_tag: sentence-similarity\n---\n")
    model = load_sentence_transformer(folder, OPTIONS)
    assert model.encode(["rivers run"], show_progress_bar=False).shape == (1, HIDDEN)


def test_the_bundled_model_is_whole(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path)
    folder = locate(DEFAULT_EMBEDDING_MODEL, settings, task=Task("sentence-similarity"))
    model = load_sentence_transformer(folder, OPTIONS)
    near, far = model.similarity(
        model.encode("A river.", show_progress_bar=False),
        model.encode(["A stream.", "An invoice."], show_progress_bar=False),
    )[0]
    assert near > far
