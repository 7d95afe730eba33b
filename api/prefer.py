"""The header `Prefer: wait=N` (RFC 7240): how long an answer may be held back for a job's end."""

import re
from collections.abc import Sequence

WAIT = re.compile(r'(?:^|[,;])\s*wait\s*=\s*"?(\d{1,9})"?\s*(?=$|[,;])', re.IGNORECASE)


def wait_s(prefer: Sequence[str] | None, *, at_most: float) -> float | None:
    """Seconds to wait; None where the header does not ask for it, or cannot be understood.

    A preference that is not understood is ignored, as the RFC says.
    """
    found = WAIT.search(",".join(prefer or ()))
    return min(float(found[1]), at_most) if found else None


def applied(seconds: float | None) -> dict[str, str]:
    """The answer's header, where the preference was honoured."""
    return {} if seconds is None else {"Preference-Applied": f"wait={seconds:g}"}
