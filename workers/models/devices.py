"""Where models run, and what an exception of a forward pass means for the requests in it."""

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
