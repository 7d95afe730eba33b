"""The tool `search_collection`: passages of a collection as text for a model."""

from typing import Final

from workers.attempts.process import Process
from workers.fences import code_for, cut_block
from workers.retrieval.search import SearchRequest, search

NOTHING: Final = "Nothing was found."
_BETWEEN: Final = "\n\n"


def search_collection(
    process: Process, collection: str, query: str, k: int, *, limit_chars: int
) -> str:
    """Numbered passages with their sources, best first, as many as find room; the first is cut if
    it alone is too long. Raises NotFound without the collection.
    """
    answer = search(process, SearchRequest(collections=[collection], queries=[query], k=k))
    hits = answer.hits[0]
    if not hits:
        return NOTHING
    code = code_for(text for hit in hits for text in (hit.text, hit.source))
    shown: list[str] = []
    room = limit_chars
    for number, hit in enumerate(hits, start=1):
        passage = cut_block("passage", code, hit.text, limit_chars, id=number, source=hit.source)
        if shown and len(passage) > room:
            break
        shown.append(passage)
        room -= len(passage) + len(_BETWEEN)
    return _BETWEEN.join(shown)
