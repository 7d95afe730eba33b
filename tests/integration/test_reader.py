"""Documents are read beside the worker: whatever a library does, it is one document's error."""

import os
import threading
from collections.abc import Iterator

import pytest

from shared.config import Settings
from shared.errors import Cancelled, DocumentError
from shared.kinds.ingest import LoadOptions
from tests.integration import reader_formats
from workers.ingest.load import LoadedText
from workers.ingest.reader import Reader


@pytest.fixture(scope="module", autouse=True)
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("site")
    reader_formats.make_known(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("SLUICE_API_KEY", "secret")
        yield


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    # Memory for the process itself, and a bit; processor time that a document needs a part of.
    settings = Settings(load_limit_s=0.5, load_memory_mib=320, max_document_chars=10**6)
    reader = Reader(settings)
    yield reader
    reader.close()


def read(reader: Reader, text: str, *, name: str = "a.moody") -> LoadedText:
    return reader.load(
        text.encode(), name=name, content_type=None, options=LoadOptions(), check=lambda: None
    )


def test_a_document_is_read_as_in_the_worker(reader: Reader) -> None:
    loaded = read(reader, "is 한글")
    assert loaded.text == "한글\n\nby 1000000"
    assert [(p.text, p.start, p.metadata) for p in loaded.passages] == [
        ("한글", 0, {"page": 1}),
        ("by 1000000", 4, {}),
    ]
    assert loaded.metadata["media_type"] == "x/moody"
    assert loaded.metadata["secrets"] == ""
    assert loaded.metadata["pid"] != os.getpid()


def test_a_child_reads_one_document_after_the_other(reader: Reader) -> None:
    first = read(reader, "is one")
    with pytest.raises(DocumentError, match=r"a\.moody: cannot be read as Moody .*no such table"):
        read(reader, "fails")
    with pytest.raises(DocumentError, match="nested too deeply"):
        read(reader, "recurses")
    assert read(reader, "talks two").text.startswith("two")
    assert read(reader, "is three").metadata["pid"] == first.metadata["pid"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("spins", "more than 0.5 s of processor time.*SLUICE_LOAD_LIMIT_S"),
        ("grows", "SLUICE_LOAD_MEMORY_MIB"),
        ("crashes", r"crashed \(SIGSEGV\)"),
        ("is-killed", r"crashed \(SIGKILL\)"),
        ("exits", r"crashed \(exit code 3\)"),
    ],
)
def test_a_library_that_runs_wild_is_an_error_of_the_document(
    reader: Reader, text: str, message: str
) -> None:
    with pytest.raises(DocumentError, match=rf"^wild\.moody: .*{message}"):
        read(reader, text, name="wild.moody")
    assert read(reader, "is well").text.startswith("well")


def test_a_step_that_has_to_stop_stops_in_the_middle_of_a_document(reader: Reader) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.3, stop.set)

    def check() -> None:
        if stop.is_set():
            raise Cancelled("the job was cancelled")

    timer.start()
    with pytest.raises(Cancelled):
        reader.load(b"waits", name="a.moody", content_type=None, options=LoadOptions(), check=check)
    timer.join()


def test_a_document_that_only_waits_ends_before_its_step() -> None:
    hasty = Reader(Settings(step_soft_limit_s=1))
    try:
        with pytest.raises(DocumentError, match=r"a\.moody: takes too long.*SLUICE_STEP_SOFT_LIM"):
            read(hasty, "waits")
    finally:
        hasty.close()


def test_a_large_document_goes_through_whole(reader: Reader) -> None:
    text = "가나다 " * 200_000
    assert read(reader, f"is {text}").text.startswith(text.strip())
