"""Loading models: precisions, adapters, windows, and errors that say what to set."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig, LlamaForCausalLM, PreTrainedModel

from shared.config import Settings
from shared.errors import ConfigurationError
from tests.models import tiny
from tests.models.checkpoints import Touch, as_pickle
from tests.models.tiny import TEXTS, Reference, asks, ids_of
from workers.generation.backends.interface import Message, Request, Role, Sampling
from workers.generation.backends.rolling.generator import RollingBackend, RollingGenerator
from workers.models.devices import cpu_is_fast_in_bfloat16
from workers.models.load import load_generator

# bitsandbytes quantizes in blocks of 64.
CONFIG = {"hidden_size": 128, "intermediate_size": 256}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as people have them: weights, configuration, tokenizer with its template."""
    path = tmp_path_factory.mktemp("model")
    tiny.model(tiny.llama(**CONFIG)).save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


def _settings(**options: Any) -> Settings:
    return Settings(_env_file=None, generation_device="cpu", **options)


def _made(path: Path, **options: Any) -> RollingGenerator:
    return RollingBackend(_settings(**options), on_fatal=lambda: None).generator(str(path))


def _greedy(generator: RollingGenerator, tokens: int = 20) -> list[list[int]]:
    started = [generator.start(asks(text, tokens)) for text in TEXTS[:2]]
    return [ids_of(generation) for generation in started]


def _expected(model: PreTrainedModel, tokens: int = 20) -> list[list[int]]:
    reference = Reference(model)
    # The end-of-text token of the tokenizer ends texts here as well.
    end = tiny.tokenizer().eos_token_id
    answers = []
    for text in TEXTS[:2]:
        ids = reference.greedy(tiny.tokenizer()(text).input_ids, tokens)
        answers.append(ids[: ids.index(end)] if end in ids else ids)
    return answers


def test_a_local_folder_in_full_precision(folder: Path) -> None:
    generator = _made(folder, generation_precision="float32")
    try:
        assert generator.reference == f"hf/{folder}"
        assert generator.window_tokens == 256
        assert _greedy(generator) == _expected(LlamaForCausalLM.from_pretrained(folder))
        message = Message(role=Role.USER, content="hello")
        request = Request(messages=(message,), sampling=Sampling(max_tokens=4))
        completion = generator.start(request).result()
        assert completion.prompt_tokens == generator.count_tokens([message])
    finally:
        generator.close()


def test_four_bits_give_the_tokens_of_generate_in_four_bits(folder: Path) -> None:
    loaded = load_generator(str(folder), _settings(generation_precision="nf4"))
    quantized = loaded.model.model.layers[0].mlp.up_proj.weight
    assert quantized.dtype == torch.uint8
    assert quantized.quant_state.nested
    expected = _expected(loaded.model)
    generator = RollingGenerator("hf/nf4", loaded, _settings(), lambda: None)
    try:
        assert _greedy(generator) == expected
    finally:
        generator.close()


def test_a_checkpoint_that_is_quantized_is_taken_as_it_is(folder: Path, tmp_path: Path) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    saved = LlamaForCausalLM.from_pretrained(folder, quantization_config=config, device_map="cpu")
    saved.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    loaded = load_generator(str(tmp_path), _settings(generation_precision="float32"))
    assert loaded.precision == "as saved"
    assert loaded.model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8


def test_what_is_automatic_on_a_processor(folder: Path) -> None:
    loaded = load_generator(str(folder), _settings())
    expected = torch.bfloat16 if cpu_is_fast_in_bfloat16() else torch.float32
    assert loaded.model.dtype == expected


# A warning of peft about itself.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("precision", ["float32", "nf4"])
def test_an_adapter_by_path(folder: Path, tmp_path: Path, precision: str) -> None:
    from peft import LoraConfig, get_peft_model

    plain = load_generator(str(folder), _settings(generation_precision=precision)).model
    # Drawn weights may make two tokens as likely as each other, which rounding then tells apart.
    torch.manual_seed(13)  # the likeliest is ahead by 0.12 and more
    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    tuned = get_peft_model(copy.deepcopy(plain), config)
    tuned.save_pretrained(str(tmp_path))
    base: Any = tuned.get_base_model()
    expected = _expected(base)
    assert expected != _expected(plain)
    generator = _made(folder, generation_precision=precision, generation_adapter=str(tmp_path))
    try:
        assert _greedy(generator) == expected
    finally:
        generator.close()


def test_the_smaller_window_counts(folder: Path) -> None:
    assert load_generator(str(folder), _settings(generation_window_tokens=100)).window_tokens == 100
    assert (
        load_generator(str(folder), _settings(generation_window_tokens=9000)).window_tokens == 256
    )


def test_all_end_tokens_count(folder: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(folder)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [7, 9]
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    ends = load_generator(str(tmp_path), _settings()).ends
    assert ends == {7, 9, tiny.tokenizer().eos_token_id}


def test_a_model_that_does_not_exist_is_a_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path), "no such/name at all", str(tmp_path / "missing")):
        with pytest.raises(ConfigurationError, match=r"SLUICE_GENERATION_MODEL|HF_TOKEN"):
            load_generator(name, _settings())


@pytest.mark.parametrize("device", ["cuda", "cuda:3", "tpu!"])
def test_a_device_that_is_not_there_is_a_clear_error(folder: Path, device: str) -> None:
    if torch.cuda.is_available() and device.startswith("cuda"):
        pytest.skip("there is one here")
    with pytest.raises(ConfigurationError, match="SLUICE_GENERATION_DEVICE"):
        load_generator(str(folder), Settings(_env_file=None, generation_device=device))


def test_an_adapter_that_does_not_fit_is_a_clear_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="adapter"):
        load_generator(str(folder), _settings(generation_adapter=str(tmp_path)))


def test_code_in_a_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    shutil.copytree(folder, tmp_path / "model")
    weights = as_pickle(tmp_path / "model") / "pytorch_model.bin"
    tensors = torch.load(weights, weights_only=True)
    torch.save(tensors | {"x": Touch(touched)}, weights)
    with pytest.raises(ConfigurationError, match="contains code; it was not run"):
        load_generator(str(tmp_path / "model"), _settings())
    assert not touched.exists()


@pytest.mark.parametrize("precision", ["float32", "nf4"])
def test_incomplete_weights_are_refused(folder: Path, tmp_path: Path, precision: str) -> None:
    shutil.copytree(folder, tmp_path / "model")
    tensors = load_file(tmp_path / "model/model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigurationError, match=r"lack 1 tensors .*up_proj"):
        load_generator(str(tmp_path / "model"), _settings(generation_precision=precision))


def test_weights_of_another_format_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model/tf_model.h5")
    with pytest.raises(ConfigurationError, match=r"only tf_model\.h5"):
        load_generator(str(tmp_path / "model"), _settings())
