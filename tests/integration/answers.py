"""What tests of the API share: a small job to submit, a look at errors and at the storage."""

from pathlib import Path
from typing import Any

import httpx

from shared.config import Settings

EMBED = {"kind": "embed", "input": {"texts": ["a"]}}


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The body of an error, which must be a problem of this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) - {"errors"} == {"type", "title", "status", "detail"}
    assert body["status"] == status
    return body


def stored(settings: Settings) -> list[Path]:
    """The files in the storage."""
    root = Path(settings.storage())
    return [path for path in root.rglob("*") if path.is_file()] if root.exists() else []
