"""Pictures as documents: pages, transparency, depth and turns; sizes and damage are refused."""

import io
import shutil
from typing import Any

import pytest
from PIL import Image, ImageDraw, ImageFont

from shared.config import IngestSettings
from shared.kinds.ingest import LoadOptions, OcrOptions
from tests.unit.documents import read, refusal

ENGLISH = LoadOptions(ocr=OcrOptions(languages=["eng"]))
needs_tesseract = pytest.mark.skipif(
    shutil.which("tesseract") is None, reason="there is no tesseract here"
)


def drawn(text: str, mode: str = "L", ink: Any = 0, paper: Any = 255) -> Image.Image:
    picture = Image.new(mode, (500, 100), paper)
    ImageDraw.Draw(picture).text((30, 25), text, fill=ink, font=ImageFont.load_default(36))
    return picture


def saved(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def passages(data: bytes, name: str) -> list[tuple[str, dict[str, Any]]]:
    return [(p.text, p.metadata) for p in read(data, name, options=ENGLISH).passages]


@needs_tesseract
def test_each_page_of_a_tiff_is_a_passage() -> None:
    pages = [drawn("The first page."), Image.new("L", (500, 100), 255), drawn("The third page.")]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert passages(data, "fax.tiff") == [
        ("The first page.", {"page": 1}),
        ("The third page.", {"page": 3}),
    ]


def clear() -> bytes:
    """Black letters on nothing, as logos and screenshots have them."""
    return saved(drawn("We open at nine.", "RGBA", (0, 0, 0, 255), (0, 0, 0, 0)))


def deep() -> bytes:
    """Of a scanner with 16 bits."""
    light = drawn("We open at nine.").convert("I").point(lambda value: value * 257)
    return saved(light.convert("I;16"))


def turned() -> bytes:
    """As cameras turn pictures: the pixels lie, and a note says how."""
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = drawn("We open at nine.").convert("RGB").transpose(Image.Transpose.ROTATE_90)
    return saved(lying, "JPEG", exif=exif)


@needs_tesseract
@pytest.mark.parametrize("make", [clear, deep, turned])
def test_a_picture_is_read_as_it_is_seen(make: Any) -> None:
    assert passages(make(), "a.png") == [("We open at nine.", {})]


@needs_tesseract
def test_a_picture_without_text_says_so() -> None:
    assert "has no text" in refusal(saved(drawn("")), "a.png", options=ENGLISH)


def test_sizes_and_damage_are_refused() -> None:
    small = IngestSettings.model_construct(ocr_page_limit_pixels=49_999)
    message = refusal(saved(drawn("x")), "a.png", options=ENGLISH, settings=small)
    assert "500 x 100 pixels" in message
    assert "SLUICE_OCR_PAGE_LIMIT_PIXELS" in message
    for form in ("PNG", "JPEG", "TIFF", "WEBP"):
        whole = saved(drawn("x"), form)
        for data in (whole[: len(whole) // 2], whole[:12]):
            assert "cut off" in refusal(data, f"a.{form.lower()}", options=ENGLISH)


def test_a_picture_is_what_its_bytes_say() -> None:
    assert "pictures (PNG)" in refusal(saved(drawn("x")), "a.pdf")
    assert "is plain text" in refusal(b"no picture at all", "a.png", options=ENGLISH)
