"""Speech recognition: recordings to text."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from shared.bounds import Line
from shared.hf.generation import GenerationParameters
from shared.hf.task import (
    CallArguments,
    Checkpoints,
    FileInput,
    HfTask,
    HubCall,
    ParameterValues,
    TaskParameters,
    TextOutput,
    check_single,
)


class SpeechGenerationParameters(GenerationParameters):
    """The language and the task may stand here too, as transformers' pipeline has them."""

    language: Line | None = None
    task: Literal["transcribe", "translate"] | None = None


class SpeechParameters(TaskParameters):
    """`return_timestamps` True gives segments (Whisper) or words (CTC). What `generate_kwargs` says
    goes before the same in `generation_parameters`, and that before the same beside them."""

    return_timestamps: bool | Literal["word", "char"] = False
    language: Line | None = None
    task: Literal["transcribe", "translate"] | None = None
    chunk_length_s: Annotated[float, Field(gt=0, le=300)] | None = None
    generate_kwargs: SpeechGenerationParameters | None = None
    generation_parameters: SpeechGenerationParameters | None = None

    @property
    def named_language(self) -> str | None:
        """The language that is named, in whichever of the three."""
        return self._first("language")

    @property
    def named_task(self) -> str | None:
        return self._first("task")

    def _first(self, name: str) -> str | None:
        sources = (self.generate_kwargs, self.generation_parameters, self)
        values = (getattr(source, name, None) for source in sources)
        return next((value for value in values if value is not None), None)


def _chunks(output: Any) -> Iterator[str]:
    """What was said when, where a transcript tells."""
    for chunk in output.get("chunks", ()):
        start, end = chunk["timestamp"]
        yield f"{_seconds(start):>9} {_seconds(end):>9}  {chunk['text'].strip()}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _in_the_body(value: Any, parameters: ParameterValues) -> CallArguments:
    return (value,), {"extra_body": dict(parameters)}


SPEECH_RECOGNITION = HfTask(
    name="automatic-speech-recognition",
    default_model="facebook/wav2vec2-base-960h",
    input=FileInput("audio"),
    parameters=SpeechParameters,
    output=TextOutput(field="text", details=_chunks),
    load="workers.hf.tasks.speech:load_speech_recognition",
    checkpoints=Checkpoints(
        architectures=[
            "ForCTC",
            "WhisperForConditionalGeneration",
            "Speech2TextForConditionalGeneration",
            "MoonshineForConditionalGeneration",
            "ForSpeechToText",
            "SpeechEncoderDecoderModel",
        ]
    ),
    hub=HubCall(keys=frozenset({"text"}), arguments=_in_the_body, settle=check_single),
    example={"inputs": "ZkxhQw==", "parameters": {"return_timestamps": True}},
    example_output={
        "text": "HELLO ALICE",
        "chunks": [
            {"text": "HELLO", "timestamp": [0.1, 0.5]},
            {"text": "ALICE", "timestamp": [0.6, 1.0]},
        ],
    },
    takes="audio",
    returns='`{"text"}`, and `"chunks"` with `return_timestamps`',
)
