"""The GPUs of this machine, as the NVIDIA driver's own program lists them: no torch in here."""

import os
import shutil
import subprocess

_TIMEOUT_S = 20
"""A driver that sleeps takes seconds to answer the first time."""


def cuda_devices() -> int:
    """How many CUDA devices processes of this one see; 0 where the driver is not there."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        told = subprocess.run(
            [program, "-L"], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in told.stdout.splitlines())
