"""What reading costs by format: documents and megabytes a second, beside LangChain's loader of the
format, one after the other in one process, of the same files.

Nothing is split or embedded, and no process beside this one reads; of archives, members are taken
out and not read. A loader whose packages are not there is named and left out; for most of them:
`pip install docx2txt extract-msg jq pysrt tomli "unstructured[docx,pptx,xlsx,odt,epub,md,rtf]"`.
`--doubling` reads documents of twice the size instead, and shows by
how much that takes longer: `python -m bench.formats --paragraphs 200 --only Word,PDF`.
"""

import argparse
import importlib
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.support.documents import WRITERS
from shared.config import IngestSettings
from shared.formats import FORMATS
from shared.kinds.ingest import LoadOptions
from workers.ingest.load import load, members

LANGCHAIN: Final[dict[str, tuple[str, str, dict[str, Any]]]] = {
    "text": ("text", "TextLoader", {"encoding": "utf-8"}),
    "Markdown": ("markdown", "UnstructuredMarkdownLoader", {}),
    "HTML": ("html_bs", "BSHTMLLoader", {"open_encoding": "utf-8"}),
    "CSV": ("csv_loader", "CSVLoader", {"encoding": "utf-8"}),
    "TSV": ("csv_loader", "CSVLoader", {"encoding": "utf-8", "csv_args": {"delimiter": "\t"}}),
    "JSON": ("json_loader", "JSONLoader", {"jq_schema": ".[].text"}),
    "JSON Lines": ("json_loader", "JSONLoader", {"jq_schema": ".text", "json_lines": True}),
    "reStructuredText": ("rst", "UnstructuredRSTLoader", {}),
    "XML": ("xml", "UnstructuredXMLLoader", {}),
    "TOML": ("toml", "TomlLoader", {}),
    "log": ("text", "TextLoader", {"encoding": "utf-8"}),
    "SubRip": ("srt", "SRTLoader", {}),
    "source code": ("python", "PythonLoader", {}),
    "PDF": ("pdf", "PyPDFium2Loader", {}),
    "Word": ("word_document", "Docx2txtLoader", {}),
    "Excel": ("excel", "UnstructuredExcelLoader", {}),
    "Excel 97": ("excel", "UnstructuredExcelLoader", {}),
    "PowerPoint": ("powerpoint", "UnstructuredPowerPointLoader", {}),
    "OpenDocument text": ("odt", "UnstructuredODTLoader", {}),
    "EPUB": ("epub", "UnstructuredEPubLoader", {}),
    "RTF": ("rtf", "UnstructuredRTFLoader", {}),
    "EML": ("email", "UnstructuredEmailLoader", {}),
    "MSG": ("email", "OutlookMessageLoader", {}),
}
"""Module, class and options of LangChain's loader; it has none for the other formats."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=8, help="of each format")
    parser.add_argument("--paragraphs", type=int, default=100, help="or rows, of a document")
    parser.add_argument("--only", default="", help="formats, separated by commas")
    parser.add_argument("--doubling", action="store_true")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or [
        name for name in FORMATS if name in WRITERS
    ]
    unknown = [name for name in names if name not in WRITERS]
    if unknown:
        parser.error(f"there are no documents of {', '.join(unknown)}, but of {', '.join(WRITERS)}")
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        if options.doubling:
            return _double(names, options.paragraphs, Path(folder))
        print(f"{'format':26}{'KiB':>8}{'documents/s':>13}{'MB/s':>8}  LangChain")
        for name in names:
            path = _write(name, options.paragraphs, Path(folder))
            size = path.stat().st_size
            seconds = _seconds(partial(_load, path), options.documents)
            print(
                f"{name:26}{size / 1024:8.0f}{1 / seconds:13.1f}{size / seconds / 1e6:8.2f}  "
                f"{_beside(name, path, options.documents, seconds)}",
                flush=True,
            )
    return 0


def _double(names: list[str], paragraphs: int, folder: Path) -> int:
    print(f"{'format':26}{paragraphs:>12,}{2 * paragraphs:>12,}{'ratio':>8}  (s)")
    for name in names:
        seconds = []
        for size in (paragraphs, 2 * paragraphs):
            path = _write(name, size, folder)
            seconds.append(_seconds(partial(_load, path), 3))
        print(
            f"{name:26}{seconds[0]:12.3f}{seconds[1]:12.3f}{seconds[1] / seconds[0]:8.2f}",
            flush=True,
        )
    return 0


def _write(name: str, size: int, folder: Path) -> Path:
    path = folder / f"{name.replace(' ', '_')}{FORMATS[name].suffixes[0]}"
    path.write_bytes(WRITERS[name](size))
    return path


def _load(path: Path) -> object:
    data = path.read_bytes()
    if _is_archive(path):
        return list(
            members(
                data,
                name=path.name,
                content_type=None,
                options=LoadOptions(),
                settings=IngestSettings.model_construct(),
            )
        )
    return load(data, name=path.name, content_type=None)


def _is_archive(path: Path) -> bool:
    return any(
        path.suffix in format_.suffixes and not format_.is_document for format_ in FORMATS.values()
    )


def _seconds(read: Callable[[], object], documents: int) -> float:
    """For one document, at the median; the first reading imports what is needed."""
    read()
    times: list[float] = []
    for _ in range(documents):
        start = time.perf_counter()
        read()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _beside(name: str, path: Path, documents: int, own: float) -> str:
    if name not in LANGCHAIN:
        return "has no loader"
    module, class_, arguments = LANGCHAIN[name]
    try:
        loader: Any = getattr(
            importlib.import_module(f"langchain_community.document_loaders.{module}"), class_
        )
        seconds = _seconds(lambda: loader(str(path), **arguments).load(), documents)
    except ImportError as missing:
        return f"{class_}: left out, a package is missing ({' '.join(str(missing).split())[:60]})"
    return f"{class_}: {1 / seconds:.1f} documents/s; Sluice {seconds / own:.2f} times as fast"


if __name__ == "__main__":
    raise SystemExit(main())
