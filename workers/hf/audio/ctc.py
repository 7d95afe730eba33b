"""Speech recognition with models that have a CTC head on raw audio: wav2vec2, HuBERT and their kin.

A row is a window of audio, its output the likeliest token of each frame of the window's own part.
The windows' tokens are joined first, and collapsed and decoded together: no word breaks at a seam.
What comes out is what transformers' pipeline gives for the same windows.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from transformers import AutoModelForCTC, PreTrainedModel, Wav2Vec2CTCTokenizer

from shared.errors import InvalidInput, Permanent
from shared.kinds.hf import SpeechParameters, Task, TaskParameters
from workers.hf.audio.decode import STRIDE_PART, Recordings, Window, aligned, windows
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.models.checkpoints import name_of
from workers.models.load import load_feature_extractor, load_model, load_tokenizer

PADDABLE: Final = frozenset({"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"})
"""Architectures whose masked padding changes nothing, given layer norms in front and no adapter
behind: it was measured. With any other a batch is of rows of equal length."""
CHUNK_LEAST_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class _Recording:
    key: bytes
    windows: Sequence[Window]


class CtcSpeech(LocalTask):
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        extractor: Any,
        tokenizer: Wav2Vec2CTCTokenizer,
        options: Options,
    ) -> None:
        super().__init__(model, options)
        self.extractor = extractor
        self.tokenizer = tokenizer
        self.rate_hz: int = extractor.sampling_rate
        self.frame: int = model.config.inputs_to_logits_ratio
        self.is_paddable = (
            model.config.model_type in PADDABLE
            and model.config.feat_extract_norm == "layer"
            and not getattr(model.config, "add_adapter", False)
        )
        self.recordings = Recordings(rate_hz=self.rate_hz, limit_s=options.audio_limit_s)

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, SpeechParameters)
        _check(parameters)
        key, samples = self.recordings.take(value)
        chunk_s = parameters.chunk_length_s or max(CHUNK_LEAST_S, self.options.audio_chunk_s)
        cut = windows(
            len(samples),
            size=aligned(chunk_s, self.rate_hz, self.frame),
            stride=aligned(chunk_s / STRIDE_PART, self.rate_hz, self.frame),
        )
        rows = [self._row(samples[window.start : window.end]) for window in cut]
        return Prepared(rows=rows, rest=_Recording(key=key, windows=cut))

    def _row(self, samples: np.ndarray) -> Row:
        # Too little for a single frame; silence says no more than it does.
        lacking = self._least_samples - len(samples)
        if lacking > 0:
            samples = np.pad(samples, (0, lacking))
        return Row(
            size=max(1, len(samples) // self.frame),
            data=samples,
            group="" if self.is_paddable else str(len(samples)),
        )

    @property
    def _least_samples(self) -> int:
        """What one frame needs."""
        config, samples = self.model.config, 1
        for kernel, stride in zip(config.conv_kernel[::-1], config.conv_stride[::-1], strict=True):
            samples = (samples - 1) * stride + kernel
        return samples

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        del watch  # One pass through an encoder is not worth watching.
        inputs = self.extractor(
            [row.data for row in rows],
            sampling_rate=self.rate_hz,
            padding=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        values = inputs["input_values"].to(self.model.device, self.model.dtype)
        mask = inputs["attention_mask"].to(self.model.device) if self.is_paddable else None
        with torch.inference_mode():
            ids = self.model(values, attention_mask=mask).logits.argmax(-1).tolist()
        # Frames of padding, of which there may be some in a paddable batch, say nothing.
        return [
            tokens[: self._frames(len(row.data))] if self.is_paddable else tokens
            for tokens, row in zip(ids, rows, strict=True)
        ]

    def _frames(self, samples: int) -> int:
        config = self.model.config
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        assert isinstance(parameters, SpeechParameters)
        recording: _Recording = prepared.rest
        self.recordings.forget(recording.key)
        tokens = list(
            itertools.chain.from_iterable(
                self._own_part(output, window)
                for output, window in zip(outputs, recording.windows, strict=True)
            )
        )
        text = self.tokenizer.decode(tokens)
        if not parameters.return_timestamps:
            return {"text": text}
        return {"text": text, "chunks": self._chunks(tokens, parameters.return_timestamps)}

    def _own_part(self, tokens: Sequence[int], window: Window) -> Sequence[int]:
        """The last window's frames are one or two fewer than its samples promise."""
        end = round(window.size / self.frame) - round(window.right / self.frame)
        return tokens[round(window.left / self.frame) : end]

    def _chunks(self, tokens: Sequence[int], timestamps: bool | str) -> list[dict[str, Any]]:
        of = "char" if timestamps == "char" else "word"
        decoded: Any = self.tokenizer.decode(
            list(tokens), output_char_offsets=of == "char", output_word_offsets=of == "word"
        )
        frame_s = self.frame / self.rate_hz
        return [
            {
                "text": piece[of],
                "timestamp": [
                    float(piece["start_offset"]) * frame_s,
                    float(piece["end_offset"]) * frame_s,
                ],
            }
            for piece in decoded[f"{of}_offsets"]
        ]


def _check(parameters: SpeechParameters) -> None:
    values = parameters.model_dump(exclude_none=True)
    for name in ("language", "task", "generate_kwargs", "generation_parameters"):
        if values.get(name):  # an object of nothing asks for nothing
            raise InvalidInput(
                f"parameters.{name} is for models that generate, such as Whisper; this one writes "
                "down what it hears, frame by frame. Leave it out."
            )
    if parameters.chunk_length_s is not None and parameters.chunk_length_s < CHUNK_LEAST_S:
        raise InvalidInput(
            f"parameters.chunk_length_s is {parameters.chunk_length_s}; {CHUNK_LEAST_S:g} is the "
            "least, and 30 a good choice."
        )


def load(folder: Path, options: Options) -> CtcSpeech:
    model = load_model(AutoModelForCTC, folder, options, task=Task.SPEECH_RECOGNITION)
    extractor = load_feature_extractor(folder, options)
    tokenizer = load_tokenizer(folder, options)
    if extractor.model_input_names[0] != "input_values" or not isinstance(
        tokenizer, Wav2Vec2CTCTokenizer
    ):
        raise Permanent(
            f"{name_of(folder)} is a CTC model of the type {model.config.model_type}, which is not "
            "supported: use one that reads raw audio and has a Wav2Vec2CTCTokenizer (wav2vec2, "
            "HuBERT, WavLM), or Whisper."
        )
    return CtcSpeech(model, extractor, tokenizer, options)
