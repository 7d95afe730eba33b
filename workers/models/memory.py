"""The memory of a process that holds models: which are kept, and what goes back to the system.

Imports no torch: what only may hold models imports this, too.
"""

import ctypes
import gc
import logging
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

K = TypeVar("K")
M = TypeVar("M")


class Kept(Generic[K, M]):
    """Models in memory, by what they were loaded for; the least recently used are dropped where
    all together are larger than `limit`. For one thread at a time."""

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
        """It stays, even if it is too large alone."""
        self._models[key] = model
        self._drop(self._limit, least=1)

    def make_room(self, size: int) -> None:
        """For a model of that size, before it is loaded."""
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
