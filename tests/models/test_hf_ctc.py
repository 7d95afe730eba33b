"""Speech by a model with a CTC head: right words, in any company, in windows, with times."""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import soundfile
from transformers import pipeline

from shared.errors import InvalidInput
from shared.kinds.hf import Task, parse_parameters
from tests.models.hf_tasks import OPTIONS
from tests.tiny import voice, wav2vec2
from tests.tiny.voice import recorded, speak
from tests.tiny_models import one_thread
from workers.hf.task import UNWATCHED
from workers.hf.tasks import speech
from workers.hf.tasks.speech import CtcSpeech

RATE = 16_000
SAID = ["HELLO ALICE", "NO", "THE CAT IS ON THE HILL", "LAST TRAIN", "A"]
LONG = " ".join(["THE CAT IS ON THE HILL", "ALICE RAN TO THE STATION", "NO ONE ELSE"] * 8)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module", params=["group norm", "layer norm"])
def listener(request: pytest.FixtureRequest) -> CtcSpeech:
    folder = wav2vec2.folder if request.param == "group norm" else wav2vec2.masked_folder
    task = speech.load_speech_recognition(folder(), OPTIONS)
    assert isinstance(task, CtcSpeech)
    return task


def transcribed(listener: CtcSpeech, files: list[bytes], **parameters: Any) -> list[Any]:
    """All rows of all files in as few batches as their groups allow."""
    options = parse_parameters(Task("automatic-speech-recognition"), parameters)
    prepared = [listener.prepare(data, options) for data in files]
    rows = [row for item in prepared for row in item.rows]
    groups = {row.group for row in rows}
    results: dict[int, Any] = {}
    for group in groups:
        places = [n for n, row in enumerate(rows) if row.group == group]
        for n, output in zip(
            places, listener.run([rows[n] for n in places], UNWATCHED), strict=True
        ):
            results[n] = output
    answers, at = [], 0
    for item in prepared:
        outputs = [results[at + n] for n in range(len(item.rows))]
        answers.append(listener.finish(item, outputs, options))
        at += len(item.rows)
    return answers


def test_words_are_right_alone_and_together(listener: CtcSpeech) -> None:
    files = [recorded(text) for text in SAID]
    together = transcribed(listener, files)
    assert [answer["text"] for answer in together] == SAID
    assert together == [transcribed(listener, [data])[0] for data in files]


def test_long_audio_is_right_in_windows(listener: CtcSpeech) -> None:
    parameters = {"chunk_length_s": 4, "return_timestamps": "word"}
    (answer,) = transcribed(listener, [recorded(LONG)], **parameters)
    assert answer["text"] == LONG
    assert [chunk["text"] for chunk in answer["chunks"]] == LONG.split()
    times = [time for chunk in answer["chunks"] for time in chunk["timestamp"]]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(voice.length_s(LONG), abs=0.2)


def test_texts_and_times_are_those_of_the_pipeline(listener: CtcSpeech) -> None:
    pipe = pipeline(
        "automatic-speech-recognition",
        model=listener.model,
        tokenizer=listener.tokenizer,
        feature_extractor=listener.extractor,
    )
    for text, chunk_s in ((SAID[2], None), (LONG, 5)):
        sound = {"raw": speak(text, RATE), "sampling_rate": RATE}
        more = {} if chunk_s is None else {"chunk_length_s": chunk_s}
        expected: Any = pipe(dict(sound), return_timestamps="word", **more)
        (answer,) = transcribed(listener, [recorded(text)], return_timestamps="word", **more)
        assert answer["text"] == expected["text"]
        for mine, theirs in zip(answer["chunks"], expected["chunks"], strict=True):
            assert mine["text"] == theirs["text"]
            assert mine["timestamp"] == pytest.approx(list(theirs["timestamp"]), abs=0.021)


def test_silence_and_too_little_sound_say_nothing(listener: CtcSpeech) -> None:
    for samples in (1, 100, RATE):
        out = io.BytesIO()
        soundfile.write(out, np.zeros(samples, np.float32), RATE, format="WAV")
        assert transcribed(listener, [out.getvalue()]) == [{"text": ""}]


@pytest.mark.parametrize("options", [{"language": "en"}, {"chunk_length_s": 0.1}])
def test_parameters_of_other_models_are_refused(
    listener: CtcSpeech, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match=next(iter(options))):
        transcribed(listener, [recorded("NO")], **options)
