"""Models that stand still or break where a test says: the tiny model, with code in the checkpoint.

Files beside the checkpoint say what a forward pass does. It is loaded as any checkpoint with code
is, with SLUICE_GENERATION_TRUST_REMOTE_CODE.
"""

import json
import shutil
from pathlib import Path

from tests.e2e.processes import until

CODE = """
import time
from pathlib import Path

from transformers import LlamaForCausalLM


class ScriptedLlama(LlamaForCausalLM):
    passes = 0
    passes_left = None

    def forward(self, *args, **kwargs):
        folder = Path(self.config.script_folder)
        ScriptedLlama.passes += 1
        if ScriptedLlama.passes > self.config.break_after and (folder / "break").exists():
            raise RuntimeError("CUDA error: device-side assert triggered")
        self._hold(folder)
        return super().forward(*args, **kwargs)

    def _hold(self, folder):
        hold = folder / "hold"
        if not hold.exists():
            ScriptedLlama.passes_left = None
            return
        if ScriptedLlama.passes_left is None:
            ScriptedLlama.passes_left = int(hold.read_text())
        if ScriptedLlama.passes_left > 0:
            ScriptedLlama.passes_left -= 1
            return
        (folder / "held").touch()
        while hold.exists():
            time.sleep(0.01)
        (folder / "held").unlink()
"""
PASSES_BEFORE_BREAK = 40
"""Enough to load, and to be in the middle of a long answer."""


class ScriptedModel:
    """A checkpoint in `folder`, made of the one in `source`."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.path = folder / "model"
        self.reference = f"hf/{self.path}"
        self._folder = folder
        shutil.copytree(source, self.path)
        (self.path / "modeling_scripted.py").write_text(CODE)
        config_path = self.path / "config.json"
        config = json.loads(config_path.read_text()) | {
            "architectures": ["ScriptedLlama"],
            "auto_map": {"AutoModelForCausalLM": "modeling_scripted.ScriptedLlama"},
            "script_folder": str(folder),
            "break_after": PASSES_BEFORE_BREAK,
        }
        config_path.write_text(json.dumps(config))

    def break_down(self) -> None:
        """From some passes on, every forward pass fails as CUDA does for the whole process."""
        (self._folder / "break").touch()

    def mend(self) -> None:
        (self._folder / "break").unlink()

    def hold(self, after_passes: int) -> None:
        """Let so many more forward passes through, and then none until `release`."""
        (self._folder / "hold").write_text(str(after_passes))

    def until_held(self) -> None:
        until((self._folder / "held").exists, "the model stands still")

    def release(self) -> None:
        (self._folder / "hold").unlink(missing_ok=True)
        (self._folder / "held").unlink(missing_ok=True)  # of a worker that was killed there
