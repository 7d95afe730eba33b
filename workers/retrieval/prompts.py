"""The prompts of embedding models: what a model wants to read before a query, and before a passage.

Without them vectors of such a model are worse, and nothing says so. In this order:

1. what the deployer says (`SLUICE_EMBEDDING_PROMPTS`), for the model by the name it is used under;
2. what the model says itself, in `config_sentence_transformers.json`;
3. `FAMILIES`, for models whose repositories say it in their README alone (E5, BGE), and for bare
   copies that lost that file. A family is known by the last part of a name that is in the model's
   files: the name it is used under, that of its snapshot, `_name_or_path` of `config.json`, or
   `base_model` of its card. A model that was trained further thus has the prompts of its base.

A copy that is named otherwise and has no such entry is taken for a model without prompts.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from shared.config import EmbeddingPrompts, Settings
from workers.models.checkpoints import card_of, name_of, read_config, read_object

_WEB_SEARCH: Final = "Given a web search query, retrieve relevant passages that answer the query"
_INSTRUCT: Final = f"Instruct: {_WEB_SEARCH}\nQuery:"
_SENTENCE: Final = "Represent this sentence for searching relevant passages: "

FAMILIES: Final[tuple[tuple[re.Pattern[str], EmbeddingPrompts], ...]] = tuple(
    (re.compile(pattern), EmbeddingPrompts(query=query, passage=passage))
    for pattern, query, passage in (
        # intfloat: "each input text should start with query: or passage:"; instruct ones take an
        # instruction before queries alone.
        (r"(?:multilingual-)?e5-[a-z0-9-]+-instruct", f"{_INSTRUCT} ", ""),
        (r"(?:multilingual-|ko-?)?e5(?:-(?:small|base|large).*)?", "query: ", "passage: "),
        # BAAI: an instruction before queries of retrieval; none for bge-m3.
        (r"bge-(?:small|base|large)-en(?:-v1\.5)?", _SENTENCE, ""),
        (r"bge-(?:small|base|large)-zh(?:-v1\.5)?", "为这个句子生成表示以用于检索相关文章：", ""),
        (r"snowflake-arctic-embed-(?:m|l)-v2\.0.*", "query: ", ""),
        (r"snowflake-arctic-embed-(?:xs|s|m|l|m-long|m-v1\.5)", _SENTENCE, ""),
        (r"mxbai-embed-(?:large-v1|xsmall-v1|2d-large-v1)", _SENTENCE, ""),
        (r"nomic-embed-text-v(?:1|1\.5|2-moe)", "search_query: ", "search_document: "),
        (r"qwen3-embedding-[0-9.]+b", _INSTRUCT, ""),
        (r"embeddinggemma-.*", "task: search result | query: ", "title: none | text: "),
    )
)

# The names that models' own files give to these two prompts.
_QUERY_KEYS: Final = ("query", "Retrieval-query", "retrieval.query")
_PASSAGE_KEYS: Final = (
    "document", "passage", "corpus", "Retrieval-document", "retrieval.passage",
)  # fmt: skip


def prompts_of(reference: str, folder: Path, settings: Settings) -> EmbeddingPrompts:
    """The prompts of the model that is used as `reference` and lies in `folder`; empty ones where
    it has none. Raises Permanent where a file of it cannot be read."""
    chosen = settings.embedding_prompts.get(reference)
    if chosen is not None:
        return chosen
    saved = read_object(folder / "config_sentence_transformers.json").get("prompts")
    if isinstance(saved, Mapping) and (own := _of_keys(saved)) != EmbeddingPrompts():
        return own
    for name in _names(reference, folder):
        last = name.rstrip("/").rpartition("/")[2].lower()
        for pattern, prompts in FAMILIES:
            if pattern.fullmatch(last):
                return prompts
    return EmbeddingPrompts()


def _of_keys(saved: Mapping[str, Any]) -> EmbeddingPrompts:
    """sentence-transformers saves empty prompts for models that have none, so the first that is
    not empty counts."""

    def first(keys: tuple[str, ...]) -> str:
        return next((v for key in keys if isinstance(v := saved.get(key), str) and v), "")

    return EmbeddingPrompts(query=first(_QUERY_KEYS), passage=first(_PASSAGE_KEYS))


def _names(reference: str, folder: Path) -> Iterator[str]:
    yield reference
    yield name_of(folder)
    path = read_config(folder).get("_name_or_path")
    if isinstance(path, str):
        yield path
    base = card_of(folder).get("base_model")
    yield from (name for name in (base if isinstance(base, list) else [base]) if name)
