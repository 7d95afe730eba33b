"""Train the tiny models and write their checkpoints: `python -m tests.tiny.make [NAME ...]`.

Without names it makes all of them, which takes a minute. Tests never train: they load what lies in
`tests/tiny/checkpoints`. On one machine, with the same versions of the libraries, the same files
come out each time; elsewhere the last digits of the weights may differ.
"""

import argparse
import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny import (
    bart,
    crossencoder,
    distilbert,
    gpt2,
    llama,
    marian,
    mlm,
    ner,
    nli,
    roberta_qa,
    vit,
    wav2vec2,
    whisper,
)
from tests.tiny.manifest import CHECKPOINTS, MANIFEST, hash_of_files, hash_of_sources, read_manifest
from tests.tiny_models import one_thread


@dataclass(frozen=True, kw_only=True)
class Model:
    build: Callable[[Path], None]
    """Trains the model and saves it into a new folder."""
    lessons: Callable[[], object] = tuple
    """Lessons that product code has a part in; the model's own source does not show them."""

    def sources(self) -> str:
        return hash_of_sources(self.build.__module__, self.lessons())


MODELS: Final = {
    "answerer": Model(build=llama.build, lessons=llama.lessons),
    "bart": Model(build=bart.build),
    "crossencoder": Model(build=crossencoder.build),
    "distilbert": Model(build=distilbert.build),
    "gpt2": Model(build=gpt2.build),
    "marian": Model(build=marian.build),
    "mlm": Model(build=mlm.build),
    "ner": Model(build=ner.build),
    "nli": Model(build=nli.build),
    "roberta-qa": Model(build=roberta_qa.build),
    "vit": Model(build=vit.build),
    "wav2vec2": Model(build=wav2vec2.build),
    "wav2vec2-masked": Model(build=wav2vec2.build_masked),
    "whisper": Model(build=whisper.build, lessons=whisper.lessons),
}


def make(name: str) -> dict[str, Any]:
    """Train a model, replace its checkpoint, and return its entry of the manifest."""
    with tempfile.TemporaryDirectory() as unfinished:
        folder = Path(unfinished) / name
        with one_thread():
            MODELS[name].build(folder)
        _halve(folder / "model.safetensors")
        shutil.rmtree(CHECKPOINTS / name, ignore_errors=True)
        shutil.copytree(folder, CHECKPOINTS / name)
    return {
        "sources": MODELS[name].sources(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "files": hash_of_files(CHECKPOINTS / name),
    }


def _halve(weights: Path) -> None:
    """Keep the weights in float16, which takes half the room. `config.json` goes on saying float32:
    that is what a model is loaded in where nobody asks for another type."""
    tensors = {name: tensor.half() for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.tiny.make", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    names = parser.parse_args().names or list(MODELS)
    if unknown := set(names) - set(MODELS):
        parser.error(f"there is no model {', '.join(sorted(unknown))}")
    transformers.logging.disable_progress_bar()
    CHECKPOINTS.mkdir(exist_ok=True)
    for folder in CHECKPOINTS.iterdir():
        if folder.is_dir() and folder.name not in MODELS:
            shutil.rmtree(folder)
    for name in names:
        began = time.monotonic()
        entries = read_manifest() | {name: make(name)}
        entries = {known: entries[known] for known in MODELS if known in entries}
        MANIFEST.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        size = sum(path.stat().st_size for path in (CHECKPOINTS / name).iterdir())
        print(f"{name}: {time.monotonic() - began:.1f} s, {size / 1000:,.0f} kB", flush=True)


if __name__ == "__main__":
    main()
