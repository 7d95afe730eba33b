"""Optical character recognition by tesseract: pictures, scans, pages of a PDF -> text.

Only if a job has the option `ocr`. The workers' machine needs the program and the data of its
languages (Debian: tesseract-ocr, tesseract-ocr-kor); no Python package contains them.
"""

import io
import os
import re
import shutil
import subprocess
from typing import Final

from PIL import Image

from shared.errors import DocumentError
from workers.ingest.formats.loader import RawDocument

DPI: Final = 200
"""The resolution at which pages of a PDF are rendered."""
_PROGRAM: Final = "tesseract"
_LANGUAGE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_EMPTY_LINES: Final = re.compile(r"\n{3,}")


def text_of_picture(picture: Image.Image, document: RawDocument, *, dpi: int | None) -> str:
    """The text of a picture; empty if there is none. Without `dpi` tesseract estimates the
    resolution.

    Raises DocumentError if tesseract or the data of a language is missing, or if it takes longer
    than SLUICE_OCR_PAGE_LIMIT_S.
    """
    chosen = document.options.ocr.languages if document.options.ocr is not None else None
    languages = "+".join(chosen) if chosen else document.settings.ocr_languages
    if not all(_LANGUAGE.fullmatch(language) for language in languages.split("+")):
        raise DocumentError(
            f"{document.name}: {languages!r} names no languages of {_PROGRAM}, such as kor or eng."
        )
    program = shutil.which(_PROGRAM)
    if program is None:
        raise DocumentError(
            f"{document.name}: the workers have no {_PROGRAM} to recognize text with. Install it "
            "where they run (Debian: tesseract-ocr and tesseract-ocr-kor), or ingest without ocr."
        )
    resolution = ["--dpi", str(dpi)] if dpi is not None else []
    stream = io.BytesIO()
    picture.convert("L").save(stream, "PNG")
    limit_s = document.settings.ocr_page_limit_s
    try:
        ended = subprocess.run(
            [program, "stdin", "stdout", "-l", languages, *resolution],
            input=stream.getvalue(), capture_output=True, timeout=limit_s, check=False,
            # Its threads slow each other down, and there are several workers.
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired as late:
        raise DocumentError(
            f"{document.name}: recognizing a page takes more than {limit_s:g} s. Raise "
            "SLUICE_OCR_PAGE_LIMIT_S, or scan it at a lower resolution."
        ) from late
    if ended.returncode:
        complaint = " ".join(ended.stderr.decode("utf-8", "replace").split())[:300]
        raise DocumentError(
            f"{document.name}: {_PROGRAM} cannot recognize text in {languages}: {complaint}. Where "
            "the workers run, install the data of these languages (Debian: tesseract-ocr-kor), or "
            "name others in ocr.languages."
        )
    text = ended.stdout.decode("utf-8", "replace").replace("\f", "")
    return _EMPTY_LINES.sub("\n\n", text).strip()
