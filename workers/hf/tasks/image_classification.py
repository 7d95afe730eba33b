"""Image classification: what a picture shows, best label first.

Pictures are PNG, JPEG or WebP. They are turned upright by their EXIF data, as transformers'
pipeline does, and are small tensors by the time that they wait for a batch.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel

from shared.errors import InvalidInput
from shared.kinds.hf import ImageClassificationParameters, Task, TaskParameters
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.text import labelled
from workers.models.load import load_image_processor, load_model

FORMATS = ("PNG", "JPEG", "WEBP")
# Of vision transformers' usual patches; that of another model costs about as much.
PIXELS_PER_TOKEN = 16 * 16


class ImageClassification(LocalTask):
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, processor: BaseImageProcessor, options: Options
    ) -> None:
        super().__init__(model, options)
        self.processor = processor

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        del parameters  # They only matter to `finish`.
        image = decode_image(value, limit_pixels=self.options.image_limit_pixels)
        inputs = dict(self.processor(images=image, return_tensors="pt"))
        *_, height, width = inputs["pixel_values"].shape
        shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
        row = Row(size=max(1, height * width // PIXELS_PER_TOKEN), data=inputs, group=str(shapes))
        return Prepared(rows=[row])

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        del watch  # One pass through an encoder is not worth watching.
        inputs = {
            name: _fitted(torch.cat([row.data[name] for row in rows]), self.model)
            for name in rows[0].data
        }
        with torch.inference_mode():
            output: list[list[float]] = self.model(**inputs).logits.float().tolist()
        return output

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del prepared
        assert isinstance(parameters, ImageClassificationParameters)
        [output] = outputs
        return labelled(output, self.model.config, parameters.function_to_apply, parameters.top_k)


def decode_image(content: bytes, *, limit_pixels: int) -> Image.Image:
    """An upright RGB picture. Raises InvalidInput for what is none, and for one so large that it
    would fill the memory; its size is known before anything is decoded."""
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidInput(f"the image is too large: {error}") from error
    except Exception as error:  # Decoders raise whatever they run into.
        raise InvalidInput("this is no image in PNG, JPEG or WebP.") from error
    width, height = image.size
    if width * height > limit_pixels:
        raise InvalidInput(
            f"the image has {width:,} x {height:,} pixels; {limit_pixels:,} are the limit "
            "(SLUICE_HF_IMAGE_LIMIT_PIXELS). Send it smaller; models look at a few hundred a side."
        )
    try:
        return ImageOps.exif_transpose(image).convert("RGB")
    except Exception as error:  # Decoders raise whatever they run into.
        raise InvalidInput(f"the image is damaged ({error}).") from error


def _fitted(tensor: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    """On the model's device; what is no number of pixels' kind, such as a mask, keeps its type."""
    dtype = model.dtype if tensor.is_floating_point() else tensor.dtype
    return tensor.to(model.device, dtype)


def load(folder: Path, options: Options) -> ImageClassification:
    model = load_model(
        AutoModelForImageClassification, folder, options, task=Task.IMAGE_CLASSIFICATION
    )
    return ImageClassification(model, load_image_processor(folder, options), options)
