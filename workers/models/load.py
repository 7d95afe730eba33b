"""Loading weights: from safetensors, or from `.bin` through torch's `weights_only` loader, and from
nothing else; and only into the architecture that they were trained in.

Loads the rest of a model likewise: its tokenizer, and what prepares sounds and images for it. Reads
from the folder alone; nothing here goes to the hub.
"""

import logging as python_logging
import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from billiard.exceptions import SoftTimeLimitExceeded
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from shared.config import Settings
from shared.errors import ConfigurationError, Permanent, Retryable, SluiceError, WrongTask
from shared.hf.generation import TEXT_GENERATION
from shared.hf.sentences import FEATURE_EXTRACTION, SENTENCE_SIMILARITY
from shared.models.providers import ADAPTER_MARK
from workers.models.checkpoints import check_task, modules_of, name_of, tasks_of, weight_files
from workers.models.devices import cpu_is_fast_in_bfloat16
from workers.models.locate import locate_generator

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

log = python_logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How models are loaded and run, from the settings."""

    device: torch.device
    dtype: torch.dtype
    trust_remote_code: bool = False
    audio_limit_s: float = 7200
    audio_chunk_s: float = 30
    image_limit_pixels: int = 64_000_000


# What goes wrong while the parts of a model are loaded, told in words that help.
#
# Checkpoints come from anywhere, and the libraries that read them raise anything: whatever it
# is becomes an error of the job that asked for the model, and the worker lives on.

REASON_CHARS: Final = 300
CODE: Final = re.compile(
    r"global \S+ was not an allowed|unsupported global|allowlisted|unrecognized function"
    r"|must be imported to load",
    re.IGNORECASE,
)
"""How torch's `weights_only` loader says that a pickle wants to make or call something."""


@contextmanager
def load_errors(part: str, folder: Path, settings: str = "SLUICE_HF") -> Iterator[None]:
    """Errors from inside come out as SluiceErrors; `part` is what is being loaded from `folder`,
    and `settings` how the names of the settings begin that help.
    transformers keeps silent meanwhile: what it would warn of is checked."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # torch asks for a report of pickles that it does not know; they are refused.
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            yield
    except (SluiceError, SoftTimeLimitExceeded):
        raise
    except Exception as error:
        raise _load_error(part, name_of(folder), error, settings) from error
    finally:
        logging.set_verbosity(verbosity)


def brings_code(model: str, settings: str = "SLUICE_HF") -> str:
    return (
        f"{model} brings code of its own, which is not run. If you trust whoever made it, set "
        f"{settings}_TRUST_REMOTE_CODE=true on the workers."
    )


def _load_error(part: str, model: str, error: Exception, settings: str) -> SluiceError:
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return Retryable(
            f"There was not enough memory to load {model}. Lower SLUICE_HF_CACHE_MIB or the "
            "number of worker processes (SLUICE_WORKER_CONCURRENCY), or use a smaller model."
            if settings == "SLUICE_HF"
            else f"There was not enough memory to load {model}. Use a smaller model, or four bits "
            "(SLUICE_GENERATION_PRECISION=nf4)."
        )
    if "trust_remote_code" in text:
        return Permanent(brings_code(model, settings))
    if isinstance(error, pickle.UnpicklingError):
        what = (
            "a pickle that contains code; it was not run"
            if CODE.search(text)
            else "damaged, or a pickle of more than tensors; nothing in it was run"
        )
        return Permanent(
            f"The weights of {model} are {what}. Fetch them anew, or convert them to safetensors "
            "where you trust whoever made them."
        )
    reason = " ".join((text or type(error).__name__).split())
    return Permanent(
        f"The {part} of {model} cannot be loaded ({reason[:REASON_CHARS]}). Its files may be "
        "damaged, incomplete, or of a newer version of the library: fetch them anew."
    )


COMPUTED: Final = ("embed_positions", "final_logits_bias", "masked_spec_embed", "position_ids")
"""Tensors that published checkpoints leave out: they are computed, or are used in training only."""
POOLER: Final = "pooler"
"""What encoders have for sentences, and features of tokens have no use for."""
WORDS_LEAST: Final = 2
SHOWN: Final = 3
MODULES_FROM: Final = "sentence_transformers."
"""The only place that classes of modules come from, unless a setting says otherwise."""


def load_model(auto: Any, folder: Path, options: LoadOptions, *, task: str) -> PreTrainedModel:
    """The model of a folder, through one of transformers' `AutoModelFor...`, in evaluation mode on
    the device. Raises Permanent for weights of another format and for models of another task."""
    check_task(folder, name_of(folder), task)
    _check_weights(folder)
    with load_errors("weights", folder):
        try:
            model, info = auto.from_pretrained(
                str(folder), dtype=options.dtype, output_loading_info=True, **_safely(options)
            )
        except ValueError as error:
            if "Unrecognized configuration class" not in str(error):
                raise
            raise _wrong_task(folder, task) from error
        _check_complete(model, set(info["missing_keys"]), folder, task)
        loaded: PreTrainedModel = model.to(options.device).eval()
        return loaded


def load_sentence_transformer(
    folder: Path, options: LoadOptions, *, task: str = SENTENCE_SIMILARITY.name
) -> "SentenceTransformer":
    """A model of the library sentence-transformers, in evaluation mode on the device. A bare
    encoder, without `modules.json`, gets mean pooling. Raises Permanent like `load_model`."""
    # It takes seconds, and workers that generate never need it.
    from sentence_transformers import SentenceTransformer

    check_task(folder, name_of(folder), task)
    _check_modules(folder, options)
    with load_errors("weights", folder):
        model = SentenceTransformer(
            str(folder),
            device=str(options.device),
            model_kwargs={"dtype": options.dtype},
            **_safely(options),
        )
        _check_encoders(model, folder)
        # What stands behind the encoder has to be of its type.
        return model.to(options.dtype).eval()


def load_tokenizer(folder: Path, options: LoadOptions) -> PreTrainedTokenizerBase:
    """Raises Permanent where the folder has no tokenizer."""
    with load_errors("tokenizer", folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), **_safely(options)
        )
    # Where the files are missing, transformers makes a tokenizer that knows no words.
    words = set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab())
    if len(words - set(tokenizer.all_special_tokens)) < WORDS_LEAST:
        raise Permanent(
            f"{name_of(folder)} has no tokenizer: its folder lacks tokenizer.json or the "
            "vocabulary that its kind of tokenizer reads. Fetch the model's files anew."
        )
    return tokenizer


def load_processor(folder: Path, options: LoadOptions) -> Any:
    """What prepares inputs of several kinds, such as Whisper's. Raises Permanent."""
    with load_errors("processor", folder):
        return AutoProcessor.from_pretrained(str(folder), **_safely(options))


def load_feature_extractor(folder: Path, options: LoadOptions) -> Any:
    """What prepares sounds. Raises Permanent."""
    with load_errors("feature extractor", folder):
        return AutoFeatureExtractor.from_pretrained(str(folder), **_safely(options))


def load_image_processor(folder: Path, options: LoadOptions) -> Any:
    """What prepares images, with Pillow: torchvision need not be installed, and where it is, the
    results are the same. Raises Permanent."""
    with load_errors("image processor", folder):
        return AutoImageProcessor.from_pretrained(str(folder), backend="pil", **_safely(options))


def _safely(options: LoadOptions) -> dict[str, Any]:
    return {"trust_remote_code": options.trust_remote_code, "local_files_only": True}


def _check_weights(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise Permanent(
            f"{name_of(folder)} is an adapter, or brings one. Merge it into its base model "
            "(`merge_and_unload`), and save that."
        )
    weight_files(folder)


def _check_modules(folder: Path, options: LoadOptions) -> None:
    modules = modules_of(folder)
    for module in modules:
        if not (options.trust_remote_code or module.kind.startswith(MODULES_FROM)):
            raise Permanent(brings_code(name_of(folder)))
    if not modules:
        _check_weights(folder)
    for module in modules:
        if module.kind.endswith(".Transformer"):
            _check_weights(folder / module.path)


def _check_encoders(model: "SentenceTransformer", folder: Path) -> None:
    """sentence-transformers does not tell which tensors were missing, so the names are read again,
    without the tensors."""
    folders = [folder / module.path for module in modules_of(folder)] or [folder]
    for path, module in zip(folders, model, strict=False):
        encoder = getattr(module, "auto_model", None)
        if isinstance(encoder, PreTrainedModel):
            architecture: Any = type(encoder)
            _, info = architecture.from_pretrained(
                str(path),
                config=encoder.config,
                device_map="meta",
                output_loading_info=True,
                local_files_only=True,
            )
            _check_complete(encoder, set(info["missing_keys"]), folder, FEATURE_EXTRACTION.name)


def _check_complete(model: PreTrainedModel, missing: set[str], folder: Path, task: str) -> None:
    """Tensors that the checkpoint lacks are random: a head that it lacks is that of another task,
    and without more than that it is not the model's."""
    computed = (*COMPUTED, POOLER) if task == FEATURE_EXTRACTION.name else COMPUTED
    lacking = sorted(key for key in missing if not any(part in key for part in computed))
    if not lacking:
        return
    body = f"{model.base_model_prefix}."
    if not any(key.startswith(body) for key in lacking) and task != FEATURE_EXTRACTION.name:
        raise _wrong_task(folder, task)
    raise Permanent(
        f"The weights of {name_of(folder)} are incomplete: they lack {len(lacking):,} tensors of "
        f"a {type(model).__name__}, such as {', '.join(lacking[:SHOWN])}. Fetch them anew."
    )


def _wrong_task(folder: Path, task: str) -> WrongTask:
    others = [name for name in tasks_of(folder) if name != task]
    known = f"a model for {' and '.join(others)}, " if others else ""
    return WrongTask(
        f"{name_of(folder)} is {known}not one for {task}: its weights have no such head."
    )


# Models that generate text, whose weights may be quantized while they are loaded.

QUANTIZED: Final = frozenset({"nf4", "int8"})
WINDOW_UNKNOWN_TOKENS: Final = 2048


@dataclass(frozen=True, kw_only=True)
class LoadedGenerator:
    """A model that generates text, with its tokenizer. `ends` are the tokens that end a text;
    `window_tokens` is what the model was made for."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    window_tokens: int
    ends: frozenset[int]
    precision: str


def load_generator(name: str, settings: Settings) -> LoadedGenerator:
    """A model reference `hf/...` -> the model and its tokenizer, in the precision that is set.

    `nf4` and `int8` go through bitsandbytes, which is imported for them alone; a checkpoint that is
    quantized already is taken as it is. Raises ConfigurationError, which says what to set.
    """
    if settings.generation_threads is not None:
        torch.set_num_threads(settings.generation_threads)
    logging.disable_progress_bar()
    device = _device(settings.generation_device)
    base, adapter = _with_adapter_of(name, settings)
    try:
        folder = locate_generator(base, settings)
        model, tokenizer, precision = _load_causal(folder, device, settings)
    except ConfigurationError:
        raise
    except SluiceError as error:
        raise ConfigurationError(
            f"{error.message} Name a local path or a model that the hub serves "
            "(SLUICE_GENERATION_MODEL), with SLUICE_GENERATION_REVISION if it needs one, and "
            "HF_TOKEN if it is private."
        ) from error
    if adapter is not None:
        model = _with_adapter(model, adapter, precision)
    log.info("model %s loaded in %s on %s", name, precision, model.device)
    return LoadedGenerator(
        model=model.eval(),
        tokenizer=tokenizer,
        window_tokens=_window_tokens(model.config, settings),
        ends=_ends(model, tokenizer),
        precision=precision,
    )


def _with_adapter_of(name: str, settings: Settings) -> tuple[str, str | None]:
    """The model and its adapter, which stands in its name or else in the settings. A folder whose
    own name has the mark is itself."""
    base, mark, adapter = name.partition(ADAPTER_MARK)
    if not mark or Path(name).expanduser().is_dir():
        return name, settings.generation_adapter
    return base, adapter


def _load_causal(
    folder: Path, device: str, settings: Settings
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    _check_weights(folder)
    safely = {
        "trust_remote_code": settings.generation_trust_remote_code,
        "local_files_only": True,
    }
    path = str(folder)
    with load_errors("model", folder, "SLUICE_GENERATION"):
        config = AutoConfig.from_pretrained(path, **safely)
        precision = _precision(settings.generation_precision, device, config)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, **safely)
        auto: Any = AutoModelForCausalLM  # whose types do not know `output_loading_info`
        model, info = auto.from_pretrained(
            path,
            config=config,
            output_loading_info=True,
            **safely,
            **_precision_options(precision, device),
        )
        _check_complete(model, set(info["missing_keys"]), folder, TEXT_GENERATION.name)
    return model, tokenizer, precision


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


def _precision_options(precision: str, device: str) -> dict[str, Any]:
    if precision in QUANTIZED and find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            f"The precision {precision} needs the package bitsandbytes: run `pip install '.[gpu]'` "
            "in the folder of Sluice's source, or set SLUICE_GENERATION_PRECISION to bfloat16 or "
            "float32."
        )
    options: dict[str, Any] = {"device_map": device}
    # On processors it advises to install `kernels`, with which it would fetch code from the hub.
    python_logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(python_logging.ERROR)
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
            f"The adapter {adapter!r} cannot be loaded over this model ({error}). Name the folder "
            "of an adapter that was trained for it, in SLUICE_GENERATION_ADAPTER or behind the "
            f"model's name (hf/<model>{ADAPTER_MARK}<adapter>)."
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
    for part in [rope, *(value for value in rope.values() if isinstance(value, dict))]:
        if part.get("rope_type") == "longrope":
            window = min(window, part.get("original_max_position_embeddings") or window)
    return min(window, settings.generation_window_tokens or window)


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    ends = [tokenizer.eos_token_id]
    if model.generation_config is not None:
        configured = model.generation_config.eos_token_id
        ends += configured if isinstance(configured, list) else [configured]
    return frozenset(end for end in ends if end is not None)
