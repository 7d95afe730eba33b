"""What a job warns of where texts are longer than the window of its embedding model.

The vector of such a text stands for its beginning alone.
"""

from collections.abc import Callable, Mapping

from workers.retrieval.embed import Embedder

NAMED = 10
"""So many texts or documents are named; of the rest only the number is."""


def cut_query(embedder: Embedder, query: str, *, what: str, warn: Callable[[str], None]) -> None:
    """`what` is what the user calls it: the query, the question."""
    for tokens in embedder.overlong([query], between=_nothing).values():
        warn(
            f"The {what} has {tokens:,} tokens, of which {embedder.name} reads the first "
            f"{embedder.window:,}: what it says after these had no part in the search. Shorten it."
        )


def cut_texts(embedder: Embedder, cut: Mapping[int, int]) -> list[str]:
    """Of an embed job, whose texts are counted from 1."""
    if not cut:
        return []
    named = [f"text {n + 1:,} has {tokens:,}" for n, tokens in list(cut.items())[:NAMED]]
    more = f" and {len(cut) - NAMED:,} more are too long" if len(cut) > NAMED else ""
    return [
        f"{embedder.name} reads the first {embedder.window:,} tokens of a text; "
        f"{', '.join(named)}{more}. Their vectors stand for what was read: divide them, or choose "
        "a model that reads more."
    ]


def _nothing() -> None:
    """A query is one text."""
