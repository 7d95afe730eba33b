"""The embedder of ONNX models (`fastembed/...`): the library fastembed in this process, on the CPU.

A model is one that fastembed lists, downloaded from the hub into the hub's cache, or a folder below
the folders of models. Files are downloaded here, because fastembed itself would retry for minutes
if the hub is away.
"""

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from billiard.exceptions import SoftTimeLimitExceeded
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from tokenizers import Tokenizer

from shared.config import EmbeddingPrompts, Settings
from shared.errors import ModelNotFound, Permanent, SluiceError, Unavailable
from shared.models.embedding_models import canonical
from workers.models import locate
from workers.models.checkpoints import SizeLimit, read_object
from workers.models.devices import Vectors, batches_of, unit_of_model
from workers.models.hub_session import guard_hub
from workers.retrieval.embedders.prompts import prompts_of

if TYPE_CHECKING:
    from fastembed import TextEmbedding

GIB: Final = 2**30
PROBE: Final = "a"
MODEL_FILES: Final = ("model.onnx", "onnx/model.onnx", "model_optimized.onnx")
"""Where the model may be in a folder; the first that exists counts."""
TOKENIZER_FILES: Final = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
)  # fmt: skip
FOLDER_MARK: Final = "folder:"


class FastEmbedder:
    """A loaded model. Texts are batched by length, within a token budget."""

    def __init__(
        self,
        name: str,
        model: "TextEmbedding",
        *,
        batch_tokens: int,
        prompts: EmbeddingPrompts,
        can_shorten: bool = False,
    ) -> None:
        self.name = name
        self.can_shorten = can_shorten
        self._model = model
        self._batch_tokens = batch_tokens
        self._prompts = prompts
        self.dimension = len(next(iter(model.passage_embed([PROBE]))))

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        own = self._own_tokenizer
        if own is None:
            return None
        tokenizer = Tokenizer.from_str(own.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def _own_tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, which truncates and pads."""
        return getattr(self._model.model, "tokenizer", None)

    @cached_property
    def window(self) -> int | None:
        own = self._own_tokenizer
        truncation = own.truncation if own is not None else None
        return int(truncation["max_length"]) if truncation else None

    @cached_property
    def readable(self) -> int | None:
        if self.window is None:
            return None
        [prompt] = self._count([self._prompts.passage])
        return max(1, self.window - prompt)

    @property
    def passage_prompt(self) -> str:
        return self._prompts.passage

    def sizes(
        self, texts: Sequence[str], *, is_query: bool, between: Callable[[], None]
    ) -> list[int]:
        prompt = self._prompts.query if is_query else self._prompts.passage
        sizes = []
        for text in texts:
            between()
            sizes += self._count([prompt + text])
        return sizes

    def _count(self, texts: Sequence[str]) -> list[int]:
        if self.tokenizer is None:
            return [len(text.split()) for text in texts]
        return [len(encoding) for encoding in self.tokenizer.encode_batch_fast(list(texts))]

    def overlong(self, texts: Sequence[str], *, between: Callable[[], None]) -> dict[int, int]:
        return self._overlong(self.sizes(texts, is_query=False, between=between))

    def overlong_queries(
        self, texts: Sequence[str], *, between: Callable[[], None]
    ) -> dict[int, int]:
        return self._overlong(self.sizes(texts, is_query=True, between=between))

    def _overlong(self, sizes: Sequence[int]) -> dict[int, int]:
        window = self.window
        if window is None:
            return {}
        return {n: size for n, size in enumerate(sizes) if size > window}

    def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        return self._encode(texts, False, between)

    def encode_queries(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        return self._encode(texts, True, between)

    def _encode(self, texts: Sequence[str], is_query: bool, between: Callable[[], None]) -> Vectors:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        prompt = self._prompts.query if is_query else self._prompts.passage
        embed = self._model.query_embed if is_query else self._model.passage_embed
        window = self.window or self._batch_tokens
        sizes = self.sizes(texts, is_query=is_query, between=between)
        tokens = [min(window, size) for size in sizes]
        for batch in batches_of(tokens, lambda: self._batch_tokens):
            between()
            prompted = [prompt + texts[n] for n in batch]
            vectors[batch] = list(embed(prompted, batch_size=len(batch)))
        return unit_of_model(vectors, self.name)


def load(name: str, settings: Settings, check: Callable[[], None]) -> FastEmbedder:
    """Raises ModelNotFound if there is no such model, also if the hub is away; Permanent if it
    cannot be loaded; and what `workers.models.locate.locate` raises."""
    from fastembed import TextEmbedding

    model = name.partition("/")[2]
    described = _description(model)
    own = locate.own_folder(model, settings)
    folder = own or _fetched(model, described, settings, check)
    limit = SizeLimit(settings.embedding_model_limit_mib, "SLUICE_EMBEDDING_MODEL_LIMIT_MIB")
    limit.check(model, sum(path.stat().st_size for path in folder.rglob("*.onnx*")))
    try:
        if described is None or not (folder / described["model_file"]).is_file():
            listed = _registered(model, folder)
        else:
            listed = described["model"]
        loaded = TextEmbedding(
            listed,
            threads=settings.embedding_threads,
            providers=["CPUExecutionProvider"],
            specific_model_path=str(folder),
        )
        return FastEmbedder(
            name,
            loaded,
            batch_tokens=settings.embedding_batch_tokens,
            prompts=prompts_of(name, folder, settings),
            can_shorten=name in map(canonical, settings.embedding_matryoshka_models),
        )
    except SluiceError:
        raise
    except Exception as error:  # onnxruntime has its own exception for each kind of error
        raise Permanent(
            f"The embedding model {name!r} cannot be used: {error} Put all its files into {folder} "
            "anew, or name another model."
        ) from error


def _description(model: str) -> dict[str, Any] | None:
    """The entry of a model in fastembed's list; None if it is not in it."""
    from fastembed import TextEmbedding

    listed = TextEmbedding.list_supported_models()
    return next((one for one in listed if one["model"].lower() == model.lower()), None)


def _registered(model: str, folder: Path) -> str:
    """The name under which fastembed knows the model of a folder. Raises ModelNotFound if it has no
    ONNX model."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource

    file = next((name for name in MODEL_FILES if (folder / name).is_file()), None)
    if file is None:
        raise ModelNotFound(
            f"The folder {folder} holds no ONNX model: it has none of {', '.join(MODEL_FILES)}."
        )
    listed = f"{FOLDER_MARK}{folder}/{file}"
    if _description(listed) is None:
        TextEmbedding.add_custom_model(
            model=listed,
            pooling=_pooling(folder),
            normalization=True,
            sources=ModelSource(hf=model),
            dim=int(read_object(folder / "config.json").get("hidden_size") or 0),
            model_file=file,
        )
    return listed


def _pooling(folder: Path) -> Any:
    """As saved by sentence-transformers; the mean if nothing is saved."""
    from fastembed.common.model_description import PoolingType

    try:
        saved = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        saved = {}
    if isinstance(saved, dict) and saved.get("pooling_mode_cls_token"):
        return PoolingType.CLS
    if isinstance(saved, dict) and saved.get("pooling_mode_lasttoken"):
        return PoolingType.LAST_TOKEN
    return PoolingType.MEAN


def _fetched(
    model: str, described: dict[str, Any] | None, settings: Settings, check: Callable[[], None]
) -> Path:
    """The snapshot of a listed model in the hub's cache, downloaded if it is not complete there."""
    if described is None:
        raise ModelNotFound(
            f"fastembed has no model {model!r}; its page "
            "https://qdrant.github.io/fastembed/examples/Supported_Models/ lists those that it has."
            f" A model of your own goes into {settings.models_path / model} "
            "(SLUICE_MODELS_FOLDER), with model.onnx and tokenizer.json."
        )
    repository = described["sources"]["hf"]
    files = [described["model_file"], *described["additional_files"], *TOKENIZER_FILES]
    needed = [described["model_file"], *described["additional_files"], "tokenizer.json"]

    def snapshot(*, only_local: bool) -> Path:
        token = settings.hf_token
        return Path(
            snapshot_download(
                repository,
                allow_patterns=files,
                local_files_only=only_local,
                etag_timeout=settings.hub_answer_timeout_s,
                token=token.get_secret_value() if token is not None else None,
            )
        )

    try:
        folder = snapshot(only_local=True)
        if all((folder / name).exists() for name in needed):
            return folder
    except LocalEntryNotFoundError:
        pass
    limit = SizeLimit(settings.embedding_model_limit_mib, "SLUICE_EMBEDDING_MODEL_LIMIT_MIB")
    limit.check(model, int(described["size_in_GB"] * GIB))
    with locate.hub_errors(model, settings, is_known=False):
        if not constants.HF_HUB_OFFLINE:
            limit_s = settings.hub_connect_timeout_s
            locate.check_reachable(constants.ENDPOINT, limit_s=limit_s)
        guard_hub(settings)
        return _waited_for(lambda: snapshot(only_local=False), model, check)


def _waited_for(fetch: Callable[[], Path], model: str, check: Callable[[], None]) -> Path:
    """The result of `fetch`, which runs in a thread so that waiting can be cancelled."""
    outcome: Future[Path] = Future()

    def run() -> None:
        try:
            outcome.set_result(fetch())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, name=f"download of {model}", daemon=True).start()
    try:
        while not wait([outcome], timeout=locate.POLL_S).done:
            check()
    except SoftTimeLimitExceeded:
        raise Unavailable(
            f"{model} is still being downloaded from the hub, which goes on; the job waits for it."
        ) from None
    return outcome.result()
