"""Transcriptions of OpenAI's API: jobs of the kind `hf`, and the formats of their answers."""

import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from api.compat import calls
from api.compat.calls import Caller, CallerDep, JobOutcome
from api.compat.dialect import Problem, ProblemError
from api.compat.openai.dialect import OPENAI, answer_json
from api.compat.openai.models import outcome_for
from api.deps import Parts, PartsDep
from shared.bounds import Line, ModelName, cut, shown
from shared.hf.speech import SPEECH_RECOGNITION
from shared.jobs.submission import NewJob, Submitted
from shared.kinds.hf import HF
from shared.tables import File
from shared.vocabulary import WireShape

FIELDS_LIMIT = 64
GRANULARITIES = "timestamp_granularities"
UPLOAD_NAME = "audio"
UNSUPPORTED = {
    "languages": "name one in language, or none",
    "keywords": "leave it out",
    "prompt": "models here take none; leave it out",
    "include": "leave it out",
    "chunking_strategy": "long recordings are divided by themselves; leave it out",
    "known_speaker_names": "speakers are not told apart here",
    "known_speaker_references": "speakers are not told apart here",
}
"""Fields that are not supported -> what to do instead."""


class TranscriptionForm(WireShape):
    """The fields of the form, without the file."""

    model: ModelName
    language: Line | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(default=0.0, ge=0, le=1)
    timestamp_granularities: list[Literal["word", "segment"]] = Field(
        default=["segment"], max_length=2
    )

    @property
    def wants_words(self) -> bool:
        return self.response_format == "verbose_json" and "word" in self.timestamp_granularities

    @property
    def timestamps(self) -> bool | str:
        """The task's parameter `return_timestamps`."""
        if self.wants_words:
            return "word"
        return self.response_format in ("verbose_json", "srt", "vtt")


def form_of(form: FormData) -> tuple[TranscriptionForm, UploadFile]:
    """The fields and the file of a form. Raises ProblemError, which names the field."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise _wrong("file", "is required: the recording, as a file of the form")
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        plain = name.removesuffix("[]")
        if plain == "file":
            continue
        if isinstance(value, UploadFile):
            raise _wrong(plain, "is a file; it has to be text")
        if plain in UNSUPPORTED:
            if value not in ("", "auto"):
                raise _wrong(plain, f"is not supported here: {UNSUPPORTED[plain]}")
        elif plain == "stream":
            if value.strip().lower() not in ("", "false", "0"):
                raise _wrong(plain, "is not supported here: a transcript comes whole")
        elif plain == GRANULARITIES:
            values.setdefault(plain, []).append(value)
        else:
            values[plain] = value or None
    try:
        return TranscriptionForm.model_validate(values), file
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        name = cut(".".join(map(str, wrong["loc"])), 200)
        raise _wrong(name, f": {wrong['msg'].removeprefix('Value error, ')}") from error


def _wrong(param: str, what: str) -> ProblemError:
    space = "" if what.startswith(":") else " "
    detail = f"{param}{space}{what}."
    return ProblemError(Problem(status=422, detail=detail, fields={"param": param}))


# Timed pieces of a transcript: what the model gives, and segments

PAUSE_S = 0.6
SEGMENT_S = 7.0
SEGMENT_CHARS = 84
"""Two lines of a subtitle."""
SENTENCE_END = re.compile(r"[.!?…。！？]$")


@dataclass(frozen=True, kw_only=True)
class TimedText:
    """A word or a segment; `start` and `end` in seconds."""

    text: str
    start: float
    end: float


def pieces_of(result: Mapping[str, Any]) -> list[TimedText]:
    """The timed pieces of a result. A piece without an end gets its start as its end."""
    pieces = []
    for chunk in result.get("chunks", ()):
        start, end = chunk["timestamp"]
        start = 0.0 if start is None else float(start)
        pieces.append(
            TimedText(text=chunk["text"], start=start, end=start if end is None else float(end))
        )
    return pieces


def segments_of(pieces: Sequence[TimedText]) -> list[TimedText]:
    """Segments: pieces of several words as they are, single words joined up to a pause, the end of
    a sentence, or the longest segment."""
    segments: list[list[TimedText]] = []
    for piece in pieces:
        if segments and _continues(segments[-1], piece):
            segments[-1].append(piece)
        else:
            segments.append([piece])
    return [
        TimedText(text=_joined(group), start=group[0].start, end=group[-1].end)
        for group in segments
    ]


def _continues(group: Sequence[TimedText], piece: TimedText) -> bool:
    """Whether a word belongs to the segment before it. A piece of several words is a segment."""
    if any(" " in one.text.strip() for one in (group[-1], piece)):
        return False
    return (
        piece.start - group[-1].end < PAUSE_S
        and piece.end - group[0].start <= SEGMENT_S
        and len(_joined([*group, piece])) <= SEGMENT_CHARS
        and SENTENCE_END.search(group[-1].text.strip()) is None
    )


def _joined(pieces: Sequence[TimedText]) -> str:
    """The text of several pieces. Whisper's words begin with a space, those of other models do
    not."""
    separator = "" if any(piece.text.startswith(" ") for piece in pieces) else " "
    return separator.join(piece.text for piece in pieces).strip()


# Formats of answers


def subtitles(segments: Sequence[TimedText], *, is_vtt: bool) -> str:
    """Segments as SubRip or WebVTT."""
    cues = ["WEBVTT\n"] if is_vtt else []
    for number, segment in enumerate(segments, start=1):
        first, last = (_clock(s, "." if is_vtt else ",") for s in (segment.start, segment.end))
        head = "" if is_vtt else f"{number}\n"
        # An empty line would end the cue, and an arrow would begin another one.
        text = re.sub(r"\s*\n\s*", " ", segment.text).replace("-->", "->")
        cues.append(f"{head}{first} --> {last}\n{text}\n")
    return "\n".join(cues) + ("" if is_vtt or not cues else "\n")


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    hours, rest = divmod(milliseconds, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def verbose(
    form: TranscriptionForm,
    result: Mapping[str, Any],
    pieces: Sequence[TimedText],
    duration_s: float,
) -> dict[str, Any]:
    """The format `verbose_json`. `avg_logprob` and `no_speech_prob`, which models here do not
    measure, are 0."""
    body: dict[str, Any] = {
        "task": "transcribe",
        "language": form.language or "unknown",
        "duration": duration_s,
        "text": result["text"],
        "usage": {"type": "duration", "seconds": duration_s},
    }
    if form.wants_words:
        body["words"] = [
            {"word": piece.text.strip(), "start": piece.start, "end": piece.end} for piece in pieces
        ]
    if "segment" in form.timestamp_granularities:
        body["segments"] = list(_segments(segments_of(pieces), form.temperature))
    return body


def _segments(segments: Sequence[TimedText], temperature: float) -> Iterator[dict[str, Any]]:
    for number, segment in enumerate(segments):
        data = segment.text.encode()
        yield {
            "id": number,
            "seek": round(segment.start * 100),
            "start": segment.start,
            "end": segment.end,
            "text": segment.text,
            "tokens": [],
            "temperature": temperature,
            "avg_logprob": 0.0,
            "compression_ratio": len(data) / len(zlib.compress(data)),
            "no_speech_prob": 0.0,
        }


RIFF_HEAD = struct.Struct("<4sI4s")
RIFF_CHUNK = struct.Struct("<4sI")
CHUNKS_LIMIT = 64


def wave_seconds(file: IO[bytes]) -> float | None:
    """The length of a recording; None if it is not WAV. The file is rewound."""
    try:
        return _wave_seconds(file)
    except struct.error:  # the file is truncated
        return None
    finally:
        file.seek(0)


def _wave_seconds(file: IO[bytes]) -> float | None:
    riff, _, form = RIFF_HEAD.unpack(file.read(RIFF_HEAD.size))
    if (riff, form) != (b"RIFF", b"WAVE"):
        return None
    bytes_per_s = 0
    for _ in range(CHUNKS_LIMIT):
        name, size = RIFF_CHUNK.unpack(file.read(RIFF_CHUNK.size))
        if name == b"fmt ":
            bytes_per_s = int.from_bytes(file.read(size)[8:12], "little")
        elif name == b"data":
            return size / bytes_per_s if bytes_per_s else None
        else:
            file.seek(size + size % 2, 1)
    return None


router = APIRouter()


class Transcription(BaseModel):
    """A transcript as OpenAI describes it; `verbose_json` has more fields."""

    model_config = ConfigDict(extra="allow")

    text: str


FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "model"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "model": {"type": "string"},
                        "language": {"type": "string"},
                        "response_format": {"enum": ["json", "text", "srt", "verbose_json", "vtt"]},
                        "temperature": {"type": "number"},
                        "timestamp_granularities[]": {
                            "type": "array",
                            "items": {"enum": ["word", "segment"]},
                        },
                    },
                }
            }
        },
    }
}


@router.post(
    "/audio/transcriptions",
    response_model=Transcription,
    responses=OPENAI.documented(400, 401, 404, 409, 413, 429, 500, 503, 504),
    openapi_extra=FORM,
)
async def create_transcription(http: Request, parts: PartsDep, caller: CallerDep) -> Response:
    """Transcribe a recording."""
    parts.followers.check_room()
    content_type = http.headers.get("content-type", "")
    if not content_type.lower().startswith("multipart/form-data"):
        detail = f"Send a form (multipart/form-data); this came as {shown(content_type or 'none')}."
        raise ProblemError(Problem(status=415, detail=detail))
    async with http.form(max_fields=FIELDS_LIMIT, max_files=1) as form:
        fields, file = form_of(form)
        duration_s = await run_in_threadpool(wave_seconds, file.file)
        made, upload = await run_in_threadpool(_submit, parts, caller, fields, file)
    outcome = await outcome_for(parts, caller, made, fields.model, HF.name)
    if upload is not None:
        await run_in_threadpool(calls.forget_upload, parts, upload)
    return _answer(fields, outcome, duration_s)


def _answer(form: TranscriptionForm, outcome: JobOutcome, duration_s: float | None) -> Response:
    result = outcome.result
    pieces = pieces_of(result)
    if duration_s is None:
        duration_s = max((piece.end for piece in pieces), default=0.0)
    match form.response_format:
        case "json":
            return answer_json({"text": result["text"]}, outcome.headers)
        case "verbose_json":
            return answer_json(verbose(form, result, pieces, duration_s), outcome.headers)
        case "text":
            text, type_ = f"{result['text']}\n", "text/plain; charset=utf-8"
        case "srt" | "vtt" as kind:
            text = subtitles(segments_of(pieces), is_vtt=kind == "vtt")
            type_ = "text/vtt; charset=utf-8" if kind == "vtt" else "text/plain; charset=utf-8"
    return Response(text.encode(), headers={**outcome.headers, "Content-Type": type_})


def _submit(
    parts: Parts, caller: Caller, form: TranscriptionForm, file: UploadFile
) -> tuple[Submitted, File | None]:
    """Submit the job. Returns it with its upload: None if the request was repeated."""

    def new(upload: File) -> NewJob:
        values = {
            "task": SPEECH_RECOGNITION.name,
            "model": form.model,
            "inputs": {"file_id": str(upload.id)},
            "parameters": _parameters(form),
        }
        identity = [upload.sha256, form.model_dump(mode="json")]
        return calls.new_job(parts, caller, HF, calls.input_of(HF, values), identity=identity)

    return calls.submit_upload(
        parts, file.file, new, name=UPLOAD_NAME, content_type=file.content_type
    )


def _parameters(form: TranscriptionForm) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if form.timestamps:
        parameters["return_timestamps"] = form.timestamps
    if form.language is not None:
        parameters["language"] = form.language
    if form.temperature:
        sampling = {"do_sample": True, "temperature": form.temperature}
        parameters["generation_parameters"] = sampling
    return parameters
