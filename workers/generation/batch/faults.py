"""What an exception of a forward pass means for the requests in it."""

import torch


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
