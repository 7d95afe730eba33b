"""The prompts of embedding models: a text that has to stand before each query or each passage.

Without its prompts the vectors of a model are worse, with no error. They are taken from the first
of these that has some:

1. the setting `SLUICE_EMBEDDING_PROMPTS`, by the name under which the model is used;
2. the model's file `config_sentence_transformers.json`, if the model is on this machine;
3. `FAMILIES`, for models that describe their prompts only in the README (E5, BGE), for copies
   without that file, and for models of servers. A family is recognized by the last part of one of
   the model's names: the name under which it is used, that of its snapshot, `_name_or_path` in
   `config.json`, or `base_model` of its card. So a fine-tuned model has the prompts of its base.

A copy with another name and without such an entry is treated as a model without prompts.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from shared.config import EmbeddingPrompts, Settings
from shared.models.embedding_models import canonical
from workers.models.checkpoints import card_of, name_of, read_config, read_object

_WEB_SEARCH: Final = "Given a web search query, retrieve relevant passages that answer the query"
_INSTRUCT: Final = f"Instruct: {_WEB_SEARCH}\nQuery:"
_SENTENCE: Final = "Represent this sentence for searching relevant passages: "

FAMILIES: Final[tuple[tuple[re.Pattern[str], EmbeddingPrompts], ...]] = tuple(
    (re.compile(pattern), EmbeddingPrompts(query=query, passage=passage))
    for pattern, query, passage in (
        # intfloat: "each input text should start with query: or passage:"; the instruct models take
        # an instruction before queries only.
        (r"(?:multilingual-)?e5-[a-z0-9-]+-instruct", f"{_INSTRUCT} ", ""),
        (r"(?:multilingual-|ko-?)?e5(?:-(?:small|base|large).*)?", "query: ", "passage: "),
        # BAAI: an instruction before queries; bge-m3 has none.
        (r"bge-(?:small|base|large)-en(?:-v1\.5)?", _SENTENCE, ""),
        (r"bge-(?:small|base|large)-zh(?:-v1\.5)?", "为这个句子生成表示以用于检索相关文章：", ""),
        (r"snowflake-arctic-embed-(?:m|l)-v2\.0.*|snowflake-arctic-embed2", "query: ", ""),
        (r"snowflake-arctic-embed(?:-(?:xs|s|m|l|m-long|m-v1\.5))?", _SENTENCE, ""),
        (r"mxbai-embed-(?:large|large-v1|xsmall-v1|2d-large-v1)", _SENTENCE, ""),
        (r"nomic-embed-text(?:-v(?:1|1\.5|2-moe))?", "search_query: ", "search_document: "),
        (r"qwen3-embedding(?:-[0-9.]+b)?", _INSTRUCT, ""),
        (r"embeddinggemma(?:-.*)?", "task: search result | query: ", "title: none | text: "),
    )
)

# The names of the two prompts in the files of models.
_QUERY_KEYS: Final = ("query", "Retrieval-query", "retrieval.query")
_PASSAGE_KEYS: Final = (
    "document", "passage", "corpus", "Retrieval-document", "retrieval.passage",
)  # fmt: skip


def prompts_of(reference: str, folder: Path | None, settings: Settings) -> EmbeddingPrompts:
    """The prompts of the model that is used as `reference` and lies in `folder`, if it is not on a
    server; empty ones if it has none. Raises Permanent if one of its files cannot be read."""
    for name, configured in settings.embedding_prompts.items():
        if canonical(name) == canonical(reference):
            return configured
    if folder is not None:
        saved = read_object(folder / "config_sentence_transformers.json").get("prompts")
        if isinstance(saved, Mapping) and (prompts := _saved_prompts(saved)) != EmbeddingPrompts():
            return prompts
    for name in _names(reference, folder):
        last = name.rstrip("/").rpartition("/")[2].partition(":")[0].lower()
        for pattern, prompts in FAMILIES:
            if pattern.fullmatch(last):
                return prompts
    return EmbeddingPrompts()


def _saved_prompts(saved: Mapping[str, Any]) -> EmbeddingPrompts:
    """The first prompts that are not empty: sentence-transformers saves empty ones for models that
    have none."""

    def first(keys: tuple[str, ...]) -> str:
        return next((v for key in keys if isinstance(v := saved.get(key), str) and v), "")

    return EmbeddingPrompts(query=first(_QUERY_KEYS), passage=first(_PASSAGE_KEYS))


def _names(reference: str, folder: Path | None) -> Iterator[str]:
    yield reference
    if folder is None:
        return
    yield name_of(folder)
    path = read_config(folder).get("_name_or_path")
    if isinstance(path, str):
        yield path
    base = card_of(folder).get("base_model")
    yield from (name for name in (base if isinstance(base, list) else [base]) if name)
