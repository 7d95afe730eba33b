"""The bulk corpus of the benchmarks: the HTML pages of Debian's package `postgresql-doc-15`.

Fetched with `apt-get download`, unpacked once into a cache folder. Benchmarks and end-to-end
tests read it; nothing of it is kept in this repository.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PACKAGE = "postgresql-doc-15"
PAGES = 1169


class NoCorpus(Exception):
    """The package cannot be had on this machine."""


def pages(limit: int | None = None) -> list[Path]:
    """The pages, sorted by name; every n-th of them if there is a lower limit. Raises NoCorpus."""
    files = sorted(_folder().rglob("*.html"))
    if limit is None or limit >= len(files):
        return files
    return [files[n * len(files) // limit] for n in range(limit)]


def _folder() -> Path:
    home = Path(
        os.environ.get("SLUICE_BENCH_CORPUS", Path(tempfile.gettempdir()) / "sluice-corpus")
    )
    folder = home / PACKAGE
    if not folder.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as scratch:
            _fetch(Path(scratch))
            unpacked = Path(scratch) / "usr" / "share" / "doc" / PACKAGE / "html"
            shutil.move(str(unpacked), folder)
    return folder


def _fetch(scratch: Path) -> None:
    try:
        subprocess.run(
            ["apt-get", "download", PACKAGE], cwd=scratch, check=True, capture_output=True
        )
        package = next(scratch.glob("*.deb"))
        subprocess.run(["dpkg", "-x", package, "."], cwd=scratch, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError, StopIteration) as error:
        raise NoCorpus(
            f"{PACKAGE} cannot be downloaded here ({error}); run `apt-get update` first, or put "
            f"its pages into $SLUICE_BENCH_CORPUS/{PACKAGE}."
        ) from error
