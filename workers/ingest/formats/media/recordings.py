"""Recordings (WAV, FLAC, MP3, Ogg) -> passages of speech, with their times.

If a job has the option `speech`, a model of the task `automatic-speech-recognition` has transcribed
the recording before (`workers/hf/recordings.py`). As with subtitles, consecutive utterances become
one passage, with its times in seconds as `start_s` and `end_s`.
"""

import io
import wave
from typing import Final

from shared.errors import DocumentError
from workers.ingest.formats.loader import DocumentParts, Loader, RawDocument
from workers.ingest.formats.texts.subtitles import passages_of


def load(document: RawDocument) -> DocumentParts:
    if document.transcript is None:
        raise DocumentError(
            f"{document.name}: is a recording, and those of web pages are not transcribed. "
            "Download it, and ingest the file."
        )
    if not document.transcript:
        raise DocumentError(
            f"{document.name}: nothing that is said was heard in it. Leave it out, or choose "
            "another model or language (speech.model, speech.language)."
        )
    return DocumentParts(passages=passages_of(document.transcript))


def _silence() -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(3200))
    return stream.getvalue()


_TEXT: Final = "We open at nine."
# The first bytes of files of these formats; no loader reads more of them.
WAV = Loader(load=load, example=_silence(), example_text=_TEXT)
FLAC = Loader(load=load, example=b"fLaC\x00\x00\x00\x22" + bytes(34), example_text=_TEXT)
MP3 = Loader(load=load, example=b"ID3\x04" + bytes(6) + b"\xff\xfb\x90\x64", example_text=_TEXT)
OGG = Loader(load=load, example=b"OggS\x00\x02" + bytes(22), example_text=_TEXT)
