"""Code in checkpoints, which is not run unless a setting says so."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from shared.errors import Permanent
from shared.kinds.hf import Task
from tests.models.checkpoints import OPTIONS, Touch, as_pickle, configure, save
from workers.models.load import LoadOptions, load_model

TRUSTING = replace(OPTIONS, trust_remote_code=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(tmp_path / "model", "classifier")


def classify(folder: Path, options: LoadOptions = OPTIONS) -> torch.nn.Module:
    return load_model(
        AutoModelForSequenceClassification, folder, options, task=Task("text-classification")
    )


@pytest.mark.parametrize(
    ("protocol", "message"),
    [(2, r"contains code; it was not run\. .* safetensors"), (4, r"nothing in it was run\. ")],
)
def test_code_in_a_pickle_is_not_run(
    folder: Path, tmp_path: Path, protocol: int, message: str
) -> None:
    touched = tmp_path / "touched"
    weights = as_pickle(folder) / "pytorch_model.bin"
    tensors = torch.load(weights, weights_only=True)
    torch.save(tensors | {"x": Touch(touched)}, weights, pickle_protocol=protocol)
    with pytest.raises(Permanent, match=message):
        classify(folder)
    assert not touched.exists()
    torch.load(weights, weights_only=False)
    assert touched.exists(), "the checkpoint does no harm to those who trust it"


def test_code_in_a_bare_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    weights = as_pickle(folder) / "pytorch_model.bin"
    weights.write_bytes(pickle.dumps(Touch(touched)))
    with pytest.raises(Permanent, match=r"was (not )?run\. "):
        classify(folder)
    assert not touched.exists()
    pickle.loads(weights.read_bytes())
    assert touched.exists()


def bring_code(folder: Path) -> Path:
    """The model's class comes with it, and tells if it is imported."""
    touched = folder / "touched"
    names = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForSequenceClassification": "own.OwnForSequenceClassification",
    }
    configure(folder, model_type="own", auto_map=names, architectures=None)
    code = (
        "from pathlib import Path\n"
        "from transformers import BertConfig, BertForSequenceClassification\n"
        f"Path({str(touched)!r}).touch()\n"
        "class OwnConfig(BertConfig):\n    model_type = 'own'\n"
        "class OwnForSequenceClassification(BertForSequenceClassification):\n"
        "    config_class = OwnConfig\n"
    )
    (folder / "own.py").write_text(code)
    return touched


def test_code_of_the_model_is_not_run(folder: Path) -> None:
    touched = bring_code(folder)
    with pytest.raises(Permanent, match=r"code of its own.*SLUICE_HF_TRUST_REMOTE_CODE=true"):
        classify(folder)
    assert not touched.exists()


def test_code_of_the_model_is_run_where_that_is_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "py"))
    touched = bring_code(folder)
    model = classify(folder, TRUSTING)
    assert touched.exists()
    assert type(model).__name__ == "OwnForSequenceClassification"


def test_known_architectures_need_no_code_of_their_own(folder: Path) -> None:
    touched = bring_code(folder)
    configure(folder, model_type="bert")
    assert type(classify(folder)).__module__.startswith("transformers.")
    assert not touched.exists()
