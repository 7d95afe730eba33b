"""Architecture is executable: style, types and import contracts are tests."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CHECKS = {
    "lint": [sys.executable, "-m", "ruff", "check", "--no-cache", "."],
    "format": [sys.executable, "-m", "ruff", "format", "--no-cache", "--check", "."],
    "types": [sys.executable, "-m", "mypy"],
    "import contracts": [
        sys.executable,
        "-c",
        "from importlinter.cli import lint_imports_command; lint_imports_command()",
    ],
}


@pytest.mark.parametrize("name", CHECKS)
def test_check_passes(name: str) -> None:
    done = subprocess.run(CHECKS[name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("api.app", ("torch", "transformers", "chromadb", "langchain_core", "workers", "cli")),
        ("cli.main", ("torch", "transformers", "chromadb", "langchain_core", "workers", "api")),
        ("sluice", ("sqlalchemy", "celery", "workers", "api", "cli", "shared")),
        ("workers.generation.chat", ("torch", "transformers", "chromadb")),
        ("workers.ingest.steps", ("torch", "transformers", "chromadb")),
        ("workers.sweep", ("torch", "transformers", "chromadb")),
    ],
)
def test_importing_a_part_loads_nothing_that_it_must_not_have(
    module: str, forbidden: tuple[str, ...]
) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({forbidden!r})))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
