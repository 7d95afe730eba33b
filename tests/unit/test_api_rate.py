"""How fast the API reads what nobody wants."""

import pytest

from api.http.server import Rate


def test_a_second_is_free_and_then_the_rate_is_kept() -> None:
    rate = Rate(100)
    assert rate.take(100, now=5.0) == 0
    assert rate.take(50, now=5.0) == pytest.approx(0.5)
    # Another connection at the same time waits behind it.
    assert rate.take(50, now=5.0) == pytest.approx(1.0)
    assert rate.take(0, now=6.0) == 0


def test_more_than_a_second_is_not_saved_up() -> None:
    rate = Rate(100)
    rate.take(0, now=0.0)
    assert rate.take(300, now=1000.0) == pytest.approx(2.0)
