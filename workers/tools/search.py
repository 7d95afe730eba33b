"""The tool `search_collection`: passages of collections as text for a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from shared.kinds.search import Hit
from workers.attempts.process import Process
from workers.fences import code_for, cut_block
from workers.retrieval.search import SearchRequest, search

NOTHING: Final = "Nothing was found."
_BETWEEN: Final = "\n\n"


@dataclass(frozen=True, kw_only=True)
class ShownPassages:
    """Passages as a model reads them, and as they were found."""

    text: str
    hits: Sequence[Hit]


def search_collections(
    process: Process,
    request: SearchRequest,
    *,
    least_score: float | None,
    first: int,
    limit_chars: int,
    check: Callable[[], None],
) -> ShownPassages:
    """Passages with their sources, best first and numbered from `first` on, as many as find room;
    one alone is cut if it is too long. Raises NotFound without the collections.
    """
    hits = search(process, request, check=check).hits[0]
    if least_score is not None:
        hits = [hit for hit in hits if hit.score >= least_score]
    if not hits:
        return ShownPassages(text=NOTHING, hits=())
    code = code_for(text for hit in hits for text in (hit.text, hit.source))
    blocks: list[str] = []
    room = limit_chars
    for number, hit in enumerate(hits, start=first):
        passage = cut_block("passage", code, hit.text, limit_chars, id=number, source=hit.source)
        if blocks and len(passage) > room:
            break
        blocks.append(passage)
        room -= len(passage) + len(_BETWEEN)
    return ShownPassages(text=_BETWEEN.join(blocks), hits=hits[: len(blocks)])
