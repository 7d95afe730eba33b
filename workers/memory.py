"""Keeps a worker's memory level: freed blocks go back to the system between batches.

glibc keeps them in a heap that batches of ever other lengths leave full of holes; the peak of an
embedding process grew by a third over ten times the documents. Returning them costs a few percent
of the speed (fixed limits for large blocks, `mallopt`, cost a quarter). Elsewhere than with glibc
nothing is done.
"""

import ctypes
import sys


def return_freed_blocks() -> bool:
    """Whether any memory went back to the system."""
    if sys.platform != "linux":
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
