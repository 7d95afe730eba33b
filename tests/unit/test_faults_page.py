"""The page of faults names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "faults.md"
NAMED = re.compile(r"(tests/[\w/]+\.py)|::(\w+)")
LEAST_ROWS = 150


def test_every_test_that_the_page_names_is_there() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > LEAST_ROWS
    missing = []
    for row in rows:
        source = ""
        for path, name in NAMED.findall(row):
            if path:
                source = (ROOT / path).read_text() if (ROOT / path).exists() else ""
            if not source or (name and not re.search(rf"\b(def|class) {name}\b", source)):
                missing.append(path or name)
    assert missing == []
