"""Formats that hang, crash, eat memory and talk, each by the name of the document's first word; and
the module that makes a reader's child know them."""

import ctypes
import os
import signal
import time
from pathlib import Path

from shared.formats import FORMATS, Format
from workers.ingest.formats.loader import DocumentParts, Loader, RawDocument

SITE = f"import {__name__} as formats\nformats.register()\n"


def load(document: RawDocument) -> DocumentParts:
    deed, _, rest = document.content.decode().partition(" ")
    if deed == "spins":
        while True:
            pass
    if deed == "waits":
        time.sleep(600)
    if deed == "grows":
        blocks = []
        while True:
            blocks.append(bytes(2**24))
    if deed == "crashes":
        ctypes.string_at(0)
    if deed == "exits":
        os._exit(3)
    if deed == "is-killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "recurses":
        load(document)
    if deed == "fails":
        raise ValueError("no such table")
    if deed == "talks":
        print("a warning of the library", flush=True)
        os.write(1, b"and one of C code\n")
    secrets = sorted(name for name in os.environ if name.startswith("SLUICE_"))
    return DocumentParts(
        passages=[(rest, {"page": 1}), (f"by {document.settings.max_document_chars}", {})],
        metadata={"secrets": ", ".join(secrets), "pid": os.getpid()},
    )


LOADER = Loader(load=load, example=b"is read", example_text="read")


def register() -> None:
    FORMATS["Moody"] = Format(
        "Moody", [".moody"], ["x/moody"], f"{__name__}:LOADER", is_isolated=True
    )


def make_known(folder: Path) -> None:
    """Children that have the folder in their path know the format."""
    (folder / "sitecustomize.py").write_text(SITE)
