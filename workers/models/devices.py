"""Running models: batches of like length, the memory that models take, what the processor is good
at, and what an exception of a forward pass means for the requests in it.

Imports no torch: parts that only may hold models, and supervisors, import this, too.
"""

import ctypes
import gc
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shared.errors import Permanent

log = logging.getLogger(__name__)

K = TypeVar("K")
M = TypeVar("M")
Vectors = NDArray[np.float32]
FloatT = TypeVar("FloatT", np.float32, np.float64)


def batches_of(
    sizes: Sequence[int], budget: Callable[[], int], *, row_limit: int | None = None
) -> Iterator[list[int]]:
    """Indices by falling size, each batch within the budget when padded to its largest.

    What is larger than the budget is a batch by itself. The budget is asked for each time, since
    it may shrink while the batches are run.
    """
    batch: list[int] = []
    for n in sorted(range(len(sizes)), key=lambda n: sizes[n], reverse=True):
        if batch and (len(batch) == row_limit or sizes[batch[0]] * (len(batch) + 1) > budget()):
            yield batch
            batch = []
        batch.append(n)
    if batch:
        yield batch


def unit(vectors: NDArray[FloatT]) -> NDArray[FloatT]:
    """Rows of length 1; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[FloatT] = vectors / lengths.clip(min=1e-12)
    return scaled


def lengths_of(vectors: Vectors) -> NDArray[np.float64]:
    """Of each row; in 64 bits, in which squares of 32 neither overflow nor vanish."""
    lengths: NDArray[np.float64] = np.sqrt(
        np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    )
    return lengths


def require_finite(vectors: NDArray[FloatT], model: str) -> None:
    """Raises Permanent for vectors that no search could compare."""
    if not np.isfinite(vectors).all():
        raise Permanent(
            f"{model} returned NaN or infinity in a vector. Set SLUICE_EMBEDDING_DTYPE=float32, or "
            "use another model."
        )


def unit_of_model(vectors: NDArray[FloatT], model: str) -> NDArray[FloatT]:
    """As `unit`. Raises Permanent as `require_finite` does."""
    require_finite(vectors, model)
    return unit(vectors)


class RecentlyUsed(Generic[K, M]):
    """Models in memory by a key. The least recently used are dropped while all together are larger
    than `limit`. For one thread at a time."""

    def __init__(self, limit: int, size: Callable[[M], int] = lambda _: 1) -> None:
        self._limit = limit
        self._size = size
        self._models: OrderedDict[K, M] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def get(self, key: K) -> M | None:
        model = self._models.get(key)
        if model is not None:
            self._models.move_to_end(key)
        return model

    def add(self, key: K, model: M) -> None:
        """Keep a model, and drop others to make room; it is kept even if it is larger than
        `limit`."""
        self._models[key] = model
        self._drop(self._limit, least=1)

    def make_room(self, size: int) -> None:
        """Drop models so that one of this size can be loaded."""
        self._drop(self._limit - size, least=0)

    def _drop(self, limit: int, *, least: int) -> None:
        while len(self._models) > least and sum(map(self._size, self._models.values())) > limit:
            key, model = self._models.popitem(last=False)
            del model
            gc.collect()
            return_freed_blocks()
            torch = sys.modules.get("torch")  # loaded by a model, if it is
            if torch is not None and torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.info("model %s dropped to make room", key)


# Keeps a worker's memory level: freed blocks go back to the system between batches.
#
# glibc keeps them in a heap that batches of ever other lengths leave full of holes; the peak
# of an embedding process grew by a third over ten times the documents. Returning them costs a
# few percent of the speed (fixed limits for large blocks, `mallopt`, cost a quarter).
# Elsewhere than with glibc nothing is done.


def return_freed_blocks() -> bool:
    """Whether any memory went back to the system."""
    if sys.platform != "linux":
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))


def cpu_is_fast_in_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively; elsewhere it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the processor's allocator, which raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or _is_of_torch(error, "OutOfMemoryError"):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "can't allocate memory" in text
    )


def is_fatal(error: BaseException) -> bool:
    """Whether no further work on the device can succeed in this process."""
    if _is_of_torch(error, "AcceleratorError"):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "CUDA error" in text or "device-side assert" in text
    )


def _is_of_torch(error: BaseException, name: str) -> bool:
    torch = sys.modules.get("torch")  # loaded by the model whose error it is, if it is one's
    return torch is not None and isinstance(error, getattr(torch, name))
