"""What this machine's processor is good at. Imports no torch: supervisors ask as well."""

from pathlib import Path


def cpu_is_fast_in_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 natively; elsewhere it is slower than float32."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
