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


MODELS = [
    "torch", "transformers", "sentence_transformers", "chromadb", "langchain", "langchain_core",
    "langchain_community", "langchain_chroma", "langchain_text_splitters",
]  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_check_passes(name: str) -> None:
    done = subprocess.run(CHECKS[name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (["api.app", "api.__main__"], [*MODELS, "workers", "cli"]),
        (["cli.main"], [*MODELS, "workers", "api"]),
        (["sluice"], ["sqlalchemy", "celery", "workers", "api", "cli", "shared"]),
        (["workers.generation.chat", "workers.ingest.steps", "workers.sweep"], MODELS[:4]),
    ],
)
def test_importing_a_part_loads_nothing_that_it_must_not_have(
    modules: list[str], forbidden: list[str]
) -> None:
    """Several parts in one process: what none of them loads, each of them does not load."""
    code = (
        f"import sys, {', '.join(modules)}; print(*sorted(set(sys.modules) & set({forbidden!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []
