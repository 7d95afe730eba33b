"""A model's name -> the folder it lies in, on this machine or fetched from the hub.

Looked for as a folder of that path, below the folder of models, in the package that bundles the
default embedding model, in the hub's cache and on the hub, in this order.
"""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # hidden from type checkers
    validate_repo_id,
)

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import InvalidInput, ModelNotFound
from shared.hf import Task
from workers.hf.checkpoints import CONFIG, holds_model, size_bytes
from workers.hf.downloads import fetch

__all__ = ["locate", "size_bytes"]


def _nobody_stops() -> None:
    pass


def locate(
    model: str,
    settings: Settings,
    *,
    task: Task | None,
    check: Callable[[], None] = _nobody_stops,
) -> Path:
    """The folder of a model. What is on the hub is fetched, once for all processes of a machine;
    `check` is called all the while, and may raise to give up.

    Raises InvalidInput for what is no name of a model, ModelNotFound, Permanent for a model that
    cannot be had or is made for another task than `task`, and Retryable where the hub is away.
    """
    found = _by_path(model)
    if found is not None:
        return found
    _check_name(model)
    below = settings.models_path / model
    if below.is_dir():
        return _with_model(below)
    bundled = _bundled(model)
    return bundled or fetch(model, settings, task=task, check=check)


def _bundled(model: str) -> Path | None:
    if model != DEFAULT_EMBEDDING_MODEL:
        return None
    from workers.retrieval import embed  # brings in torch, which nothing else here needs

    found = embed.locate(model)
    return None if found == model else Path(found)


def _by_path(model: str) -> Path | None:
    """A folder of that path. What begins like a path is one; `a/b` is one only if it is there."""
    try:
        path = Path(model).expanduser()
        is_there = path.is_dir()
    except (OSError, RuntimeError):  # too long, not readable, the home of nobody
        return None
    if path.is_absolute() or model.startswith("./"):
        if not is_there:
            raise ModelNotFound(f"There is no folder {model!r} on this machine.")
        return _with_model(path)
    is_upward = ".." in path.parts
    return path if is_there and not is_upward and holds_model(path) else None


def _with_model(folder: Path) -> Path:
    if not holds_model(folder):
        raise ModelNotFound(f"The folder {folder} holds no model: it has no {CONFIG}.")
    return folder


def _check_name(model: str) -> None:
    try:
        validate_repo_id(model)
    except HFValidationError:
        raise InvalidInput(
            f"{model[:200]!r} is no name of a model; names are <owner>/<name> as on the hub, or "
            "paths of folders."
        ) from None
