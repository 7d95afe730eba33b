"""The tiers of tests are what they are called."""

import pytest

from tests.unit.conftest import IMPORTED, IMPORTED_BEFORE


def test_unit_tests_import_no_model_library(pytestconfig: pytest.Config) -> None:
    if pytestconfig.stash[IMPORTED_BEFORE]:
        pytest.skip("tests of another tier were collected first (`make test` begins with these)")
    assert pytestconfig.stash[IMPORTED] == set()
