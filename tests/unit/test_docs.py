"""What the pages say is so: commands parse, links lead somewhere, files are there, code runs.

The commands of `docs/http.md` are run against a real stack in `tests/e2e/test_http_guide.py`.
"""

import base64
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
from pydantic import TypeAdapter

from api.schemas import JobRequest
from cli.main import run, sluice
from shared.kinds.search import SearchOptions
from workers.webhook import sign

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [
    "README.md",
    "examples/README.md",
    *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md")),
    *(str(p.relative_to(ROOT)) for p in (ROOT / "docs" / "clients").glob("*.md")),
]
SOURCES = ("api", "cli", "client", "shared", "workers", "examples", "deploy", "bench")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(sluice [^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PLACE = re.compile(
    r"`((?:api|bench|cli|client|deploy|docs|examples|migrations|shared|tests|workers)/[\w./-]+)`"
)


OLLAMA = re.compile(
    r"api/(blobs.*|chat|copy|create|delete|embed|embeddings|generate|ps|pull|push|show|tags|version)"
)
"""Paths of that API, not of this repository."""


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def shell_lines(page: str) -> Iterator[str]:
    """The commands of a page's blocks; what ends in a backslash goes on in the next line."""
    for language, block in FENCE.findall(read(page)):
        if language in ("console", "sh", ""):
            for line in block.replace("\\\n", " ").splitlines():
                if language != "console" or line.startswith("$ "):
                    yield line.removeprefix("$ ")


def command_lines() -> Iterator[tuple[str, str]]:
    """Each `sluice …` that a page or a message of the programs names, and where it does."""
    for page in PAGES:
        for line in shell_lines(page):
            for match in re.finditer(r"(?:^|[|;(]\s*|\.venv/bin/|\s)(sluice [^|;)#]*)", line):
                if (
                    not line[: match.start(1)]
                    .rstrip()
                    .endswith(("cd", "-U", "run", "exec", "=", "--username"))
                ):
                    yield page, match[1]
        for text in INLINE.findall(FENCE.sub("", read(page))):
            yield page, text
    for path, command in commands(sluice):
        help_ = (command.help or "").replace("\\\n", " ")
        for line in re.findall(r"^ +(?:.*[|(] ?(?:xargs )?)?(sluice [^)\n]*)", help_, re.MULTILINE):
            yield f"sluice {path} --help", line
    for folder in SOURCES:
        for file in sorted((ROOT / folder).rglob("*.py")):
            text = re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8"))
            for line in INLINE.findall(text):
                yield str(file.relative_to(ROOT)), line


def commands(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    yield path, group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}".strip())
        else:
            yield f"{path} {name}".strip(), command


def words(line: str) -> list[str]:
    """The arguments of a command line, with what stands for something left in its place."""
    text = re.sub(
        r"\{[^{}]*\}",
        "X",
        line.replace("\\|", "|")
        .split(" | ")[0]
        .replace("COMMAND", "jobs")
        .replace("\\|", "|")
        .replace("\\", ""),
    )
    text = re.sub(r"[\[\]…]|\.\.\.", " ", text)
    return [word for word in shlex.split(text, comments=True)[1:] if word not in ("…", "|")]


LINES = sorted({(where, line.strip()) for where, line in command_lines()})


def test_there_are_commands_to_check() -> None:
    assert len(LINES) > 100
    assert {where for where, _ in LINES} >= {"README.md", "docs/cli.md", "client/sluice/errors.py"}


def test_every_command_that_is_named_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for where, line in LINES:
        try:
            arguments = words(line)
        except ValueError as error:
            wrong.append(f"{where}: {line}: {error}")
            continue
        if "X" in arguments[:2]:
            arguments = arguments[: arguments.index("X")]  # the program fills in the command
        code = run([*arguments, "--help"])
        out, err = capsys.readouterr()
        command = next((word for word in arguments if not word.startswith("-")), "")
        if code == 0 and out.startswith("sluice "):
            continue  # the version
        if code != 0 or f"Usage: sluice {command}".rstrip() not in out:
            wrong.append(f"{where}: {line}: {err or out[:80]}")
    assert wrong == []


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", read(page))):
        parts = urlsplit(target)
        if parts.scheme in ("http", "https"):
            continue
        path = (ROOT / page).parent / parts.path if parts.path else ROOT / page
        if not path.exists():
            broken.append(target)
        elif parts.fragment:
            text = FENCE.sub("", path.read_text(encoding="utf-8"))
            headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            if parts.fragment not in {slug(heading) for heading in headings}:
                broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page: str) -> None:
    places = [place for place in PLACE.findall(read(page)) if not OLLAMA.fullmatch(place)]
    assert [place for place in places if not (ROOT / place).exists()] == []


def texts() -> Iterator[Path]:
    for folder in (*SOURCES, "docs", "migrations"):
        yield from (
            p for p in (ROOT / folder).rglob("*") if p.suffix in {".py", ".md", ".sh", ".yml"}
        )
    yield from (
        ROOT / name for name in ("README.md", "Makefile", "docker-compose.yml", ".env.example")
    )


def test_no_text_installs_what_is_another_project() -> None:
    """`sluice` on PyPI is a tool for ZFS."""
    pattern = re.compile(
        r"install\b[^\n`]*[\s'\"]sluice(\[|\s|'|\"|`|$)|sluice\[(api|worker|gpu|local|dev)"
    )
    wrong = [
        str(path.relative_to(ROOT)) for path in texts() if pattern.search(path.read_text("utf-8"))
    ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_python_of_the_pages_compiles(page: str) -> None:
    for language, block in FENCE.findall(read(page)):
        if language == "python":
            compile(block, page, "exec")


@pytest.mark.parametrize(
    "secret", ["plain", "whsec_" + base64.b64encode(b"of many bytes").decode()]
)
def test_the_page_verifies_what_workers_sign(secret: str) -> None:
    blocks = [
        block for language, block in FENCE.findall(read("docs/http.md")) if language == "python"
    ]
    [block] = [block for block in blocks if "is_genuine" in block]
    page: dict[str, object] = {}
    exec(block, page)
    is_genuine = page["is_genuine"]
    assert callable(is_genuine)
    body = '{"type": "job.ended", "data": {"metadata": {"이름": "값"}}}'
    headers = {"webhook-id": "id-1", "webhook-timestamp": "1795730859"}
    headers["webhook-signature"] = sign(secret, "id-1", "1795730859", body)
    assert is_genuine(secret, headers, body.encode())
    assert not is_genuine("other", headers, body.encode())
    assert not is_genuine(secret, headers, body.encode() + b" ")
    old = {**headers, "webhook-timestamp": "1795730860"}
    assert not is_genuine(secret, old, body.encode())


def test_the_json_of_the_pages_is_taken() -> None:
    """Bodies of jobs, as the API reads them, and filters, which stand one a line."""
    jobs: TypeAdapter[Any] = TypeAdapter(JobRequest)
    count = 0
    for page in PAGES:
        for language, block in FENCE.findall(read(page)):
            if language != "json" or "…" in block:
                continue
            if '"kind"' in block and '"input"' in block:
                jobs.validate_json(block)
                count += 1
            elif page == "docs/http.md" and "$" in block:
                for line in block.splitlines():
                    SearchOptions.model_validate({"filter": json.loads(line)})
                    count += 1
    assert count >= 5
