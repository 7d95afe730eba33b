"""Speech in any format, rate and number of channels is the same text; which models can be loaded,
which can share a padded batch, and what is kept of long recordings."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from transformers import (
    HubertConfig,
    HubertForCTC,
    PreTrainedModel,
    SEWConfig,
    SEWForCTC,
    UniSpeechConfig,
    UniSpeechForCTC,
    UniSpeechSatConfig,
    UniSpeechSatForCTC,
    Wav2Vec2Config,
    Wav2Vec2ConformerConfig,
    Wav2Vec2ConformerForCTC,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForCTC,
)

from shared.errors import Permanent
from shared.kinds.hf import Task, parse_parameters
from tests.models.hf_tasks import OPTIONS
from tests.tiny import wav2vec2
from tests.tiny.voice import speak
from tests.tiny_models import one_thread
from workers.hf.audio import Recordings
from workers.hf.task import UNWATCHED
from workers.hf.tasks import speech
from workers.hf.tasks.speech import CtcSpeech

SAID = "HELLO SHORT NOTES IN THE HALL"
PARAMETERS = parse_parameters(Task("automatic-speech-recognition"), {})
FORMATS = [
    ("WAV", "PCM_16", (8_000, 22_050, 44_100, 48_000)),
    ("WAV", "ULAW", (8_000,)),
    ("FLAC", "PCM_24", (8_000, 22_050, 44_100, 48_000)),
    ("MP3", "MPEG_LAYER_III", (8_000, 22_050, 44_100, 48_000)),
    ("OGG", "VORBIS", (8_000, 22_050, 44_100, 48_000)),
    ("OGG", "OPUS", (8_000, 48_000)),
]
SIZES: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (32, 32),
    "conv_kernel": (80, 40),
    "conv_stride": (16, 20),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.5,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def listener() -> CtcSpeech:
    task = speech.load_speech_recognition(wav2vec2.folder(), OPTIONS)
    assert isinstance(task, CtcSpeech)
    return task


def encoded(
    samples: Any, rate: int = 16_000, format_: str = "WAV", subtype: str | None = None
) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=format_, subtype=subtype)
    return out.getvalue()


@pytest.mark.parametrize(("format_", "subtype", "rates"), FORMATS)
def test_the_text_is_right_in_every_format(
    listener: CtcSpeech, format_: str, subtype: str, rates: tuple[int, ...]
) -> None:
    for rate in rates:
        mono = speak(SAID, rate)
        for samples in (mono, np.stack([mono, mono / 4], axis=1)):
            prepared = listener.prepare(encoded(samples, rate, format_, subtype), PARAMETERS)
            outputs = listener.run(prepared.rows, UNWATCHED)
            assert listener.finish(prepared, outputs, PARAMETERS) == {"text": SAID}, rate


# torch's own: of how WavLM hands over its masks.
@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")
@pytest.mark.parametrize(
    ("config", "kind", "more", "is_padded"),
    [
        (Wav2Vec2Config, Wav2Vec2ForCTC, {"do_stable_layer_norm": True}, True),
        (Wav2Vec2Config, Wav2Vec2ForCTC, {}, True),
        (HubertConfig, HubertForCTC, {"do_stable_layer_norm": True}, True),
        (WavLMConfig, WavLMForCTC, {}, True),
        (UniSpeechConfig, UniSpeechForCTC, {}, True),
        (UniSpeechSatConfig, UniSpeechSatForCTC, {}, True),
        (Wav2Vec2Config, Wav2Vec2ForCTC, {"feat_extract_norm": "group"}, False),
        (Wav2Vec2Config, Wav2Vec2ForCTC, {"add_adapter": True}, False),
        (Wav2Vec2ConformerConfig, Wav2Vec2ConformerForCTC, {}, False),
        (SEWConfig, SEWForCTC, {"squeeze_factor": 2}, False),
    ],
)
def test_rows_of_a_batch_are_what_they_are_alone(
    listener: CtcSpeech, config: Any, kind: Any, more: dict[str, Any], is_padded: bool
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = {**SIZES, "feat_extract_norm": "layer", **more}
        model: PreTrainedModel = kind(config(**settings)).eval()
    task = CtcSpeech(model, listener.extractor, listener.tokenizer, OPTIONS)
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)
    rows = [
        task.prepare(encoded(noise[:size]), PARAMETERS).rows[0] for size in (16_000, 9_000, 5_000)
    ]
    assert len({row.group for row in rows}) == (1 if is_padded else 3)
    if is_padded:
        assert task.run(rows, UNWATCHED) == [task.run([row], UNWATCHED)[0] for row in rows]


@pytest.mark.parametrize("kind", ["moonshine", "speech_to_text", "bert"])
def test_models_of_other_kinds_are_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(Permanent, match=f"a {kind} model"):
        speech.load_speech_recognition(tmp_path, OPTIONS)


def test_a_recording_is_decoded_once_until_it_is_done_with() -> None:
    recordings = Recordings(rate_hz=16_000, limit_s=5)
    files = [encoded(np.full(2 * 16_000, level, np.float32)) for level in (0.1, 0.2, 0.3)]
    taken = [recordings.take(data) for data in files[:2]]
    assert all(
        recordings.take(data)[1] is samples
        for data, (_, samples) in zip(files, taken, strict=False)
    )
    recordings.forget(taken[1][0])
    assert recordings.take(files[1])[1] is not taken[1][1]


def test_no_more_is_kept_than_one_recording_may_be() -> None:
    recordings = Recordings(rate_hz=16_000, limit_s=5)
    files = [encoded(np.full(2 * 16_000, level, np.float32)) for level in (0.1, 0.2, 0.3)]
    first, second, _ = [recordings.take(data)[1] for data in files]
    assert recordings.take(files[1])[1] is second
    assert recordings.take(files[0])[1] is not first
