"""A model reference `hf/...` -> the model and its tokenizer, in the precision that is set.

From a local path or the hub (`HF_TOKEN` is read by huggingface_hub itself). `nf4` and `int8` go
through bitsandbytes, which is imported for them alone; a checkpoint that is quantized already is
taken as it is. No code from a repository runs unless a setting says so.
"""

import logging
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from shared.config import Settings
from shared.errors import ConfigurationError
from workers.models.devices import cpu_is_fast_in_bfloat16

log = logging.getLogger(__name__)

QUANTIZED: Final = frozenset({"nf4", "int8"})
WINDOW_UNKNOWN_TOKENS: Final = 2048


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """`ends` are the tokens that end a text; `window_tokens` is what the model was made for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window_tokens: int
    ends: frozenset[int]
    precision: str


def load(name: str, settings: Settings) -> Loaded:
    """Raises ConfigurationError, which says what to set, where the model cannot be loaded."""
    if settings.generation_threads is not None:
        torch.set_num_threads(settings.generation_threads)
    disable_progress_bar()
    device = _device(settings.generation_device)
    path = Path(name).expanduser()
    place = str(path) if path.is_dir() else name
    source: dict[str, Any] = {
        "revision": None if path.is_dir() else settings.generation_revision,
        "trust_remote_code": settings.generation_trust_remote_code,
    }
    try:
        config = AutoConfig.from_pretrained(place, **source)
        precision = _precision(settings.generation_precision, device, config)
        tokenizer = AutoTokenizer.from_pretrained(place, **source)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            place, config=config, **source, **_options(precision, device)
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        raise ConfigurationError(_advice(name, error)) from error
    if settings.generation_adapter is not None:
        model = _with_adapter(model, settings.generation_adapter, precision)
    log.info("model %s loaded in %s on %s", name, precision, model.device)
    return Loaded(
        model=model.eval(),
        tokenizer=tokenizer,
        window_tokens=_window_tokens(config, settings),
        ends=_ends(model, tokenizer),
        precision=precision,
    )


def _device(device: str) -> str:
    """What goes into `device_map`: `auto` spreads a model over all GPUs."""
    if device == "auto":
        return "auto" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(
            f"SLUICE_GENERATION_DEVICE is {device!r}, but torch sees no CUDA device. Install a "
            "build of torch with CUDA, or set SLUICE_GENERATION_DEVICE=cpu."
        )
    try:
        return str(torch.device(device))
    except RuntimeError:
        raise ConfigurationError(
            f"SLUICE_GENERATION_DEVICE must be auto, cpu, cuda or cuda:N, not {device!r}."
        ) from None


def _precision(precision: str, device: str, config: PreTrainedConfig) -> str:
    if getattr(config, "quantization_config", None) is not None:
        return "as saved"
    if precision != "auto":
        return precision
    if device != "cpu":
        return "nf4"
    # On a processor, four bits save memory and cost speed.
    return "bfloat16" if cpu_is_fast_in_bfloat16() else "float32"


def _options(precision: str, device: str) -> dict[str, Any]:
    if precision in QUANTIZED and find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            f"The precision {precision} needs the package bitsandbytes: run `pip install '.[gpu]'` "
            "in the folder of Sluice's source, or set SLUICE_GENERATION_PRECISION to bfloat16 or "
            "float32."
        )
    options: dict[str, Any] = {"device_map": device}
    # On processors it advises to install `kernels`, with which it would fetch code from the hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    if precision == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    elif precision == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    # What is not quantized (embeddings, norms) is in bfloat16 beside it.
    options["dtype"] = torch.float32 if precision == "float32" else torch.bfloat16
    return options


def _with_adapter(model: PreTrainedModel, adapter: str, precision: str) -> PreTrainedModel:
    from peft import PeftModel

    try:
        tuned = PeftModel.from_pretrained(model, str(Path(adapter).expanduser()))
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigurationError(
            f"The adapter {adapter!r} cannot be loaded over this model ({error}). Set "
            "SLUICE_GENERATION_ADAPTER to the folder of an adapter that was trained for it."
        ) from error
    # Merging into quantized weights would round twice; there the adapter runs beside them.
    is_plain = precision in ("bfloat16", "float32")
    adapted = tuned.merge_and_unload() if is_plain else tuned.get_base_model()
    assert isinstance(adapted, PreTrainedModel)
    return adapted


def _window_tokens(config: PreTrainedConfig, settings: Settings) -> int:
    """The model's own window, or the setting's where that is smaller.

    Models whose rotary embedding changes once a text is long (longrope, as in Phi-3 of 128k) are
    kept to the length below: in a batch, one long text would change the others.
    """
    text = config.get_text_config()
    window = getattr(text, "max_position_embeddings", None) or WINDOW_UNKNOWN_TOKENS
    rope = getattr(text, "rope_parameters", None) or {}
    for each in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if each.get("rope_type") == "longrope":
            window = min(window, each.get("original_max_position_embeddings") or window)
    return min(window, settings.generation_window_tokens or window)


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ends = [tokenizer.eos_token_id]
    if model.generation_config is not None:
        configured = model.generation_config.eos_token_id
        ends += configured if isinstance(configured, list) else [configured]
    return frozenset(each for each in ends if each is not None)


def _advice(name: str, error: Exception) -> str:
    if isinstance(error, ConfigurationError):
        return error.message
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    if any(isinstance(each, GatedRepoError) for each in causes):
        return (
            f"The model {name!r} is gated: accept its terms on huggingface.co, and set HF_TOKEN "
            "to a token of the account that did."
        )
    if any(isinstance(each, RepositoryNotFoundError | HFValidationError) for each in causes):
        return (
            f"There is no model {name!r}: neither a local folder nor a repository that the hub "
            "shows. Check the spelling, and set HF_TOKEN if it is private."
        )
    return (
        f"The model {name!r} cannot be loaded ({error}). Name a local path or a model that the hub "
        "serves (SLUICE_GENERATION_MODEL), with SLUICE_GENERATION_REVISION if it needs one."
    )
