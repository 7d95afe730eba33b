"""Tiny models, built once and kept between test runs, like `tests/tiny_models.py` keeps its own."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tests.tiny_models import one_thread

CACHE = Path(tempfile.gettempdir()) / "sluice-test-models"


def kept(name: str, build: Callable[[Path], None], *sources: str) -> Path:
    """The folder of the model that `build` makes; made anew when its source files change.

    `sources` are paths of further files that the model depends on; the builder's own is one.
    """
    digest = hashlib.sha256()
    for source in (build.__code__.co_filename, *sources):
        digest.update(Path(source).read_bytes())
    folder = CACHE / f"{name}-{digest.hexdigest()[:16]}"
    CACHE.mkdir(exist_ok=True)
    # Test processes that run side by side wait for the one that builds.
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as unfinished:
                with one_thread():
                    build(Path(unfinished) / "model")
                shutil.move(Path(unfinished) / "model", folder)
    return folder
