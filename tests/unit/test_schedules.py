"""When a schedule is due."""

from datetime import UTC, datetime
from itertools import pairwise

import pytest

from shared.errors import InvalidInput
from shared.jobs.schedules import next_time


def moments(cron: str, timezone: str, after: str, count: int = 3) -> list[str]:
    moment = datetime.fromisoformat(after).replace(tzinfo=UTC)
    written = []
    for _ in range(count):
        following = next_time(cron, timezone, moment)
        assert following is not None
        assert following > moment
        moment = following
        written.append(f"{moment:%m-%d %H:%M}")
    return written


@pytest.mark.parametrize(
    ("cron", "timezone", "after", "expected"),
    [
        (
            "0 6 * * MON-FRI",
            "Asia/Seoul",
            "2026-11-26 22:00",
            ["11-29 21:00", "11-30 21:00", "12-01 21:00"],
        ),
        ("*/15 * * * *", "UTC", "2026-11-27 10:07", ["11-27 10:15", "11-27 10:30", "11-27 10:45"]),
        ("@hourly", "UTC", "2026-11-27 10:00", ["11-27 11:00", "11-27 12:00", "11-27 13:00"]),
        (
            " @Daily ",
            "Europe/Berlin",
            "2026-11-27 10:00",
            ["11-27 23:00", "11-28 23:00", "11-29 23:00"],
        ),
        ("0 0 L * *", "UTC", "2026-01-31 00:00", ["02-28 00:00", "03-31 00:00", "04-30 00:00"]),
        ("0 9 * * 1#1", "UTC", "2026-11-27 10:00", ["12-07 09:00", "01-04 09:00", "02-01 09:00"]),
        ("0 0 29 2 *", "UTC", "2026-11-27 10:00", ["02-29 00:00", "02-29 00:00", "02-29 00:00"]),
        # The clock goes from 2 to 3 on March 29, and from 3 to 2 on October 25.
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28 00:00",
            ["03-28 01:30", "03-29 01:00", "03-30 00:30"],
        ),
        (
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24 00:00",
            ["10-24 00:30", "10-25 00:30", "10-26 01:30"],
        ),
    ],
)
def test_moments_of_expressions(cron: str, timezone: str, after: str, expected: list[str]) -> None:
    assert moments(cron, timezone, after) == expected


@pytest.mark.parametrize("timezone", ["UTC", "Europe/Berlin", "America/St_Johns", "Asia/Seoul"])
def test_an_hourly_schedule_is_due_each_hour_of_the_year(timezone: str) -> None:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    seen = [moment]
    for _ in range(24 * 365):
        following = next_time("@hourly", timezone, seen[-1])
        assert following is not None
        seen.append(following)
    gaps = {(b - a).total_seconds() for a, b in pairwise(seen[1:])}
    assert gaps == {3600}


@pytest.mark.parametrize(
    "cron",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * 30 2 *",
        "a b c d e",
        "*/0 * * * *",
        "@reboot",
        "@every 5m",
        "1-0 * * * *",
        "* * * * 9",
        "\0 * * * *",
        f"{'9' * 5000} * * * *",
        "*/" + "9" * 5000 + " * * * *",
        "0 0 * * 5L/2",
        "0 0 * * 1#1/2",
        "١ * * * *",
    ],
)
def test_what_is_no_expression_is_refused(cron: str) -> None:
    with pytest.raises(InvalidInput, match="cron is"):
        next_time(cron, "UTC", datetime.now(UTC))


@pytest.mark.parametrize(
    "timezone", ["", "Mars/Olympus", "../etc/passwd", "/etc/localtime", "a\0b", "x" * 300]
)
def test_what_is_no_time_zone_is_refused(timezone: str) -> None:
    with pytest.raises(InvalidInput, match="timezone is"):
        next_time("@daily", timezone, datetime.now(UTC))
