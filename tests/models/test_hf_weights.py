"""Loading checkpoints: what is loaded, and what is refused, with words that help."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from billiard.exceptions import SoftTimeLimitExceeded
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCTC,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
)

from shared.errors import Cancelled, Permanent, Retryable, WrongTask
from shared.kinds.hf import Task
from tests.models.checkpoints import HIDDEN, OPTIONS, as_pickle, configure, save
from workers.models.load import load_errors, load_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind, not to be changed."""
    root = tmp_path_factory.mktemp("checkpoints")
    for kind in ("classifier", "fill_mask", "encoder"):
        save(root / kind, kind)
    return root


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A classifier of this test's own."""
    return Path(shutil.copytree(saved / "classifier", tmp_path / "model"))


def classify(folder: Path) -> torch.nn.Module:
    return load_model(
        AutoModelForSequenceClassification, folder, OPTIONS, task=Task("text-classification")
    )


def test_weights_load_as_they_were_saved(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = classify(folder)
    kept = load_file(folder / "model.safetensors")
    assert all(torch.equal(value, kept[name]) for name, value in model.named_parameters())
    assert not model.training
    assert capfd.readouterr() == ("", "")


def test_pickled_tensors_load_like_safetensors(folder: Path) -> None:
    expected = dict(classify(folder).named_parameters())
    parameters = dict(classify(as_pickle(folder)).named_parameters())
    assert all(torch.equal(value, expected[name]) for name, value in parameters.items())


def test_safetensors_go_before_a_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"no weights")
    kept = load_file(folder / "model.safetensors")
    model = classify(folder)
    assert all(torch.equal(value, kept[name]) for name, value in model.named_parameters())


def test_the_type_of_the_options_is_loaded(folder: Path) -> None:
    model = load_model(
        AutoModelForSequenceClassification,
        folder,
        replace(OPTIONS, dtype=torch.bfloat16),
        task=Task("text-classification"),
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_shards_load_as_the_whole_does(folder: Path) -> None:
    whole = dict(classify(folder).named_parameters())
    shard(folder)
    in_shards = dict(classify(folder).named_parameters())
    assert in_shards.keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in in_shards.items())


def test_a_missing_shard_is_reported(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Permanent, match=r"incomplete: model-00002-of-00002\.safetensors"):
        classify(folder)


@pytest.mark.parametrize(
    "index", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": "../b"}}']
)
def test_an_index_of_nothing_is_refused(folder: Path, index: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Permanent, match=r"model\.safetensors\.index\.json"):
        classify(folder)


def shard(folder: Path) -> None:
    kept = load_file(folder / "model.safetensors")
    halves: list[dict[str, torch.Tensor]] = [{}, {}]
    for n, (name, tensor) in enumerate(sorted(kept.items())):
        halves[n % 2][name] = tensor
    where: dict[str, str] = {}
    for n, half in enumerate(halves, start=1):
        shard_name = f"model-{n:05}-of-00002.safetensors"
        save_file(half, folder / shard_name, metadata={"format": "pt"})
        where |= dict.fromkeys(half, shard_name)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", bytes(64), b"\xff" * 8 + b"{}"],
    ids=["empty", "text", "zeros", "huge"],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_are_reported(folder: Path, name: str, content: bytes) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(Permanent, match=r"The weights of .* damaged.*etch them anew"):
        classify(folder)


@pytest.mark.parametrize("part", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("pickled", [False, True])
def test_truncated_weights_are_reported(folder: Path, part: float, pickled: bool) -> None:
    if pickled:
        as_pickle(folder)
    [path] = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(Permanent, match="damaged"):
        classify(folder)


def test_a_zip_of_something_else_is_reported(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.txt", "nothing")
    with pytest.raises(Permanent, match="cannot be loaded"):
        classify(folder)


@pytest.mark.parametrize(
    "name",
    ["tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.pt", "model.pkl", "q4.gguf"],
)
def test_other_formats_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(Permanent, match=rf"only {name}; model\.safetensors .* is needed"):
        classify(folder)


def test_no_weights_are_reported(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(Permanent, match=r"has no weights; model\.safetensors"):
        classify(folder)


def test_an_adapter_is_refused(folder: Path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "some/base"}
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(Permanent, match=r"adapter.*Merge it"):
        classify(folder)


def test_a_model_of_another_task_is_refused(saved: Path) -> None:
    with pytest.raises(WrongTask, match="for fill-mask and feature-extraction, not for question"):
        load_model(
            AutoModelForQuestionAnswering,
            saved / "fill_mask",
            OPTIONS,
            task=Task("question-answering"),
        )


def test_a_card_that_promises_another_task_is_found_out(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved / "fill_mask", tmp_path / "model"))
    (folder / "README.md").write_text("---\npipeline_tag: token-classification\n---\n")
    with pytest.raises(WrongTask, match=r"a model for fill-mask .*, not one for token"):
        load_model(
            AutoModelForTokenClassification, folder, OPTIONS, task=Task("token-classification")
        )


def test_a_card_that_promises_another_architecture_is_found_out(folder: Path) -> None:
    (folder / "README.md").write_text("---\npipeline_tag: automatic-speech-recognition\n---\n")
    with pytest.raises(WrongTask, match="for text-classification, not one for automatic-speech"):
        load_model(AutoModelForCTC, folder, OPTIONS, task=Task("automatic-speech-recognition"))


def test_missing_tensors_are_reported(folder: Path) -> None:
    kept = load_file(folder / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    del kept[name]
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Permanent, match=f"incomplete: they lack 1 tensors .* {name}"):
        classify(folder)


def test_tensors_of_another_size_are_reported(folder: Path) -> None:
    configure(folder, intermediate_size=2 * HIDDEN)
    with pytest.raises(Permanent, match="cannot be loaded"):
        classify(folder)


def test_an_encoder_lends_its_features_without_its_head(saved: Path) -> None:
    model = load_model(AutoModel, saved / "fill_mask", OPTIONS, task=Task("feature-extraction"))
    kept = load_file(saved / "fill_mask" / "model.safetensors")
    for name, value in model.named_parameters():
        assert "pooler" in name or torch.equal(value, kept[f"bert.{name}"])


@pytest.mark.parametrize("content", ["{", "[]", "", '{"model_type": "bert", "hidden_size": "x"}'])
def test_a_broken_configuration_is_reported(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(Permanent):
        classify(folder)


def test_an_unknown_kind_of_model_is_reported(folder: Path) -> None:
    configure(folder, model_type="unheard_of", architectures=None)
    with pytest.raises(Permanent, match=r"cannot be loaded .*unheard_of"):
        classify(folder)


def test_speech_checkpoints_of_old_load_whole(tmp_path: Path) -> None:
    """Published ones lack what is used in training only, and name a weight as torch once did."""
    config = Wav2Vec2Config(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, conv_dim=(8,), conv_stride=(5,), conv_kernel=(10,),
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        mask_time_prob=0.05,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    kept = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in kept.items()
        if "masked_spec_embed" not in name
    }
    assert any(name.endswith("weight_g") for name in old)
    assert len(old) == len(kept) - 1
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    load_model(AutoModelForCTC, tmp_path, OPTIONS, task=Task("automatic-speech-recognition"))


def test_what_memory_does_not_hold_is_tried_again(tmp_path: Path) -> None:
    with pytest.raises(Retryable, match="SLUICE_HF_CACHE_MIB"), load_errors("weights", tmp_path):
        torch.empty(1 << 50, dtype=torch.uint8)


@pytest.mark.parametrize("error", [SoftTimeLimitExceeded(), Cancelled("by the user")])
def test_what_ends_the_step_goes_through(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)), load_errors("weights", tmp_path):
        raise error


def test_a_mask_model_fills_masks(saved: Path) -> None:
    load_model(AutoModelForMaskedLM, saved / "fill_mask", OPTIONS, task=Task("fill-mask"))
