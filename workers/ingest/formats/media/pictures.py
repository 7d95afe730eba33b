"""Pictures (PNG, JPEG, TIFF, WebP) -> the text in them, by optical character recognition.

Only if a job has the option `ocr` (`ocr.py`). Each page of a TIFF is a passage with its number; of
an animation, the first frame is read. By Pillow (MIT-CMU), which LangChain's loaders for pictures
use, too.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from shared.errors import DocumentError
from workers.ingest.formats.loader import (
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    RawPassage,
    too_many,
)
from workers.ingest.formats.media.ocr import text_of_picture

_FORMATS: Final = ("PNG", "JPEG", "TIFF", "WEBP")
_LIKELY_DPI: Final = range(100, 1201)
"""Resolutions that scanners store; other programs store 72 or 96 whatever the picture."""
_DAMAGE: Final = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError)
"""Errors that Pillow raises for damaged pictures."""


def load(document: RawDocument) -> DocumentParts:
    return DocumentParts(passages=_passages(document))


def _passages(document: RawDocument) -> Iterator[RawPassage]:
    with _open(document) as picture:
        pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
        if pages > document.max_passages:
            raise too_many(document.name, document.max_passages)
        for page in range(pages):
            shown = _page(document, picture, page)
            text = text_of_picture(shown, document, dpi=_dpi(picture))
            if text:
                yield text, {PassageKey.PAGE: page + 1} if pages > 1 else {}


@contextmanager
def _own_bounds() -> Iterator[None]:
    """Switch off Pillow's limit of pixels: a setting limits them here."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _open(document: RawDocument) -> Image.Image:
    try:
        with _own_bounds(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's warnings about the document
            return Image.open(io.BytesIO(document.content), formats=_FORMATS)
    except (UnidentifiedImageError, *_DAMAGE) as wrong:
        raise _damage(document, wrong) from wrong


def _damage(document: RawDocument, wrong: object) -> DocumentError:
    reason = " ".join(str(wrong).split())[:200].rstrip(".")
    return DocumentError(
        f"{document.name}: is no picture that can be read ({reason}). It may be damaged or cut "
        "off: save it again."
    )


def _page(document: RawDocument, picture: Image.Image, page: int) -> Image.Image:
    """A page as people see it: upright, and on white where it is transparent. Raises
    DocumentError."""
    limit = document.settings.ocr_page_limit_pixels
    try:
        with _own_bounds():
            picture.seek(page)
        if math.prod(picture.size) > limit:
            width, height = picture.size
            raise DocumentError(
                f"{document.name}: is a picture of {width:,} x {height:,} pixels; text is "
                f"recognized in up to {limit:,} (SLUICE_OCR_PAGE_LIMIT_PIXELS). Scale it down, or "
                "cut it into several."
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture.load()
        shown = ImageOps.exif_transpose(picture)
    except _DAMAGE as wrong:
        raise _damage(document, wrong) from wrong
    if shown.has_transparency_data:
        shown = shown.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown)
    if shown.mode.startswith("I"):  # 16-bit gray, which convert() alone would clip
        return shown.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return shown


def _dpi(picture: Image.Image) -> int | None:
    noted = picture.info.get("dpi")
    try:
        dpi = round(float(noted[0])) if noted else 0
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return dpi if dpi in _LIKELY_DPI else None


def _example(format_: str) -> bytes:
    picture = Image.new("L", (420, 80), 255)
    ImageDraw.Draw(picture).text((30, 20), _TEXT, fill=0, font=ImageFont.load_default(32))
    stream = io.BytesIO()
    picture.save(stream, format_)
    return stream.getvalue()


_TEXT: Final = "We open at nine."
_loader = partial(Loader, load=load, example_text=_TEXT)
PNG = _loader(example=_example("PNG"))
JPEG = _loader(example=_example("JPEG"))
TIFF = _loader(example=_example("TIFF"))
WEBP = _loader(example=_example("WEBP"))
