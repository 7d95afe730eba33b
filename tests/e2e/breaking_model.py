"""A model whose device breaks: the tiny model of the tests, with code of its own in the checkpoint.

While the file `config.fault_path` exists, a forward pass fails as CUDA does for the whole process.
It is loaded as any checkpoint with code is, with SLUICE_GENERATION_TRUST_REMOTE_CODE.
"""

import json
import shutil
from pathlib import Path

CODE = """
from pathlib import Path

from transformers import LlamaForCausalLM


class BreakingLlama(LlamaForCausalLM):
    passes = 0

    def forward(self, *args, **kwargs):
        BreakingLlama.passes += 1
        if BreakingLlama.passes > self.config.fault_after and Path(self.config.fault_path).exists():
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().forward(*args, **kwargs)
"""
PASSES_BEFORE = 40
"""Enough to load, and to be in the middle of a long answer."""


def make_breaking_model(source: Path, folder: Path, fault: Path) -> None:
    shutil.copytree(source, folder)
    (folder / "modeling_breaking.py").write_text(CODE)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {
        "architectures": ["BreakingLlama"],
        "auto_map": {"AutoModelForCausalLM": "modeling_breaking.BreakingLlama"},
        "fault_path": str(fault),
        "fault_after": PASSES_BEFORE,
    }
    path.write_text(json.dumps(config))
    fault.touch()
