"""The tutorial works as it is printed, one command after the other, and so does the program of the
page on MCP.

What starts the stack and joins a worker is run by others: `live_stack`, `tests/e2e/generators.py`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT, LiveStack

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LIMIT_S = 240
ELSEWHERE = {"make venv", ". .venv/bin/activate", "sluice up", "sluice worker generate"}


def run(script: str, stack: LiveStack, folder: Path) -> str:
    """What a script prints; the command `sluice` is that of this environment."""
    programs = folder / "bin"
    programs.mkdir()
    for name, arguments in (("sluice", "-P -m cli.main"), ("python", "")):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {arguments} "$@"\n')
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", f"set -eu\n{script}"],
        cwd=folder,
        env={**stack.environment, "PATH": f"{programs}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return done.stdout


def blocks(page: str) -> list[tuple[str, str]]:
    return BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))


def test_the_tutorial_works_as_it_is_printed(stack: LiveStack, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.fail("needs curl") if os.environ.get("CI") else pytest.skip("needs curl")
    of_page = blocks("docs/tutorial.md")
    for language, block in of_page:
        for line in block.splitlines() if language == "console" else []:
            line = line.removeprefix("$ ").partition("#")[0].strip()
            assert any(line.startswith(command) for command in ELSEWHERE), line
    script = "\n".join(block for language, block in of_page if language == "sh")

    out = run(script, stack, tmp_path)

    assert "We close at six" in out or "On Fridays we close at four. [1]" in out
    assert "A pass is valid for two years. [1]" in out
    assert "(documents/passes.md)" in out
    assert "\n30 answers.jsonl\n" in out
    with stack.client() as client:
        assert "tutorial" not in [collection.name for collection in client.collections()]


def test_the_program_of_the_page_on_mcp_works(stack: LiveStack, tmp_path: Path) -> None:
    (program,) = [
        block for language, block in blocks("docs/clients/mcp.md") if language == "python"
    ]
    with stack.client() as client:
        program = program.replace("http://127.0.0.1:8000", client.url)
        (tmp_path / "program.py").write_text(program)
        out = run("python program.py", stack, tmp_path)
        client.delete_collection("notes")
    assert out == "1\nWe open at nine. [1]\n"
