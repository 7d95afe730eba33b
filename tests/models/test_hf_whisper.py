"""Speech by Whisper: right words in English and Korean, with times, in windows; cancelled early."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import soundfile
from transformers import pipeline

from shared.errors import InvalidInput
from shared.kinds.hf import Task, parse_parameters
from tests.models.hf_tasks import OPTIONS
from tests.tiny import whisper as tiny
from tests.tiny.voice import length_s, recorded, speak
from tests.tiny_models import one_thread
from workers.hf.task import UNWATCHED
from workers.hf.tasks import speech
from workers.hf.tasks.speech import WhisperSpeech

RATE = tiny.RATE_HZ


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def listener() -> WhisperSpeech:
    task = speech.load_speech_recognition(tiny.folder(), OPTIONS)
    assert isinstance(task, WhisperSpeech)
    return task


def transcribed(listener: WhisperSpeech, texts: Sequence[str], **parameters: Any) -> list[Any]:
    """Each file's answer; rows of all files in one batch where they may be."""
    options = parse_parameters(Task("automatic-speech-recognition"), parameters)
    prepared = [listener.prepare(recorded(text), options) for text in texts]
    rows = [row for item in prepared for row in item.rows]
    if len({row.group for row in rows}) == 1:
        outputs = listener.run(rows, UNWATCHED)
    else:
        outputs = [listener.run([row], UNWATCHED)[0] for row in rows]
    answers = []
    for item in prepared:
        own, outputs = outputs[: len(item.rows)], outputs[len(item.rows) :]
        answers.append(listener.finish(item, own, options))
    return answers


def test_words_are_right_alone_and_together(listener: WhisperSpeech) -> None:
    together = transcribed(listener, list(tiny.SAID))
    assert [answer["text"].strip() for answer in together] == list(tiny.SAID)
    assert together == [transcribed(listener, [text])[0] for text in tiny.SAID]


def test_segments_have_their_times(listener: WhisperSpeech) -> None:
    for text in tiny.SAID:
        (answer,) = transcribed(listener, [text], return_timestamps=True)
        (chunk,) = answer["chunks"]
        assert chunk["text"].strip() == text
        assert chunk["timestamp"] == pytest.approx([0, length_s(text)], abs=0.021)


def test_words_have_times_within_the_audio(listener: WhisperSpeech) -> None:
    (answer,) = transcribed(listener, ["HELLO ALICE"], return_timestamps="word")
    assert [chunk["text"].strip() for chunk in answer["chunks"]] == ["HELLO", "ALICE"]
    times = [time for chunk in answer["chunks"] for time in chunk["timestamp"]]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= tiny.WINDOW_S


def test_long_audio_is_right_in_windows(listener: WhisperSpeech) -> None:
    (answer,) = transcribed(listener, [tiny.LONG], chunk_length_s=tiny.CHUNK_S)
    assert answer["text"].strip() == tiny.LONG


def test_texts_are_those_of_the_pipeline(listener: WhisperSpeech) -> None:
    pipe = pipeline(
        "automatic-speech-recognition",
        model=listener.model,
        tokenizer=listener.tokenizer,
        feature_extractor=listener.extractor,
    )
    sound = {"raw": speak(tiny.LONG, RATE), "sampling_rate": RATE}
    expected: Any = pipe(sound, chunk_length_s=tiny.CHUNK_S, generate_kwargs={"num_beams": 1})
    (answer,) = transcribed(listener, [tiny.LONG], chunk_length_s=tiny.CHUNK_S)
    assert answer == {"text": expected["text"]}


def test_the_language_is_detected_from_the_sound_or_set(listener: WhisperSpeech) -> None:
    free, *named = (
        transcribed(listener, ["안녕 물"], **more)[0]
        for more in (
            {},
            {"language": "korean"},
            {"generate_kwargs": {"language": "korean", "task": "transcribe"}},
            {"generation_parameters": {"language": "ko"}},
            {"language": "en", "generate_kwargs": {"language": "ko", "max_time": 3600}},
        )
    )
    assert [free] * 4 == named
    assert free["text"].strip() == "안녕 물"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"language": "klingon"}, "en, ko"),
        ({"generate_kwargs": {"language": "klingon"}}, "en, ko"),
        ({"return_timestamps": "char"}, "CTC"),
        ({"chunk_length_s": 30}, "window is 4 s"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    listener: WhisperSpeech, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(InvalidInput, match=words):
        transcribed(listener, ["NO TRAIN"], **options)


def test_generation_ends_once_nobody_waits(listener: WhisperSpeech) -> None:
    parameters = parse_parameters(Task("automatic-speech-recognition"), {})
    rows = [*listener.prepare(recorded("HELLO ALICE"), parameters).rows] * 2
    looks = 0

    def watch() -> list[bool]:
        nonlocal looks
        looks += 1
        return [True, looks > 2]

    listener.run(rows, watch)
    assert looks == 3


def test_what_watching_raises_ends_it_and_harms_nothing(listener: WhisperSpeech) -> None:
    parameters = parse_parameters(Task("automatic-speech-recognition"), {})

    def watch() -> list[bool]:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        listener.run(listener.prepare(recorded("NO TRAIN"), parameters).rows, watch)
    assert transcribed(listener, ["NO TRAIN"])[0]["text"].strip() == "NO TRAIN"


def test_silence_does_not_fail(listener: WhisperSpeech) -> None:
    parameters = parse_parameters(Task("automatic-speech-recognition"), {})
    out = io.BytesIO()
    soundfile.write(out, np.zeros(RATE, np.float32), RATE, format="WAV")
    prepared = listener.prepare(out.getvalue(), parameters)
    answer = listener.finish(prepared, listener.run(prepared.rows, UNWATCHED), parameters)
    assert set(answer) == {"text"}
