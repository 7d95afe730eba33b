"""Speech recognition with Whisper.

Audio longer than the model's window is cut into windows that overlap, and their texts are merged
where they agree, as transformers' pipeline does with `chunk_length_s`; the merging is its own. The
other way, Whisper's sequential one, goes on where the last segment ended: no window of it can be
run beside another, nor in another step.

The way of decoding is the model's own (greedy, unless its configuration says otherwise), and what
the caller asks for; the pipeline's default of five beams is not taken over.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from transformers import (
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    WhisperTokenizer,
)

from shared.errors import InvalidInput, Permanent
from shared.hf import Task
from shared.hf_parameters import SpeechParameters, TaskParameters
from workers.hf.audio import Samples
from workers.hf.checkpoints import name_of
from workers.hf.recordings import Recordings
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.weights import load_feature_extractor, load_model, load_tokenizer
from workers.hf.whisper_parameters import Wanted, wanted_of
from workers.hf.windows import STRIDE_PART, Window, aligned, windows

CHUNK_LEAST_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class _Piece:
    samples: Samples
    wanted: Wanted


@dataclass(frozen=True, kw_only=True)
class _Recording:
    key: bytes
    windows: Sequence[Window]
    timestamps: bool | str


class WhisperSpeech(LocalTask):
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, extractor: Any, tokenizer: WhisperTokenizer, options: Options
    ) -> None:
        super().__init__(model, options)
        self.extractor = extractor
        self.tokenizer: Any = tokenizer
        self.rate_hz: int = extractor.sampling_rate
        self.frames: int = model.config.max_source_positions
        self.generation: Any = model.generation_config
        self.attention: str = model.config._attn_implementation
        self.recordings = Recordings(rate_hz=self.rate_hz, limit_s=options.audio_limit_s)

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, SpeechParameters)
        wanted = wanted_of(self.model, parameters)
        chunk_s = self._chunk_s(parameters)
        key, samples = self.recordings.take(value)
        cut = windows(
            len(samples),
            size=aligned(chunk_s, self.rate_hz),
            stride=aligned(chunk_s / STRIDE_PART, self.rate_hz),
        )
        rows = [
            Row(
                size=self.frames * wanted.arguments.copies,
                data=_Piece(samples=samples[window.start : window.end], wanted=wanted),
                group=wanted.group,
            )
            for window in cut
        ]
        rest = _Recording(key=key, windows=cut, timestamps=wanted.timestamps)
        return Prepared(rows=rows, rest=rest, warnings=wanted.arguments.warnings)

    def _chunk_s(self, parameters: SpeechParameters) -> float:
        window_s = self.extractor.n_samples / self.rate_hz
        asked = parameters.chunk_length_s
        if asked is not None and not CHUNK_LEAST_S <= asked <= window_s:
            raise InvalidInput(
                f"parameters.chunk_length_s is {asked:g}; the model's window is {window_s:g} s, "
                f"the least is {CHUNK_LEAST_S:g}."
            )
        return asked or min(window_s, max(CHUNK_LEAST_S, self.options.audio_chunk_s))

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        wanted: Wanted = rows[0].data.wanted
        inputs = self.extractor(
            [row.data.samples for row in rows],
            sampling_rate=self.rate_hz,
            return_attention_mask=True,
            return_tensors="pt",
        )
        generate: Any = self.model.generate
        try:
            with torch.inference_mode(), _dice(self.model.device, wanted):
                found = generate(
                    input_features=inputs["input_features"].to(self.model.device, self.model.dtype),
                    attention_mask=inputs["attention_mask"].to(self.model.device),
                    stopping_criteria=StoppingCriteriaList([_Abandoned(watch)]),
                    **self._generate_arguments(wanted),
                )
        finally:
            if wanted.timestamps == "word":
                # Weights of attention are only there without fused kernels; the next batch is
                # better off with them.
                self.model.set_attn_implementation(self.attention)
        return self._outputs(found)

    def _generate_arguments(self, wanted: Wanted) -> dict[str, Any]:
        settings = {
            name: value
            for name, value in wanted.arguments.settings.items()
            if name != "do_sample" and getattr(self.generation, name, None) != value
        }
        if wanted.arguments.is_sampled:
            # It is by its temperature that Whisper's `generate` knows.
            settings.setdefault("temperature", 1.0)
        if wanted.language is not None:
            settings["language"] = wanted.language
        if wanted.task is not None:
            settings["task"] = wanted.task
        if wanted.timestamps == "word":
            settings |= {"return_token_timestamps": True, "return_segments": True}
        return settings | {"return_timestamps": bool(wanted.timestamps)}

    def _outputs(self, found: Any) -> list[Any]:
        if isinstance(found, torch.Tensor):
            return [{"tokens": self._unpadded(row)} for row in found.tolist()]
        times = [
            [time for segment in segments for time in segment["token_timestamps"].tolist()]
            for segments in found["segments"]
        ]
        return [
            {"tokens": self._unpadded(row), "times": row_times}
            for row, row_times in zip(found["sequences"].tolist(), times, strict=True)
        ]

    def _unpadded(self, tokens: list[int]) -> list[int]:
        while tokens and tokens[-1] == self.generation.pad_token_id:
            tokens.pop()
        return tokens

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        assert isinstance(parameters, SpeechParameters)
        recording: _Recording = prepared.rest
        self.recordings.forget(recording.key)
        heard = []
        for output, window in zip(outputs, recording.windows, strict=True):
            stride = (window.size, window.left, window.right)
            heard.append(
                {
                    "tokens": np.array([output["tokens"]]),
                    "token_timestamps": np.array([output.get("times", [])]),
                    "stride": tuple(samples / self.rate_hz for samples in stride),
                }
            )
        text, extra = self.tokenizer._decode_asr(
            heard,
            return_timestamps=recording.timestamps or None,
            return_language=None,
            time_precision=self.extractor.chunk_length / self.frames,
        )
        if not parameters.return_timestamps:
            return {"text": text}
        end_s = recording.windows[-1].end / self.rate_hz
        return {"text": text, "chunks": list(_chunks(extra["chunks"], end_s))}


class _Abandoned(StoppingCriteria):
    """Ends generation once nobody waits for any of the rows. `generate` takes rows out of the batch
    when they are through, so that none is known here by its place."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        del scores, kwargs
        dropped = self.watch()
        is_over = len(dropped) > 0 and all(dropped)
        over = torch.full((input_ids.shape[0],), is_over, device=input_ids.device)
        return cast(torch.BoolTensor, over)


def _chunks(chunks: Sequence[dict[str, Any]], end_s: float) -> Iterator[dict[str, Any]]:
    """Where the model named no beginning or no end of a segment, as of one that the audio's end
    cuts off, it is that of its neighbour or of the audio."""
    last_s = 0.0
    for chunk in chunks:
        start, end = chunk["timestamp"]
        start_s = last_s if start is None else float(start)
        last_s = max(start_s, end_s) if end is None else float(end)
        yield {"text": chunk["text"], "timestamp": [start_s, last_s]}


@contextmanager
def _dice(device: torch.device, wanted: Wanted) -> Iterator[None]:
    """The process's own generators of random numbers stay as they are."""
    if not wanted.arguments.is_sampled:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(secrets.randbits(63) if wanted.seed is None else wanted.seed)
        yield


def load(folder: Path, options: Options) -> WhisperSpeech:
    model = load_model(AutoModelForSpeechSeq2Seq, folder, options, task=Task.SPEECH_RECOGNITION)
    tokenizer = load_tokenizer(folder, options)
    if not isinstance(tokenizer, WhisperTokenizer):
        raise Permanent(
            f"{name_of(folder)} has a {type(tokenizer).__name__}, not a WhisperTokenizer. Fetch "
            "the model's files anew."
        )
    return WhisperSpeech(model, load_feature_extractor(folder, options), tokenizer, options)
