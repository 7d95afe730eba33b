"""Image classification gives what transformers' pipeline gives, and survives what is no image."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image
from transformers import pipeline

from shared.errors import InvalidInput
from shared.kinds.hf import Task
from tests.models.hf_tasks import HALF, OPTIONS, assert_same, outputs
from tests.tiny import vit
from tests.tiny_models import one_thread
from workers.hf.tasks import classification
from workers.hf.tasks.classification import ImageClassification, decode_image
from workers.models.load import LoadOptions

CLASSIFY = Task("image-classification")
LIMIT = OPTIONS.image_limit_pixels


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As workers have it; more of them only wait for each other over models this small."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def classifier() -> ImageClassification:
    return classification.load_image_classification(vit.folder(), OPTIONS)


def _file(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("options", [OPTIONS, HALF])
def test_colours_are_right(options: LoadOptions, form: str) -> None:
    classifier = classification.load_image_classification(vit.folder(), options)
    files = [_file(vit.picture(label, size=(90, 70), spots=2), form) for label in vit.COLOURS]
    answers = outputs(classifier, CLASSIFY, files)
    assert [answer[0]["label"] for answer in answers] == list(vit.COLOURS)
    assert all(len(answer) == 3 and answer[0]["score"] > 0.9 for answer in answers)


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 2}, {"function_to_apply": "none"}, {"function_to_apply": "sigmoid"}]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16", "CMYK"])
def test_scores_are_those_of_the_pipeline(
    classifier: ImageClassification, mode: str, options: dict[str, Any]
) -> None:
    expected = pipeline(
        "image-classification", model=classifier.model, image_processor=classifier.processor
    )
    pictures = [
        vit.picture(label, size=(70, 30 + n), spots=n) for n, label in enumerate(vit.COLOURS)
    ]
    if mode == "I;16":
        pictures = [picture.convert("I").convert("I;16") for picture in pictures]
    else:
        pictures = [picture.convert(mode) for picture in pictures]
    files = [_file(picture, "JPEG" if mode == "CMYK" else "PNG") for picture in pictures]
    opened: list[Image.Image] = [Image.open(io.BytesIO(file)) for file in files]
    reference = expected(opened, **options)
    assert_same(outputs(classifier, CLASSIFY, files, **options), reference)


def test_pictures_are_turned_upright() -> None:
    """A camera held sideways writes so; the model was trained on upright pictures."""
    exif = Image.Exif()
    exif[0x0112] = 6  # Orientation: turn it by 90 degrees to the right.
    image = Image.new("RGB", (60, 20))
    image.paste((255, 255, 255), (0, 0, 30, 20))
    upright = decode_image(_file(image, exif=exif), limit_pixels=LIMIT)
    assert upright.size == (20, 60)
    assert upright.getpixel((10, 5)) == (255, 255, 255)
    assert upright.getpixel((10, 55)) == (0, 0, 0)


def test_what_is_no_image_is_refused(classifier: ImageClassification) -> None:
    gif = _file(vit.picture("red"), "GIF")
    for content in (
        b"",
        b"not an image",
        b"\x89PNG\r\n\x1a\n",
        b"\xff\xd8\xff\xe0",
        gif,
        b"RIFF" * 9,
    ):
        with pytest.raises(InvalidInput, match="no image in PNG, JPEG or WebP"):
            outputs(classifier, CLASSIFY, [content])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_damaged_image_is_refused(classifier: ImageClassification, form: str) -> None:
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    whole = _file(noise, form)
    with pytest.raises(InvalidInput, match=r"damaged|no image"):
        outputs(classifier, CLASSIFY, [whole[: len(whole) // 2]])


def test_a_bomb_is_refused_before_it_is_decoded(classifier: ImageClassification) -> None:
    """A few bytes that would be gigabytes of pixels."""
    for side, message in (20_000, "too large"), (8_500, "72,250,000|8,500 x 8,500 pixels"):
        with pytest.raises(InvalidInput, match=message):
            outputs(classifier, CLASSIFY, [_empty_png(side)])
    small = ImageClassification(
        classifier.model, classifier.processor, replace(OPTIONS, image_limit_pixels=1919)
    )
    with pytest.raises(InvalidInput, match="48 x 40 pixels; 1,919 are the limit"):
        outputs(small, CLASSIFY, [_file(vit.picture("red"))])


def _empty_png(side: int) -> bytes:
    """The head of a picture, and no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
