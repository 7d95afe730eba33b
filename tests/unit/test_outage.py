"""While a server is away, one caller in a while tries it, and the others do not wait."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from shared.database.transaction import Outage


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_all_is_well_until_something_fails(clock: Clock) -> None:
    outage = Outage(1.0, clock)
    assert [outage.passes() for _ in range(3)] == [True] * 3


def test_one_caller_a_second_tries_and_the_others_do_not(clock: Clock) -> None:
    outage = Outage(1.0, clock)
    outage.begins()
    assert [outage.passes() for _ in range(50)] == [False] * 50
    clock.now += 1.0
    assert [outage.passes() for _ in range(50)] == [True] + [False] * 49
    clock.now += 0.9
    assert not outage.passes()
    clock.now += 0.2
    assert outage.passes()


def test_who_gets_through_ends_it_for_all(clock: Clock) -> None:
    outage = Outage(1.0, clock)
    outage.begins()
    clock.now += 1.0
    assert outage.passes()
    outage.over()
    assert [outage.passes() for _ in range(3)] == [True] * 3


def test_of_many_threads_one_tries(clock: Clock) -> None:
    outage = Outage(1.0, clock)
    outage.begins()
    clock.now += 1.0
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(lambda _: outage.passes(), range(200))) == 1
