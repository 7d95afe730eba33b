"""Where models run, how much memory is left there, and what an exception of a forward pass means
for the requests in it.
"""

import ctypes
import sys
from pathlib import Path

import torch

# What this machine's processor is good at. Imports no torch: supervisors ask as well.


def cpu_is_fast_in_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively; elsewhere it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


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


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of the processor's allocator, which raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "DefaultCPUAllocator" in text or "can't allocate memory" in text
    )


def is_fatal(error: BaseException) -> bool:
    """Whether no further work on the device can succeed in this process."""
    if isinstance(error, torch.AcceleratorError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "CUDA error" in text or "device-side assert" in text
    )
