"""Loading weights: from safetensors, or from `.bin` through torch's `weights_only` loader, and from
nothing else; and only into the architecture that they were trained in.

Loads the rest of a model likewise: its tokenizer, and what prepares sounds and images for it. Reads
from the folder alone; nothing here goes to the hub.
"""

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from billiard.exceptions import SoftTimeLimitExceeded
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from shared.errors import Permanent, Retryable, SluiceError, WrongTask
from shared.hf.sentences import FEATURE_EXTRACTION, SENTENCE_SIMILARITY
from workers.hf.task import Options
from workers.models.checkpoints import check_task, modules_of, name_of, tasks_of, weight_files

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
def load_errors(part: str, folder: Path) -> Iterator[None]:
    """Errors from inside come out as SluiceErrors; `part` is what is being loaded from `folder`.
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
        raise _load_error(part, name_of(folder), error) from error
    finally:
        logging.set_verbosity(verbosity)


def brings_code(model: str) -> str:
    return (
        f"{model} brings code of its own, which is not run. If you trust whoever made it, set "
        "SLUICE_HF_TRUST_REMOTE_CODE=true on the workers."
    )


def _load_error(part: str, model: str, error: Exception) -> SluiceError:
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return Retryable(
            f"There was not enough memory to load {model}. Lower SLUICE_HF_CACHE_MIB or the "
            "number of worker processes (SLUICE_WORKER_CONCURRENCY), or use a smaller model."
        )
    if "trust_remote_code" in text:
        return Permanent(brings_code(model))
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


def load_model(auto: Any, folder: Path, options: Options, *, task: str) -> PreTrainedModel:
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
    folder: Path, options: Options, *, task: str = SENTENCE_SIMILARITY.name
) -> SentenceTransformer:
    """A model of the library sentence-transformers, in evaluation mode on the device. A bare
    encoder, without `modules.json`, gets mean pooling. Raises Permanent like `load_model`."""
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


def load_tokenizer(folder: Path, options: Options) -> PreTrainedTokenizerBase:
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


def load_processor(folder: Path, options: Options) -> Any:
    """What prepares inputs of several kinds, such as Whisper's. Raises Permanent."""
    with load_errors("processor", folder):
        return AutoProcessor.from_pretrained(str(folder), **_safely(options))


def load_feature_extractor(folder: Path, options: Options) -> Any:
    """What prepares sounds. Raises Permanent."""
    with load_errors("feature extractor", folder):
        return AutoFeatureExtractor.from_pretrained(str(folder), **_safely(options))


def load_image_processor(folder: Path, options: Options) -> Any:
    """What prepares images, with Pillow: torchvision need not be installed, and where it is, the
    results are the same. Raises Permanent."""
    with load_errors("image processor", folder):
        return AutoImageProcessor.from_pretrained(str(folder), backend="pil", **_safely(options))


def _safely(options: Options) -> dict[str, Any]:
    return {"trust_remote_code": options.trust_remote_code, "local_files_only": True}


def _check_weights(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file():
        raise Permanent(
            f"{name_of(folder)} is an adapter, or brings one. Merge it into its base model "
            "(`merge_and_unload`), and save that."
        )
    weight_files(folder)


def _check_modules(folder: Path, options: Options) -> None:
    modules = modules_of(folder)
    for module in modules:
        if not (options.trust_remote_code or module.kind.startswith(MODULES_FROM)):
            raise Permanent(brings_code(name_of(folder)))
    if not modules:
        _check_weights(folder)
    for module in modules:
        if module.kind.endswith(".Transformer"):
            _check_weights(folder / module.path)


def _check_encoders(model: SentenceTransformer, folder: Path) -> None:
    """sentence-transformers does not tell which tensors were missing, so the names are read again,
    without the tensors."""
    places = [folder / module.path for module in modules_of(folder)] or [folder]
    for place, module in zip(places, model, strict=False):
        encoder = getattr(module, "auto_model", None)
        if isinstance(encoder, PreTrainedModel):
            architecture: Any = type(encoder)
            _, info = architecture.from_pretrained(
                str(place),
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
