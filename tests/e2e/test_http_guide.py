"""Every command of `docs/http.md` works as it is printed, one after the other, on a real stack."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.stack import ROOT, LiveStack

BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
LIMIT_S = 240
# A refusal ends the script, as a reader would stop there.
STRICT = 'set -eux\ncurl() { command curl --fail-with-body "$@"; }\n'


def test_the_guide_works_as_it_is_printed(stack: LiveStack, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.fail("needs curl") if os.environ.get("CI") else pytest.skip("needs curl")
    text = (ROOT / "docs" / "http.md").read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert len(blocks) > 10
    script = STRICT + "\n".join(blocks)
    with stack.client() as client:
        script = script.replace("http://127.0.0.1:8000", client.url)
    script = script.replace("/tmp/meetings.csv", str(tmp_path / "meetings.csv"))
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout[-2000:]
    for said in ("We open at nine. [1]", '"added":2', "event: end", "\n204\n", "sluice_jobs{"):
        assert said in done.stdout, said
    with stack.client() as client:
        client.delete_collection("guide")
