"""Automatic speech recognition: by a model with a CTC head, or by Whisper."""

import itertools
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from transformers import (
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
    Wav2Vec2CTCTokenizer,
    WhisperTokenizer,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CTC_MAPPING_NAMES
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from shared.errors import InvalidInput, Permanent
from shared.hf.generation import GenerationParameters
from shared.hf.speech import SPEECH_RECOGNITION, SpeechParameters
from shared.hf.task import TaskParameters
from workers.hf.audio import STRIDE_PART, Recordings, Samples, SampleWindow, aligned, windows
from workers.hf.task import LocalTask, PreparedInput, Row, Watch
from workers.hf.tasks.generation import (
    GenerationArguments,
    known_settings,
    requested_settings,
    settle,
)
from workers.models.checkpoints import name_of, read_config
from workers.models.load import LoadOptions, load_feature_extractor, load_model, load_tokenizer

# Speech recognition with models that have a CTC head on raw audio: wav2vec2, HuBERT and their
# kin.
#
# A row is a window of audio, its output the likeliest token of each frame of the window's own
# part. The windows' tokens are joined first, and collapsed and decoded together: no word
# breaks at a boundary. What comes out is what transformers' pipeline gives for the same windows.

PADDABLE: Final = frozenset({"wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat"})
"""Architectures whose masked padding changes nothing, given layer norms in front and no adapter
behind: it was measured. With any other a batch is of rows of equal length."""
CHUNK_LEAST_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class _CtcRecording:
    key: bytes
    windows: Sequence[SampleWindow]


class CtcSpeech(LocalTask):
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        extractor: Any,
        tokenizer: Wav2Vec2CTCTokenizer,
        options: LoadOptions,
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

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
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
        return PreparedInput(rows=rows, rest=_CtcRecording(key=key, windows=cut))

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

    def forward(self, rows: Sequence[Row]) -> list[Any]:
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

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        assert isinstance(parameters, SpeechParameters)
        recording: _CtcRecording = prepared.rest
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

    def _own_part(self, tokens: Sequence[int], window: SampleWindow) -> Sequence[int]:
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


def load_ctc(folder: Path, options: LoadOptions) -> CtcSpeech:
    model = load_model(AutoModelForCTC, folder, options, task=SPEECH_RECOGNITION.name)
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


# Speech recognition with Whisper.
#
# Audio longer than the model's window is cut into windows that overlap, and their texts are
# merged where they agree, as transformers' pipeline does with `chunk_length_s`; the merging
# is its own. The other way, Whisper's sequential one, goes on where the last segment ended:
# no window of it can be run beside another, nor in another step.
#
# The way of decoding is the model's own (greedy, unless its configuration says otherwise),
# and what the caller asks for; the pipeline's default of five beams is not taken over.

# What can be asked of Whisper, and what of that a model of its kind can do.

PROMPT_TOKENS: Final = 4
"""Before the text: its start, the language, the task, and that there are no timestamps."""
SHOWN_LANGUAGES: Final = 12


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How a window is to be transcribed; the same for all of a batch."""

    arguments: GenerationArguments
    language: str | None
    task: str | None
    timestamps: bool | str
    seed: int | None

    @property
    def group(self) -> str:
        key = [self.arguments.key, self.language, self.task, self.timestamps]
        # The dice are thrown for a whole batch, and words are aligned up to a batch's last token:
        # neither may depend on a row's company.
        is_alone = self.arguments.is_sampled or self.timestamps == "word"
        return json.dumps([*key, secrets.token_hex(16) if is_alone else None])


def decoding_options(model: PreTrainedModel, parameters: SpeechParameters) -> DecodingOptions:
    """What the caller asks of this model. Raises InvalidInput for what the model cannot do."""
    generation: Any = model.generation_config
    settings, seed = requested_settings(
        parameters.generation_parameters or GenerationParameters(), parameters.generate_kwargs
    )
    own = known_settings(generation.to_dict())
    room = model.config.max_target_positions - PROMPT_TOKENS
    return DecodingOptions(
        arguments=settle(settings, {}, own, prompt_tokens=PROMPT_TOKENS, room=room),
        language=_language(generation, parameters.named_language),
        task=_task(generation, parameters.named_task),
        timestamps=_timestamps(generation, parameters.return_timestamps),
        seed=seed,
    )


def _language(generation: Any, language: str | None) -> str | None:
    if language is None:
        return None
    known: dict[str, int] = getattr(generation, "lang_to_id", None) or {}
    if not _is_multilingual(generation) or not known:
        raise InvalidInput(
            "parameters.language: the model takes none, it was made for one. Leave it out."
        )
    name = language.strip().lower()
    token = name if name in known else f"<|{TO_LANGUAGE_CODE.get(name, name)}|>"
    if token not in known:
        codes = [code.strip("<|>") for code in known]
        more = len(codes) - SHOWN_LANGUAGES
        raise InvalidInput(
            f"parameters.language {language!r} is none that the model knows; it knows "
            f"{', '.join(codes[:SHOWN_LANGUAGES])}{f' and {more} more' if more > 0 else ''}."
        )
    return token


def _task(generation: Any, task: str | None) -> str | None:
    known = getattr(generation, "task_to_id", None) or {}
    if task is None or (_is_multilingual(generation) and task in known):
        return task
    raise InvalidInput("parameters.task: the model does nothing but transcribe. Leave it out.")


def _is_multilingual(generation: Any) -> bool:
    return bool(getattr(generation, "is_multilingual", True))


def _timestamps(generation: Any, timestamps: bool | str) -> bool | str:
    """Some models only write well with timestamps, and say so in their configuration."""
    if timestamps == "char":
        raise InvalidInput(
            'parameters.return_timestamps "char" is for models with a CTC head; ask Whisper '
            'for true (segments) or "word".'
        )
    if timestamps and not hasattr(generation, "no_timestamps_token_id"):
        raise InvalidInput(
            "parameters.return_timestamps: the model's generation_config.json does not name "
            "its no_timestamps_token_id, so there are no timestamps."
        )
    if timestamps == "word" and not hasattr(generation, "alignment_heads"):
        raise InvalidInput(
            'parameters.return_timestamps "word": the model\'s generation_config.json names '
            "no alignment_heads, so words have no times; ask for true (segments)."
        )
    return timestamps or bool(getattr(generation, "return_timestamps", False))


@dataclass(frozen=True, kw_only=True)
class _AudioPiece:
    samples: Samples
    decoding: DecodingOptions


@dataclass(frozen=True, kw_only=True)
class _WhisperRecording:
    key: bytes
    windows: Sequence[SampleWindow]
    timestamps: bool | str


class WhisperSpeech(LocalTask):
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        extractor: Any,
        tokenizer: WhisperTokenizer,
        options: LoadOptions,
    ) -> None:
        super().__init__(model, options)
        self.extractor = extractor
        self.tokenizer: Any = tokenizer
        self.rate_hz: int = extractor.sampling_rate
        self.frames: int = model.config.max_source_positions
        self.generation: Any = model.generation_config
        self.attention: str = model.config._attn_implementation
        self.recordings = Recordings(rate_hz=self.rate_hz, limit_s=options.audio_limit_s)

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        assert isinstance(parameters, SpeechParameters)
        decoding = decoding_options(self.model, parameters)
        chunk_s = self._chunk_s(parameters)
        key, samples = self.recordings.take(value)
        cut = windows(
            len(samples),
            size=aligned(chunk_s, self.rate_hz),
            stride=aligned(chunk_s / STRIDE_PART, self.rate_hz),
        )
        rows = [
            Row(
                size=self.frames * decoding.arguments.copies,
                data=_AudioPiece(samples=samples[window.start : window.end], decoding=decoding),
                group=decoding.group,
            )
            for window in cut
        ]
        rest = _WhisperRecording(key=key, windows=cut, timestamps=decoding.timestamps)
        return PreparedInput(rows=rows, rest=rest, warnings=decoding.arguments.warnings)

    def _chunk_s(self, parameters: SpeechParameters) -> float:
        window_s = self.extractor.n_samples / self.rate_hz
        chunk_s = parameters.chunk_length_s
        if chunk_s is not None and not CHUNK_LEAST_S <= chunk_s <= window_s:
            raise InvalidInput(
                f"parameters.chunk_length_s is {chunk_s:g}; the model's window is {window_s:g} s, "
                f"the least is {CHUNK_LEAST_S:g}."
            )
        return chunk_s or min(window_s, max(CHUNK_LEAST_S, self.options.audio_chunk_s))

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        decoding: DecodingOptions = rows[0].data.decoding
        inputs = self.extractor(
            [row.data.samples for row in rows],
            sampling_rate=self.rate_hz,
            return_attention_mask=True,
            return_tensors="pt",
        )
        generate: Any = self.model.generate
        try:
            with torch.inference_mode(), _dice(self.model.device, decoding):
                generated = generate(
                    input_features=inputs["input_features"].to(self.model.device, self.model.dtype),
                    attention_mask=inputs["attention_mask"].to(self.model.device),
                    stopping_criteria=StoppingCriteriaList([_AllRowsDropped(watch)]),
                    **self._generate_arguments(decoding),
                )
        finally:
            if decoding.timestamps == "word":
                # Weights of attention are only there without fused kernels; the next batch is
                # better off with them.
                self.model.set_attn_implementation(self.attention)
        return self._outputs(generated)

    def _generate_arguments(self, decoding: DecodingOptions) -> dict[str, Any]:
        settings = {
            name: value
            for name, value in decoding.arguments.settings.items()
            if name != "do_sample" and getattr(self.generation, name, None) != value
        }
        if decoding.arguments.is_sampled:
            # It is by its temperature that Whisper's `generate` knows.
            settings.setdefault("temperature", 1.0)
        if decoding.language is not None:
            settings["language"] = decoding.language
        if decoding.task is not None:
            settings["task"] = decoding.task
        if decoding.timestamps == "word":
            settings |= {"return_token_timestamps": True, "return_segments": True}
        return settings | {"return_timestamps": bool(decoding.timestamps)}

    def _outputs(self, generated: Any) -> list[Any]:
        if isinstance(generated, torch.Tensor):
            return [{"tokens": self._unpadded(row)} for row in generated.tolist()]
        times = [
            [time for segment in segments for time in segment["token_timestamps"].tolist()]
            for segments in generated["segments"]
        ]
        return [
            {"tokens": self._unpadded(row), "times": row_times}
            for row, row_times in zip(generated["sequences"].tolist(), times, strict=True)
        ]

    def _unpadded(self, tokens: list[int]) -> list[int]:
        while tokens and tokens[-1] == self.generation.pad_token_id:
            tokens.pop()
        return tokens

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        assert isinstance(parameters, SpeechParameters)
        recording: _WhisperRecording = prepared.rest
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


class _AllRowsDropped(StoppingCriteria):
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
def _dice(device: torch.device, decoding: DecodingOptions) -> Iterator[None]:
    """The process's own generators of random numbers stay as they are."""
    if not decoding.arguments.is_sampled:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(secrets.randbits(63) if decoding.seed is None else decoding.seed)
        yield


def load_whisper(folder: Path, options: LoadOptions) -> WhisperSpeech:
    model = load_model(AutoModelForSpeechSeq2Seq, folder, options, task=SPEECH_RECOGNITION.name)
    tokenizer = load_tokenizer(folder, options)
    if not isinstance(tokenizer, WhisperTokenizer):
        raise Permanent(
            f"{name_of(folder)} has a {type(tokenizer).__name__}, not a WhisperTokenizer. Fetch "
            "the model's files anew."
        )
    return WhisperSpeech(model, load_feature_extractor(folder, options), tokenizer, options)


def load_speech_recognition(folder: Path, options: LoadOptions) -> LocalTask:
    kind = read_config(folder).get("model_type")
    if kind == "whisper":
        return load_whisper(folder, options)
    # Of a folder without a configuration, loading tells what it lacks.
    if kind is None or kind in MODEL_FOR_CTC_MAPPING_NAMES:
        return load_ctc(folder, options)
    raise Permanent(
        f"{name_of(folder)} is a {kind} model. For speech recognition use Whisper, or a model with "
        "a CTC head on raw audio, such as wav2vec2, HuBERT or WavLM."
    )
