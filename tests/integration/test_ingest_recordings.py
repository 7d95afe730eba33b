"""Recordings as documents: transcribed where a job asks for it, by a step that takes what it needs
from the one place that runs models, and found by what is said when."""

import io
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from shared.config import Settings
from shared.vocabulary import Queue, State
from tests.integration.ingestion import counts, live_texts, order_sources, search, upload
from tests.integration.job_runner import (
    cancel,
    claimed,
    drain,
    invariants_hold,
    job_of,
    lose_workers,
    make_process,
    steps_of,
)
from tests.tiny import voice, wav2vec2, whisper
from tests.tiny_models import one_thread
from workers.app import failure_handlers, handlers_of
from workers.attempts.process import Process
from workers.attempts.runner import run_next

CTC, WHISPER = "tiny/wav2vec2", "tiny/whisper"
SAID = "THE CAT RAN"
STEP = "ingest.transcribe"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, laid out as SLUICE_MODELS_FOLDER is."""
    root = tmp_path_factory.mktemp("models")
    for name, folder in ((CTC, wav2vec2.folder()), (WHISPER, whisper.folder())):
        shutil.copytree(folder, root / name)
    return root


@pytest.fixture
def worker(process: Process, settings: Settings, models: Path) -> Iterator[Process]:
    del process  # empty tables
    own = make_process(settings, models_folder=models)
    with one_thread():
        yield own
    invariants_hold(own, all_ended=True)
    own.close()


def order(process: Process, collection: str, files: dict[str, bytes], **options: Any) -> UUID:
    sources = [
        {"type": "file", "file_id": upload(process, name, data)} for name, data in files.items()
    ]
    return order_sources(process, collection, sources, **options)


def work(process: Process) -> int:
    return drain(process, handlers_of(list(Queue)))


def errors(process: Process, job_id: UUID) -> dict[str, str]:
    result = job_of(process, job_id).result
    assert result is not None
    return {error["source"]: error["message"] for error in result["errors"]}


def transcribed(process: Process, job_id: UUID) -> int:
    """In how many steps."""
    return sum(step.name == STEP for step in steps_of(process, job_id))


def test_what_is_said_is_found_with_its_time(worker: Process, collection: str) -> None:
    files = {"a.wav": voice.recorded(SAID), "b.txt": b"NO ONE"}
    job_id = order(worker, collection, files, speech={"model": CTC}, metadata={"team": "x"})
    work(worker)

    assert counts(worker, job_id) == {"added": 2}
    (hit,) = search(worker, collection, SAID, k=1)
    assert (hit.source, hit.text, hit.metadata["team"]) == ("a.wav", SAID, "x")
    assert hit.metadata["media_type"] == "audio/wav"
    assert hit.metadata["start_s"] == pytest.approx(0, abs=0.1)
    assert hit.metadata["end_s"] == pytest.approx(voice.length_s(SAID), abs=0.2)

    again = order(worker, collection, files, speech={"model": CTC}, metadata={"team": "x"})
    work(worker)
    assert counts(worker, again) == {"skipped": 2}
    assert transcribed(worker, again) == 0


def test_whisper_is_asked_in_the_language_of_the_source(worker: Process, collection: str) -> None:
    files = {"ko.ogg": voice.recorded("안녕 물", format_="OGG")}
    job_id = order(worker, collection, files, speech={"model": WHISPER, "language": "korean"})
    work(worker)

    assert counts(worker, job_id) == {"added": 1}
    assert live_texts(worker, collection) == {"ko.ogg": ["안녕 물"]}
    (hit,) = search(worker, collection, "안녕", k=1)
    assert hit.metadata["end_s"] == pytest.approx(voice.length_s("안녕 물"), abs=0.2)


def test_recordings_in_archives_are_documents_too(worker: Process, collection: str) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("talks/one.flac", voice.recorded(SAID, format_="FLAC"))
        archive.writestr("talks/two.txt", "NO ONE")
    source = {
        "type": "file",
        "file_id": upload(worker, "all.zip", stream.getvalue()),
        "speech": {"model": CTC},
    }
    job_id = order_sources(worker, collection, [source])
    work(worker)

    assert counts(worker, job_id) == {"added": 2}
    assert live_texts(worker, collection)["all.zip!/talks/one.flac"] == [SAID]


def test_what_cannot_be_transcribed_fails_alone_and_says_why(
    worker: Process, collection: str
) -> None:
    whole = voice.recorded(SAID)
    files = {
        "cut.wav": whole[: len(whole) // 2],
        "silent.wav": voice.recorded("   "),
        "b.txt": b"B",
    }
    job_id = order(worker, collection, files, speech={"model": CTC})
    nowhere = order(worker, collection, {"a.wav": whole, "c.txt": b"C"}, speech={"model": "no/one"})
    wrong = order(worker, collection, {"d.wav": whole}, speech={"model": CTC, "language": "ko"})
    unasked = order(worker, collection, {"e.wav": whole})
    work(worker)

    assert counts(worker, job_id) == {"added": 1, "failed": 2}
    messages = errors(worker, job_id)
    assert messages["cut.wav"].startswith("cut.wav: the audio is cut off")
    assert "speech.model" in messages["silent.wav"]
    assert counts(worker, nowhere) == {"added": 1, "failed": 1}
    assert "no/one" in errors(worker, nowhere)["a.wav"]
    assert "speech.language is for models that generate" in errors(worker, wrong)["d.wav"]
    assert '`"speech": {}`' in errors(worker, unasked)["e.wav"]


def test_a_long_recording_goes_on_in_another_step(
    worker: Process, settings: Settings, models: Path, collection: str
) -> None:
    said = " ".join(["THE CAT IS ON A HILL"] * 3)
    hasty = make_process(
        settings, models_folder=models, hf_step_s=1e-9, hf_batch_tokens=1, hf_audio_chunk_s=1,
        result_inline_bytes=400,
    )  # fmt: skip
    whole = {"chunk_size": 1000, "chunk_overlap": 0}
    files = {"long.wav": voice.recorded(said)}
    job_id = order(hasty, collection, files, speech={"model": CTC}, splitter=whole)
    work(hasty)
    hasty.close()

    assert transcribed(worker, job_id) > 3
    assert counts(worker, job_id) == {"added": 1}
    assert " ".join(live_texts(worker, collection)["long.wav"]) == said


def test_a_job_is_cancelled_in_the_middle_of_a_recording(
    worker: Process, settings: Settings, models: Path, collection: str
) -> None:
    hasty = make_process(
        settings, models_folder=models, hf_step_s=1e-9, hf_batch_tokens=1, hf_audio_chunk_s=1
    )
    said = "THE CAT IS ON A HILL " * 6
    job_id = order(hasty, collection, {"long.wav": voice.recorded(said)}, speech={"model": CTC})
    table = handlers_of(list(Queue))
    for queue in (Queue.INGEST, Queue.INGEST, Queue.HF):
        run_next(hasty, table, queue.value)
    assert transcribed(hasty, job_id) == 2
    cancel(hasty, job_id)
    work(hasty)
    hasty.close()

    assert job_of(worker, job_id).state == State.CANCELLED
    assert live_texts(worker, collection) == {}


def test_a_recording_that_costs_its_workers_fails_alone(worker: Process, collection: str) -> None:
    files = {"a.wav": voice.recorded(SAID), "b.txt": b"B"}
    job_id = order(worker, collection, files, speech={"model": CTC}, fields={"max_attempts": 1})
    table = handlers_of([Queue.INGEST, Queue.EMBED])
    while any(run_next(worker, table, queue.value) for queue in (Queue.INGEST, Queue.EMBED)):
        pass
    assert claimed(worker, Queue.HF).name == STEP
    lose_workers(worker, failure_handlers())

    assert counts(worker, job_id) == {"added": 1, "failed": 1}
    assert "a.wav" in errors(worker, job_id)
