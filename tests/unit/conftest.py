"""Unit tests need no library of models: what their collection imports is noted, and tested."""

import sys
from collections.abc import Generator

import pytest

MODEL_LIBRARIES = frozenset({"torch", "transformers", "chromadb", "sentence_transformers"})
IMPORTED_BEFORE = pytest.StashKey[frozenset[str]]()
IMPORTED = pytest.StashKey[frozenset[str]]()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Of modules of this folder; other tiers import those libraries, and may have done before."""
    stash = collector.config.stash
    is_unit = isinstance(collector, pytest.Module) and collector.path.is_relative_to(
        __file__.rpartition("/")[0]
    )
    if is_unit:
        stash.setdefault(IMPORTED_BEFORE, MODEL_LIBRARIES & sys.modules.keys())
    report = yield
    if is_unit:
        stash[IMPORTED] = MODEL_LIBRARIES & sys.modules.keys()
    return report
