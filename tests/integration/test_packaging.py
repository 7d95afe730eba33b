"""Packaging and prose that could drift from the code: pins, settings page, examples, demo."""

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from cli.connection import ClientSettings
from shared.config import Settings
from sluice.sources import SUPPORTED

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ROOT / "examples" / "documents"
OURS = {"sluice", "sluice-client"}
"""The two distributions of this repository, which are on no index."""
EXTRAS = (
    "api", "worker", "hwp", "gpu", "local", "kiwi", "sevenzip", "faiss", "qdrant", "weaviate",
    "milvus", "fastembed", "langchain", "dev",
)  # fmt: skip


def _project() -> dict[str, Any]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project: dict[str, Any] = tomllib.load(file)["project"]
    return project


def _pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def _needed() -> set[str]:
    """All packages that an installation with every extra has, by the installed metadata."""
    project = _project()
    extra_lines = chain.from_iterable(project["optional-dependencies"].values())
    declared = [*project["dependencies"], *extra_lines]
    todo = [(Requirement(line), frozenset({""})) for line in declared]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        requirement, parent_extras = todo.pop()
        name, extras = canonicalize_name(requirement.name), frozenset({"", *requirement.extras})
        marker = requirement.marker
        applies = marker is None or any(marker.evaluate({"extra": e}) for e in parent_extras)
        if not applies or name in OURS or (name, extras) in seen:
            continue
        seen.add((name, extras))
        todo += [(Requirement(line), extras) for line in metadata.requires(name) or ()]
    return {name for name, _ in seen}


def test_the_client_is_a_distribution_of_its_own() -> None:
    with (ROOT / "client" / "pyproject.toml").open("rb") as file:
        client = tomllib.load(file)["project"]
    assert {Requirement(line).name for line in client["dependencies"]} == {"httpx", "pydantic"}
    assert client["version"] == _project()["version"]
    needs = {
        (req := Requirement(line)).name: str(req.specifier) for line in _project()["dependencies"]
    }
    assert needs[client["name"]] == f"=={client['version']}"
    assert metadata.version("sluice-client") == client["version"]
    assert (ROOT / "client" / "sluice" / "py.typed").exists()


def test_the_client_imports_nothing_but_what_it_requires() -> None:
    """httpx itself imports rich and others where they are there."""
    code = (
        "import sys, httpx, pydantic; old = set(sys.modules); import sluice; "
        "print(*(set(sys.modules) - old))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    parts = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    allowed = {"sluice", "httpx", "pydantic", "annotated_types"}  # the last is of pydantic
    assert {part for part in parts if not part.startswith("_")} <= allowed
    assert "sluice" in parts


def test_constraints_pin_by_version_alone() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.!]*|#.*|", line), line
    assert _pins()["torch"] == "2.13.0", "without a local version, so that any build satisfies it"


def test_constraints_pin_everything_that_gets_installed() -> None:
    # setuptools comes with the virtual environment, or else at torch's wish. CUDA's packages come
    # with a torch that is built for it, which pins them itself.
    elsewhere = ("setuptools", "nvidia-", "cuda-", "triton")
    missing = sorted(_needed() - _pins().keys())
    assert [name for name in missing if not name.startswith(elsewhere)] == []


def test_every_pin_can_be_installed_on_the_lowest_python() -> None:
    lowest = _project()["requires-python"].removeprefix(">=")
    needed = {
        name: str(metadata.metadata(name).json.get("requires_python", "")) for name in _needed()
    }
    too_new = {name: spec for name, spec in needed.items() if lowest not in SpecifierSet(spec)}
    assert too_new == {}


def test_api_installs_no_models_and_the_extras_are_those_documented() -> None:
    extras = _project()["optional-dependencies"]
    assert set(extras) == set(EXTRAS)
    names = {canonicalize_name(Requirement(line).name) for line in extras["api"]}
    assert not names & {"torch", "transformers", "sentence-transformers", "chromadb", "sluice"}


def _settings_page() -> dict[str, str]:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(SLUICE_\w+)` \| (.+?) \| (.+) \|$", text, re.MULTILINE)
    names = [name for name, _, _ in rows]
    assert len(names) == len(set(names)), "a setting is listed twice"
    return {name: default for name, default, _ in rows}


def _shown(default: object) -> str:
    if default is None or default is PydanticUndefined:
        return "not set"
    if default in ({}, ()):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, float):
        return f"`{default:g}`"
    assert not isinstance(default, SecretStr), "secrets have no default"
    return f"`{default}`"


def test_settings_page_lists_every_setting_with_its_default() -> None:
    fields = {**ClientSettings.model_fields, **Settings.model_fields}
    expected = {f"SLUICE_{name.upper()}": _shown(field.default) for name, field in fields.items()}
    assert _settings_page() == expected


def test_examples_are_of_every_kind_and_readable() -> None:
    files = sorted(DOCUMENTS.iterdir())
    assert len(files) >= 12
    suffixes = {file.suffix for file in files}
    assert suffixes == {".md", ".txt", ".html", ".csv", ".jsonl"}
    assert suffixes <= SUPPORTED
    assert all(file.read_text(encoding="utf-8").strip() for file in files)


def _example_rows() -> list[tuple[str, str, str]]:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^\| (.+\?) \| (.+?) \| `(.+)` \|$", text, re.MULTILINE)


def test_examples_page_asks_in_both_languages_and_names_every_document() -> None:
    korean = [question for question, _, _ in _example_rows() if re.search("[가-힣]", question)]
    assert len(korean) == 6
    assert len(_example_rows()) == 12
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{file.name}`" in text for file in DOCUMENTS.iterdir())


@pytest.mark.parametrize(("question", "answer", "name"), _example_rows())
def test_examples_hold_the_answers_and_in_one_place_only(
    question: str, answer: str, name: str
) -> None:
    text = " ".join((DOCUMENTS / name).read_text(encoding="utf-8").split())
    assert text.count(answer) == 1, f"{question}: {answer!r} is not in {name} once"


def test_demo_asks_what_the_examples_page_answers() -> None:
    demo = (ROOT / "examples" / "demo.py").read_text(encoding="utf-8")
    questions = [question for question, _, _ in _example_rows() if f'"{question}"' in demo]
    assert len(questions) == 2
    assert len([question for question in questions if re.search("[가-힣]", question)]) == 1


def test_scripts_can_be_run() -> None:
    for name in (".ci/run", "deploy/preflight.sh"):
        assert (ROOT / name).stat().st_mode & 0o111, f"{name} is not executable"


def test_makefile_has_the_documented_targets() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", text, re.MULTILINE))
    assert {"demo", "test", "up", "lint", "bench", "venv"} <= targets
    recipe = text.partition("\ntest:")[2].partition("\n\n")[0]
    run = set(re.findall(r"tests/(\w+)", recipe))
    tiers = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert run == tiers, "`make test` runs every folder of tests"


def _preflight(python: str | Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = ["sh", ROOT / "deploy" / "preflight.sh", "before", python]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_preflight_accepts_this_python() -> None:
    assert _preflight(sys.executable).returncode == 0


def test_preflight_says_that_python_is_missing_or_old(tmp_path: Path) -> None:
    missing = _preflight(tmp_path / "python3")
    assert missing.returncode == 1
    assert "Python 3.11 or newer" in missing.stderr

    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.10.4 || exit 1\n')
    old.chmod(0o755)
    assert _preflight(old).returncode == 1
    assert "is Python 3.10.4" in _preflight(old).stderr
