"""Every format of files is complete: its record, its loader, and what is derived from them."""

import re
from pathlib import Path

import pytest

from shared.formats import FORMATS, Format, suffixes
from shared.kinds.ingest import CsvOptions
from sluice.sources import SUPPORTED
from tests.unit.loading import read
from workers.ingest.formats.loader import DocumentParts, Loader, RawDocument
from workers.ingest.load import load, loader_of

ROOT = Path(__file__).resolve().parents[2]
every_format = pytest.mark.parametrize("format_", FORMATS.values(), ids=list(FORMATS))


@every_format
def test_a_format_is_known_by_a_suffix_and_a_media_type(format_: Format) -> None:
    assert format_.name
    assert format_.suffixes
    assert all(re.fullmatch(r"\.[a-z0-9]+", suffix) for suffix in format_.suffixes)
    assert all(re.fullmatch(r"[a-z]+/[a-z0-9.+-]+", type_) for type_ in format_.media_types)


@every_format
def test_its_example_is_loaded_by_suffix_and_by_media_type(format_: Format) -> None:
    loader = loader_of(format_)
    assert isinstance(loader, Loader), f"{format_.loader} is no Loader"
    for suffix in format_.suffixes:
        loaded = read(loader.example, f"example{suffix.upper()}")
        assert loaded.text == loader.example_text
        assert loaded.metadata["media_type"] == format_.media_types[0]
    for media_type in format_.media_types:
        declared = f"{media_type.upper()}; charset=utf-8"
        loaded = read(loader.example, "example", content_type=declared)
        assert loaded.text == loader.example_text
        assert loaded.metadata["media_type"] == format_.media_types[0]


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


def _load_stamped(document: RawDocument) -> DocumentParts:
    return DocumentParts(passages=[(document.content.removeprefix(b"STAMP\0").decode(), {})])


STAMPED = Loader(load=_load_stamped, example=b"STAMP\0text", example_text="text")


def test_a_format_of_bytes_may_be_known_by_its_first_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    stamped = Format(
        "Stamped", [".stamped"], ["application/x-stamped"], f"{__name__}:STAMPED", magic=b"STAMP\0"
    )
    monkeypatch.setitem(FORMATS, stamped.name, stamped)
    loaded = load(
        STAMPED.example, name="upload", content_type=None, csv=CsvOptions(), max_chars=100
    )
    assert loaded.text == "text"
    assert loaded.metadata == {"media_type": "application/x-stamped"}
