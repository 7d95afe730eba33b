"""The pages for developers name files and tests that there are.

`test_docs.py` has the pages for users, `test_faults_page.py` the page of faults.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "CONTRIBUTING.md",
    "docs/architecture.md",
    *(f"docs/decisions/{page.name}" for page in sorted((ROOT / "docs/decisions").glob("*.md"))),
]
LEAST_PATHS = 150
LEAST_RECORDS = 8

FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
IN_REPOSITORY = re.compile(
    r"`((?:api|bench|cli|client|deploy|docs|examples|migrations|shared|tests|workers)/[\w./-]*"
    r"|\.ci/run|Makefile|[\w.-]+\.(?:md|toml|txt|yml|yaml)|\.env\.example)"
    r"(?:::(\w+))?`"
)
BENCH = re.compile(r"python -m (bench\.[a-z_.]+[a-z])")
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")


def prose(page: str) -> str:
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def named(page: str) -> list[tuple[str, str]]:
    """The paths in backticks, each with the test behind `::`, or with nothing."""
    return IN_REPOSITORY.findall(prose(page))


def defines(path: str, name: str) -> bool:
    source = (ROOT / path).read_text(encoding="utf-8")
    return re.search(rf"\b(def|class) {name}\b", source) is not None


def test_there_are_paths_to_check() -> None:
    assert sum(len(named(page)) for page in PAGES) >= LEAST_PATHS
    assert len([page for page in PAGES if re.search(r"/\d{4}-", page)]) >= LEAST_RECORDS


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_is_there(page: str) -> None:
    assert [path for path, _ in named(page) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    tests = [(path, name) for path, name in named(page) if name and (ROOT / path).is_file()]
    assert [f"{path}::{name}" for path, name in tests if not defines(path, name)] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    folder = (ROOT / page).parent
    assert [link for link in LINK.findall(prose(page)) if not (folder / link).exists()] == []


def test_every_bench_says_how_it_is_run() -> None:
    benches = [
        path
        for path in (ROOT / "bench").rglob("*.py")
        if path.stem != "__init__" and path.parent.name != "support"
    ]
    assert len(benches) > 8
    for path in benches:
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        command = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        assert f"python -m {command}" in text, f"{path.name} belongs into bench/support"


def test_every_bench_that_is_named_is_there() -> None:
    pages = ["README.md", "Makefile", *PAGES, "docs/performance.md"]
    commands = {name for page in pages for name in BENCH.findall((ROOT / page).read_text("utf-8"))}
    assert len(commands) >= 8
    assert [name for name in commands if not (ROOT / f"{name.replace('.', '/')}.py").exists()] == []


def test_the_index_lists_every_record() -> None:
    folder = ROOT / "docs/decisions"
    records = {page.name for page in folder.glob("[0-9]*.md")}
    assert set(LINK.findall(prose("docs/decisions/README.md"))) >= records
    for name in records:
        text = (folder / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {name[:4]}: ")
        for part in ("Context", "Decision", "Consequences", "Alternatives"):
            assert f"\n## {part}\n" in text, f"{name} has no {part}"


def test_the_annotated_tree_has_every_module_and_no_other() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    tree = page.partition("```text\n")[2].partition("```")[0]
    folders: list[str] = []
    shown: list[str] = []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        assert line.removeprefix(" " * 2 * depth).removeprefix(name).strip(), f"{name}: what is it?"
        del folders[depth:]
        if name.endswith("/"):
            folders.append(name)
        else:
            shown.append("".join(folders) + name)
    there = [
        path.relative_to(ROOT).as_posix()
        for part in ("shared", "api", "workers", "cli", "client/sluice")
        for path in (ROOT / part).rglob("*.py")
        if path.name != "__init__.py"
    ]
    assert sorted(shown) == sorted(there)
