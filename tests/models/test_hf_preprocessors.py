"""Loading what stands before a model: tokenizers, and what prepares sounds and images."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
)

from shared.errors import Permanent
from tests.models.checkpoints import OPTIONS, save
from workers.models.load import (
    load_feature_extractor,
    load_image_processor,
    load_processor,
    load_tokenizer,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A classifier with its tokenizer."""
    return save(tmp_path / "model", "classifier")


def test_a_tokenizer_loads(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokenizer = load_tokenizer(folder, OPTIONS)
    assert tokenizer("rivers run")["input_ids"] == [5, 6]
    assert capfd.readouterr() == ("", "")


def test_a_missing_tokenizer_is_reported(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(Permanent, match="has no tokenizer"):
        load_tokenizer(folder, OPTIONS)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": "1.0"}', "null"])
def test_a_broken_tokenizer_is_reported(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(Permanent, match="tokenizer"):
        load_tokenizer(folder, OPTIONS)


def test_a_tokenizer_with_code_is_refused(folder: Path) -> None:
    config = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(Permanent, match=r"SLUICE_HF_TRUST_REMOTE_CODE|tokenizer"):
        load_tokenizer(folder, OPTIONS)


@pytest.mark.parametrize("load", [load_processor, load_feature_extractor, load_image_processor])
def test_missing_preprocessors_are_reported(tmp_path: Path, load: Any) -> None:
    Wav2Vec2Config().save_pretrained(tmp_path)
    with pytest.raises(Permanent, match=r"(processor|feature extractor) of .* cannot be loaded"):
        load(tmp_path, OPTIONS)


def test_images_are_prepared_with_pillow(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path)
    described = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 8, "width": 8},
        "do_resize": True,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(described))
    processor = load_image_processor(tmp_path, OPTIONS)
    assert type(processor).__name__ == "ViTImageProcessorPil"
    assert processor.size["height"] == 8


def test_sounds_are_prepared(tmp_path: Path) -> None:
    Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(tmp_path)
    Wav2Vec2Config().save_pretrained(tmp_path)
    assert load_feature_extractor(tmp_path, OPTIONS).sampling_rate == 8000
