"""The program that reads documents for a worker: requests on its standard input, answers on its
standard output, until the input ends.

Documents come from anywhere, and libraries that read them may hang, crash or use too much memory.
So a process beside the worker reads them (`reader.py`). Its memory is limited, and a signal ends it
if a document takes too much processor time. It has no settings of the worker, and so no secrets: a
request contains all that it needs.

A frame is two lengths of eight bytes, little-endian, then JSON of the first length and bytes of the
second. A request is `{"of", "name", "file_name", "content_type", "is_text", "options", "settings"}`
with the bytes of the document; `of` is `text` or `members`. Each frame of the answer but the last
is a `member` with its bytes; the last one has `last`, and `loaded` or `error`: the class and the
message.
"""

import logging
import os
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple

import orjson

from shared.config import IngestSettings
from shared.errors import SluiceError
from shared.kinds.ingest import LoadOptions
from workers.ingest.formats.container import Member
from workers.ingest.load import load, members

LENGTHS: Final = struct.Struct("<QQ")
READY: Final = {"ready": True}


class Frame(NamedTuple):
    header: dict[str, Any]
    data: bytes


def packed(header: dict[str, Any], data_bytes: int) -> bytes:
    """A frame without its bytes, which follow."""
    encoded = orjson.dumps(header)
    return LENGTHS.pack(len(encoded), data_bytes) + encoded


def main() -> None:
    memory_bytes = int(sys.argv[1])
    # The worker ends it; Ctrl-C in a terminal does not.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.basicConfig(level=logging.WARNING)
    # What libraries print must not mix with answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    _write(answers, READY)
    while (request := _read(sys.stdin.buffer)) is not None:
        settings = IngestSettings.model_construct(**request.header["settings"])
        # The default action of the signal ends the process, also in the middle of C code.
        signal.setitimer(signal.ITIMER_PROF, settings.load_limit_s)
        answer: dict[str, Any]
        try:
            if request.header["of"] == "members":
                for member in members(**_arguments(request, settings)):
                    _write(answers, {"member": _less_data(member)}, member.data)
                answer = {}
            else:
                answer = {"loaded": load(**_arguments(request, settings)).as_json()}
        except SluiceError as error:
            answer = {"error": [type(error).__name__, error.message]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answers, answer | {"peak_bytes": _peak_bytes(), "last": True})


def _peak_bytes() -> int:
    """The peak memory of this program. `getrusage` would include that of the worker that started
    it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _arguments(request: Frame, settings: IngestSettings) -> dict[str, Any]:
    header = request.header
    return {
        "data": request.data.decode() if header["is_text"] else request.data,
        "name": header["name"],
        "content_type": header["content_type"],
        "file_name": header.get("file_name"),
        "options": LoadOptions.model_validate(header["options"]),
        "settings": settings,
    }


def _less_data(member: Member) -> dict[str, str | None]:
    return {"name": member.name, "content_type": member.content_type, "error": member.error}


def _read(source: BinaryIO) -> Frame | None:
    lengths = source.read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header_bytes, data_bytes = LENGTHS.unpack(lengths)
    header = orjson.loads(source.read(header_bytes))
    return Frame(header, source.read(data_bytes))


def _write(target: BinaryIO, header: dict[str, Any], data: bytes = b"") -> None:
    target.write(packed(header, len(data)))
    target.write(data)
    target.flush()


if __name__ == "__main__":
    main()
