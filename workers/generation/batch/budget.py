"""How much memory the keys and values of requests may take, measured once the model is loaded."""

import os
from pathlib import Path
from typing import Final

import torch

from shared.config import Settings

# On a processor, memory belongs to others as well: more than this only where a setting says so.
CPU_LIMIT_BYTES: Final = 4 * 2**30


def kv_budget_bytes(settings: Settings, device: torch.device) -> int:
    if settings.generation_kv_mib is not None:
        return settings.generation_kv_mib * 2**20
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * settings.generation_kv_fraction)
    return min(CPU_LIMIT_BYTES, int(_available_bytes() * settings.generation_kv_fraction))


def _available_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    except OSError:
        pass
    # Not Linux: half of what there is.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
