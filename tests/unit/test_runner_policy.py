"""Backoff: grows by doubling up to its cap, with jitter on its upper half."""

from itertools import pairwise
from statistics import mean
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import Settings
from shared.jobs.claims import Claim
from workers.attempts import retry


def settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, **changes)


@given(
    attempt=st.integers(1, 10_000),
    base_s=st.floats(0.001, 10),
    cap_s=st.floats(0.001, 1000),
)
def test_a_delay_lies_in_the_upper_half_of_its_limit(
    attempt: int, base_s: float, cap_s: float
) -> None:
    limit = min(cap_s, base_s * 2 ** min(attempt - 1, 30))

    delay = retry.backoff_s(settings(retry_base_s=base_s, retry_cap_s=cap_s), attempt)

    assert limit / 2 <= delay <= limit * (1 + 1e-9)


def test_delays_grow_until_the_cap_and_are_not_all_alike() -> None:
    of = settings(retry_base_s=1, retry_cap_s=60)
    drawn = [[retry.backoff_s(of, attempt) for _ in range(200)] for attempt in range(1, 12)]

    means = [mean(delays) for delays in drawn]
    assert all(later > earlier for earlier, later in pairwise(means[:6]))
    assert all(max(delays) <= 60 for delays in drawn)
    assert all(len(set(delays)) > 100 for delays in drawn)
    # The ranges of neighbours touch and do not overlap: a retry never comes sooner than the last.
    assert all(max(earlier) <= min(later) for earlier, later in pairwise(drawn[:6]))


@pytest.mark.parametrize("attempt", [1, 2, 3])
def test_a_lost_worker_is_reported_with_its_attempt_and_a_remedy(attempt: int) -> None:
    claim = Claim(
        step_id=1, job_id=uuid4(), name="ingest.load", queue="ingest", kind="ingest", lane=1,
        fair_key="someone", payload={},
        attempt=attempt, max_attempts=3,
    )  # fmt: skip

    message = retry.lost_worker(claim).message

    assert f"attempt {attempt}" in message
    assert "ingest.load" in message
    assert "log" in message
