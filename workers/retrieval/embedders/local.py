"""The embedder of Hugging Face models: sentence-transformers in this process, on the CPU.

Texts are batched by length under a token budget, which for texts of mixed lengths is three times as
fast as batches in input order. Vectors are float32 and of length 1, so their dot product is the
cosine similarity. This module uses neither the database nor a store.
"""

import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

from shared.bounds import plain_letters
from shared.config import EmbeddingPrompts, Settings
from shared.errors import Permanent
from shared.hf.sentences import FEATURE_EXTRACTION
from shared.models.embedding_models import canonical, hub_name
from workers.models import locate
from workers.models.checkpoints import SizeLimit
from workers.models.devices import (
    Vectors,
    batches_of,
    cpu_is_fast_in_bfloat16,
    return_freed_blocks,
    unit_of_model,
)
from workers.models.load import LoadOptions, load_sentence_transformer
from workers.retrieval.embedders.prompts import prompts_of

log = logging.getLogger(__name__)

CHARS_PER_TOKEN = 3  # of ASCII
CARD_CHARS = 64 * 1024
MATRYOSHKA_TAG = re.compile(r"^- *(?:loss:)?matryoshka(?:loss)? *$", re.IGNORECASE | re.MULTILINE)
COUNTED_CHARS = 200_000
"""How much text one call tokenizes when tokens are counted; limits the memory."""


class LocalEmbedder:
    """A loaded model."""

    def __init__(
        self,
        name: str,
        model: SentenceTransformer,
        *,
        batch_tokens: int,
        prompts: EmbeddingPrompts = EmbeddingPrompts(),  # noqa: B008  # it is frozen
        can_shorten: bool = False,
    ) -> None:
        self.name = name
        self.can_shorten = can_shorten
        self._model = model.eval()
        self._batch_tokens = batch_tokens
        self._prompts = prompts

    @cached_property
    def dimension(self) -> int:
        size = self._model.get_embedding_dimension()
        assert size is not None
        return size

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        backend = getattr(self._model.tokenizer, "backend_tokenizer", None)
        if backend is None:  # a tokenizer that is written in Python
            return None
        tokenizer = Tokenizer.from_str(backend.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def window(self) -> int | None:
        return self._model.max_seq_length

    @property
    def passage_prompt(self) -> str:
        return self._prompts.passage

    def overlong(self, texts: Sequence[str], *, between: Callable[[], None]) -> dict[int, int]:
        return self._overlong(texts, self._prompts.passage, between)

    def overlong_queries(
        self, texts: Sequence[str], *, between: Callable[[], None]
    ) -> dict[int, int]:
        return self._overlong(texts, self._prompts.query, between)

    def sizes(
        self, texts: Sequence[str], *, is_query: bool, between: Callable[[], None]
    ) -> list[int]:
        prompt = self._prompts.query if is_query else self._prompts.passage
        return self._count_tokens(texts, prompt, between)

    def _overlong(
        self, texts: Sequence[str], prompt: str, between: Callable[[], None]
    ) -> dict[int, int]:
        window = self.window
        if window is None:
            return {}
        sizes = self._count_tokens(texts, prompt, between)
        return {n: size for n, size in enumerate(sizes) if size > window}

    def _count_tokens(
        self, texts: Sequence[str], prompt: str, between: Callable[[], None]
    ) -> list[int]:
        """The number of tokens of each text. This takes about 2 % of the time of encoding."""
        sizes: list[int] = []
        first = 0
        while first < len(texts):
            between()
            end, chars = first + 1, len(texts[first])
            while end < len(texts) and chars + len(texts[end]) <= COUNTED_CHARS:
                chars += len(texts[end])
                end += 1
            sizes += self._sizes([prompt + self._plain(text) for text in texts[first:end]])
            first = end
        return sizes

    @cached_property
    def readable(self) -> int | None:
        if self.window is None:
            return None
        return max(1, self.window - self._sizes([self._prompts.passage])[0])

    def _sizes(self, texts: Sequence[str]) -> list[int]:
        if self.tokenizer is None:
            encoded = self._model.tokenizer(list(texts), truncation=False, verbose=False)
            return [len(ids) for ids in encoded["input_ids"]]
        return [len(encoding) for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        return self._encode(texts, self._prompts.passage, "document", between)

    def encode_queries(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        return self._encode(texts, self._prompts.query, "query", between)

    def _encode(
        self, texts: Sequence[str], prompt: str, task: str, between: Callable[[], None]
    ) -> Vectors:
        """`task` selects the part of a model, if it has different ones for queries and passages."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for batch in self.batches(texts, prompt):
            between()
            return_freed_blocks()
            vectors[batch] = self._vectors([self._plain(texts[n]) for n in batch], prompt, task)
        # In float32, whatever the model computed in: scores are cosines.
        return unit_of_model(vectors, self.name)

    @torch.inference_mode()
    def _vectors(self, texts: list[str], prompt: str, task: str) -> Vectors:
        """The same as `SentenceTransformer.encode` for one batch, without its preparations, which
        take a third of the time for a short text. An empty prompt is passed as well, because the
        model's default prompt would be used otherwise."""
        features = self._model.preprocess(texts, prompt=prompt, task=task)
        embedded = self._model(features, task=task)["sentence_embedding"]
        vectors: Vectors = embedded[:, : self._model.truncate_dim].float().numpy()
        return vectors

    def _plain(self, text: str) -> str:
        return text if self._reads_full_width else plain_letters(text)

    @cached_property
    def _reads_full_width(self) -> bool:
        """Whether the tokenizer treats full-width letters like plain ones. Other tokenizers do not
        know them, so their models get plain letters."""
        tokenizer = self.tokenizer
        return (
            tokenizer is not None and tokenizer.encode("ｗａｙ").ids == tokenizer.encode("way").ids
        )

    def batches(self, texts: Sequence[str], prompt: str = "") -> Iterator[list[int]]:
        """Batches of indices, the longest texts first; each is within the token budget when
        padded."""
        window = self._model.max_seq_length or self._batch_tokens
        more = _tokens(prompt) if prompt else 0
        tokens = [min(window, _tokens(text) + more) for text in texts]
        return batches_of(tokens, lambda: self._batch_tokens)


def _tokens(text: str) -> int:
    """An upper estimate of the tokens of a text. English models spell other scripts out: a Hangul
    syllable, three bytes in UTF-8, takes up to three tokens."""
    return len(text) // CHARS_PER_TOKEN + len(text.encode()) - len(text) + 2


def load(name: str, settings: Settings, check: Callable[[], None]) -> LocalEmbedder:
    """Load a model by the rules of `workers.models.load`. Raises what
    `workers.models.locate.locate` raises, and Permanent if the model cannot be loaded."""
    limit = SizeLimit(settings.embedding_model_limit_mib, "SLUICE_EMBEDDING_MODEL_LIMIT_MIB")
    task = FEATURE_EXTRACTION.name
    folder = locate.locate(hub_name(name), settings, task=task, limit=limit, check=check)
    limit.check(name, locate.size_bytes(folder))
    torch.set_num_threads(settings.embedding_threads)
    options = LoadOptions(
        device=torch.device("cpu"),
        dtype=_dtype(settings.embedding_dtype),
        trust_remote_code=settings.hf_trust_remote_code,
    )
    try:
        model = load_sentence_transformer(folder, options, task=task)
    except Permanent as error:
        where = " (SLUICE_EMBEDDING_MODEL)" if name == canonical(settings.embedding_model) else ""
        raise Permanent(
            f"The embedding model {name!r} cannot be used: {error.message} Put all its files into "
            f"{folder} anew, or name another model{where}."
        ) from error
    prompts = prompts_of(name, folder, settings)
    log.info("embedding model %s loaded (%s), %s", name, options.dtype, prompts)
    return LocalEmbedder(
        name,
        model,
        batch_tokens=settings.embedding_batch_tokens,
        prompts=prompts,
        can_shorten=name in map(canonical, settings.embedding_matryoshka_models)
        or _is_matryoshka(folder),
    )


def _is_matryoshka(folder: Path) -> bool:
    """Whether the model's configuration, or the tags of its card, say that its vectors can be cut
    (Matryoshka training)."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    if isinstance(config, dict) and config.get("matryoshka_dimensions"):
        return True
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as card:
            head = card.read(CARD_CHARS)
    except OSError:
        return False
    return MATRYOSHKA_TAG.search(head) is not None


def _dtype(setting: str) -> torch.dtype:
    if setting == "auto":
        return torch.bfloat16 if cpu_is_fast_in_bfloat16() else torch.float32
    return torch.bfloat16 if setting == "bfloat16" else torch.float32
