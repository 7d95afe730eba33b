"""Automatic speech recognition: by a model with a CTC head, or by Whisper."""

from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES

from shared.errors import Permanent
from workers.hf.audio import ctc, whisper
from workers.hf.task import LocalTask, Options
from workers.models.checkpoints import name_of, read_config


def load(folder: Path, options: Options) -> LocalTask:
    kind = read_config(folder).get("model_type")
    if kind == "whisper":
        return whisper.load(folder, options)
    # Of a folder without a configuration, loading tells what it lacks.
    if kind is None or kind in MODEL_FOR_CTC_MAPPING_NAMES:
        return ctc.load(folder, options)
    raise Permanent(
        f"{name_of(folder)} is a {kind} model. For speech recognition use Whisper, or a model with "
        "a CTC head on raw audio, such as wav2vec2, HuBERT or WavLM."
    )
