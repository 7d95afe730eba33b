"""What goes wrong while the parts of a model are loaded, told in words that help.

Checkpoints come from anywhere, and the libraries that read them raise anything: whatever it is
becomes an error of the job that asked for the model, and the worker lives on.
"""

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from billiard.exceptions import SoftTimeLimitExceeded
from transformers.utils import logging

from shared.errors import Permanent, Retryable, SluiceError
from workers.hf.checkpoints import name_of

TOLD_CHARS: Final = 300
CODE: Final = re.compile(
    r"global \S+ was not an allowed|unsupported global|allowlisted|unrecognized function"
    r"|must be imported to load",
    re.IGNORECASE,
)
"""How torch's `weights_only` loader says that a pickle wants to make or call something."""


@contextmanager
def told(part: str, folder: Path) -> Iterator[None]:
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
        raise _told(part, name_of(folder), error) from error
    finally:
        logging.set_verbosity(verbosity)


def brings_code(model: str) -> str:
    return (
        f"{model} brings code of its own, which is not run. If you trust whoever made it, set "
        "SLUICE_HF_TRUST_REMOTE_CODE=true on the workers."
    )


def _told(part: str, model: str, error: Exception) -> SluiceError:
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
        f"The {part} of {model} cannot be loaded ({reason[:TOLD_CHARS]}). Its files may be "
        "damaged, incomplete, or of a newer version of the library: fetch them anew."
    )
