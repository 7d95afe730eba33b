"""Every format of files is complete: its record, its loader, and what is derived from them."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from shared.config import IngestSettings
from shared.errors import Cancelled, DocumentError
from shared.formats import FORMATS, Format, suffixes
from shared.kinds.ingest import LoadOptions, OcrOptions, SpeechOptions
from sluice.sources import OPTIONAL, SUPPORTED
from tests.unit.documents import read, refusal
from workers.ingest.formats.loader import (
    DocumentKey,
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
    Utterance,
)
from workers.ingest.load import LoadedText, load, loader_of, members

ROOT = Path(__file__).resolve().parents[2]
every_format = pytest.mark.parametrize("format_", FORMATS.values(), ids=list(FORMATS))


@every_format
def test_a_format_is_known_by_a_suffix_and_a_media_type(format_: Format) -> None:
    assert format_.name
    assert format_.suffixes
    assert all(re.fullmatch(r"\.[a-z0-9]+", suffix) for suffix in format_.suffixes)
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", type_) for type_ in format_.media_types)


REQUESTED = LoadOptions(ocr=OcrOptions(languages=["eng"]), speech=SpeechOptions())
HEARD = [Utterance(start_s=0.5, end_s=1.5, text="We open at nine.")]


@every_format
def test_its_example_is_loaded_by_suffix_and_by_media_type(format_: Format) -> None:
    if format_.option == "ocr" and shutil.which("tesseract") is None:
        pytest.skip("there is no tesseract here")
    loader = loader_of(format_)
    assert isinstance(loader, Loader), f"{format_.loader} is no Loader"
    for suffix in format_.suffixes:
        check_example(format_, f"example{suffix.upper()}", None)
    for media_type in format_.media_types:
        check_example(format_, "example", f"{media_type.upper()}; charset=utf-8")


def check_example(format_: Format, name: str, content_type: str | None) -> None:
    loader = loader_of(format_)
    if format_.is_document:
        loaded = load(
            loader.example,
            name=name,
            content_type=content_type,
            options=REQUESTED,
            transcript=HEARD if format_.option == "speech" else None,
        )
        assert loaded.text == loader.example_text
        assert loaded.metadata["media_type"] == format_.media_types[0]
        assert LoadedText.of_json(json.loads(json.dumps(loaded.as_json()))) == loaded
        return
    assert "is an archive" in refusal(loader.example, name, content_type=content_type)
    (member,) = members(
        loader.example,
        name=name,
        content_type=content_type,
        options=LoadOptions(),
        settings=IngestSettings.model_construct(),
    )
    assert member.name.startswith(f"{name}!/")
    assert (member.data.decode(), member.error) == (loader.example_text, "")


@every_format
def test_a_format_that_is_read_on_request_alone_names_the_option(format_: Format) -> None:
    name, example = f"a{format_.suffixes[0]}", loader_of(format_).example
    assert set(format_.suffixes) <= suffixes([format_.option])
    assert bool(format_.option) == (not set(format_.suffixes) & suffixes())
    if format_.option:
        assert format_.option in LoadOptions.model_fields
        for name_, content_type in ((name, None), ("a", format_.media_types[0]), ("a.txt", None)):
            message = refusal(example, name_, content_type=content_type)
            assert f'`"{format_.option}": {{}}`' in message
            assert f"--{format_.option}" in message


@every_format
def test_formats_that_hold_documents_have_members(format_: Format) -> None:
    loader = loader_of(format_)
    assert (loader.members is not None) == format_.holds_documents
    assert (loader.load is not None) == format_.is_document


def test_no_two_formats_have_a_suffix_or_a_media_type_in_common() -> None:
    for field in ("suffixes", "media_types"):
        values = [value for format_ in FORMATS.values() for value in getattr(format_, field)]
        assert len(values) == len(set(values)), f"{field}: {sorted(values)}"


@every_format
def test_the_page_of_documents_has_it(format_: Format) -> None:
    page = (ROOT / "docs/documents.md").read_text(encoding="utf-8")
    names = " ".join(f"`{suffix}`" for suffix in format_.suffixes)
    types = ", ".join(f"`{media_type}`" for media_type in format_.media_types)
    row = f"| {format_.name} | {names} | {types} |"
    assert row in page, f"docs/documents.md lacks the row: {row}"


def test_the_client_looks_for_the_files_that_can_be_read() -> None:
    assert suffixes() == SUPPORTED, "SUPPORTED of the client's sources.py is another list"
    options = {format_.option for format_ in FORMATS.values()} - {""}
    assert {option: suffixes([option]) - suffixes() for option in options} == OPTIONAL


def _load_stamped(document: RawDocument) -> DocumentParts:
    return DocumentParts(passages=[(document.content.removeprefix(b"STAMP\0").decode(), {})])


STAMPED = Loader(load=_load_stamped, example=b"STAMP\0text", example_text="text")


def test_a_format_of_bytes_may_be_known_by_its_first_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    stamped = Format(
        "Stamped",
        [".stamped"],
        ["application/x-stamped"],
        f"{__name__}:STAMPED",
        is_text=False,
        signatures=[b"STAMP\0"],
    )
    monkeypatch.setitem(FORMATS, stamped.name, stamped)
    loaded = load(STAMPED.example, name="upload", content_type=None)
    assert loaded.text == "text"
    assert loaded.metadata == {"media_type": "application/x-stamped"}


FAILURES = {
    "cannot be read as Failing (ValueError: no such table)": ValueError("no\nsuch  table"),
    "cannot be read as Failing (KeyError: 3). It may be damaged": KeyError(3),
    "nested too deeply": RecursionError("maximum recursion depth exceeded"),
    "takes more memory": MemoryError(),
    "lack a package: No module named 'failing'. Install the extra failing": ModuleNotFoundError(
        "No module named 'failing'", name="failing"
    ),
    "its own words": DocumentError("a.failing: its own words"),
}


def _load_failing(document: RawDocument) -> DocumentParts:
    def passages() -> Iterator[RawPassage]:
        yield "a passage", {}
        raise FAILURES[document.content.decode()]

    if document.options.encoding:
        raise FAILURES[document.content.decode()]
    return DocumentParts(passages=passages())


FAILING = Loader(load=_load_failing, example=b"", example_text="")


@pytest.mark.parametrize("message", FAILURES)
@pytest.mark.parametrize("at_once", [True, False])
def test_whatever_a_loader_raises_names_the_document(
    monkeypatch: pytest.MonkeyPatch, message: str, at_once: bool
) -> None:
    failing = Format("Failing", [".failing"], ["x/f"], f"{__name__}:FAILING", extra="failing")
    monkeypatch.setitem(FORMATS, failing.name, failing)
    with pytest.raises(DocumentError) as caught:
        read(message.encode(), "a.failing", options=LoadOptions(encoding="x" if at_once else None))
    assert caught.value.message.startswith("a.failing: ")
    assert message in caught.value.message


def test_what_stops_a_step_stops_a_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Format("Failing", [".failing"], ["x/f"], f"{__name__}:FAILING")
    monkeypatch.setitem(FORMATS, failing.name, failing)
    for stop in (SoftTimeLimitExceeded(), Cancelled("the job was cancelled")):
        monkeypatch.setitem(FAILURES, "stop", stop)
        with pytest.raises(type(stop)):
            read(b"stop", "a.failing")


def test_keys_of_documents_and_of_passages_are_other_ones() -> None:
    assert not {key.value for key in DocumentKey} & {key.value for key in PassageKey}


def test_the_page_of_documents_has_each_key_that_loaders_note_and_each_option() -> None:
    page = (ROOT / "docs/documents.md").read_text(encoding="utf-8")
    metadata = page.partition("\n## Metadata\n")[2].partition("\n## ")[0]
    options = page.partition("\n## Options\n")[2].partition("\n## ")[0]
    missing = [key for key in (*DocumentKey, *PassageKey) if f"`{key}`" not in metadata]
    for name, field in LoadOptions.model_fields.items():
        label = field.alias or name
        inner: dict[str, object] = getattr(field.annotation, "model_fields", {})
        labels = [f"{label}.{inner_name}" for inner_name in inner] or [label]
        missing += [path for path in labels if f"`{path}`" not in options]
    assert not missing
