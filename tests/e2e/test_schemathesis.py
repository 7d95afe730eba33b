"""schemathesis over the whole OpenAPI document: what is allowed is taken, what is not is refused,
and every answer is one of those that the document has.

All checks are on; `schemathesis.toml` has the few things that it cannot know. It runs against the
API alone. SLUICE_FUZZ_EXAMPLES (`make fuzz`) makes it look longer, each time elsewhere, at an API
without keys as well, and at limits of any size.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from shared.config import Settings
from shared.database.transaction import Ledger
from tests.api_server import served

SCHEMATHESIS = Path(sys.executable).parent / "schemathesis"
CONFIG = Path(__file__).with_name("schemathesis.toml")
EXAMPLES = os.environ.get("SLUICE_FUZZ_EXAMPLES")
FIXED = ["--max-examples", "4", "--generation-deterministic"]
KEY = "s3cret"
WITHOUT_KEYS: dict[str, SecretStr] = {}
LARGE_LIMIT = 300
"""Limits above it cost megabytes a request; tests/unit has the bounds of each field."""


def without_large_limits(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            key: without_large_limits(value)
            for key, value in schema.items()
            if key not in {"maxLength", "maxItems"} or not isinstance(value, int)
            or value <= LARGE_LIMIT
        }  # fmt: skip
    return [without_large_limits(value) for value in schema] if isinstance(schema, list) else schema


@pytest.mark.timeout(36_000 if EXAMPLES else 300)
@pytest.mark.parametrize(
    "keys", [{"ann": SecretStr(KEY)}, *([WITHOUT_KEYS] if EXAMPLES else [])], ids=len
)
def test_the_api_is_as_its_document_says(
    settings: Settings, ledger: Ledger, tmp_path: Path, keys: dict[str, SecretStr]
) -> None:
    assert ledger is not None
    # Nobody answers here, so that nothing is worth waiting for.
    short = {"compat_wait_s": 0.05, "max_wait_s": 0.05, "sse_poll_s": 0.5, "sse_heartbeat_s": 0.5}
    # One worker: two at once may parse Python source at once, which CPython 3.11 cannot ("AST
    # constructor recursion depth mismatch").
    document = tmp_path / "openapi.json"
    with served(settings.model_copy(update=short | {"api_keys": keys})) as url:
        # Read here: schemathesis waits ten seconds for it, and its making may take longer.
        schema = httpx.get(f"{url}/openapi.json", timeout=120).json()
        document.write_text(json.dumps(schema if EXAMPLES else without_large_limits(schema)))
        run = subprocess.run(
            [
                SCHEMATHESIS, "--config-file", CONFIG, "run", document, "--url", url,
                # The APIs of others are called by their own clients, in tests/integration.
                "--exclude-path-regex", "^/(openai|ollama|tei|mcp)",
                "--checks", "all", "--phases", "examples,coverage,fuzzing", "--workers", "1",
                "--request-timeout", "60", "--continue-on-failure", "--no-color",
                *(["--header", f"Authorization: Bearer {KEY}"] if keys else []),
                *(["--max-examples", EXAMPLES] if EXAMPLES else FIXED),
            ],
            cwd=tmp_path, env=os.environ | {"HYPOTHESIS_STORAGE_DIRECTORY": str(tmp_path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    # Requests are shown whole, and some are large.
    shown = "\n".join(line[:400] for line in run.stdout.splitlines())
    assert run.returncode == 0, shown[-20_000:] + run.stderr[-2000:]
