"""What `sluice doctor` finds out, as data."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Check:
    """What was looked at, what was found, and what to do where that is not right."""

    name: str
    ok: bool
    detail: str
    fix: str = ""
