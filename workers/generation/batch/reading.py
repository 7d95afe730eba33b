"""How the prompt tokens that one turn reads are shared among the rows that have prompts to read."""

from collections.abc import Sequence

from workers.generation.batch.rows import Row


def shares(rows: Sequence[Row], budget_tokens: int) -> list[tuple[Row, int]]:
    """At most `budget_tokens` in all, in the order of `rows`.

    The oldest gets half of them, so that a long prompt is read however many short ones come; the
    others get theirs in the order of what they lack, so that a short one never waits for a long
    one. What is left goes to the oldest.
    """
    if not rows:
        return []
    oldest = min(rows, key=lambda row: row.age)
    given = {oldest: min(oldest.missing_tokens, -(-budget_tokens // 2))}
    left = budget_tokens - given[oldest]
    others = (row for row in rows if row is not oldest)
    for row in sorted(others, key=lambda row: (row.missing_tokens, row.age)):
        given[row] = min(row.missing_tokens, left)
        left -= given[row]
    given[oldest] = min(oldest.missing_tokens, given[oldest] + left)
    return [(row, given[row]) for row in rows if given[row]]
