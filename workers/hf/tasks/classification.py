"""Classification: of texts, by the labels of a model or by those of the caller, and of images."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BaseImageProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shared.errors import InvalidInput, WrongTask
from shared.hf.classification import (
    IMAGE_CLASSIFICATION,
    TEXT_CLASSIFICATION,
    ZERO_SHOT_CLASSIFICATION,
    ClassificationParameters,
    ImageClassificationParameters,
    ZeroShotParameters,
)
from shared.hf.task import TaskParameters
from workers.hf.task import LocalTask, PreparedInput, Row, TextTask
from workers.hf.text import beginning, cut_warning, encode, group, labelled, labels_of, logits
from workers.models.load import LoadOptions, load_image_processor, load_model, load_tokenizer

# Text classification: every label of a text with its score, best first.
#
# The API answers a text with all labels unless `top_k` says how many. One that is too long
# for the model is judged by its beginning, with a warning.


class TextClassification(TextTask):
    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        del parameters  # They only matter to `finish`.
        [tokens] = encode(self.tokenizer, [value], limit=self.window)
        row = Row(size=tokens.size, data=tokens, group=group(self.model, tokens))
        return PreparedInput(rows=[row], warnings=cut_warning([tokens]))

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        return [
            scores.tolist() for scores in logits(self.model, self.tokenizer, [r.data for r in rows])
        ]

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del prepared
        assert isinstance(parameters, ClassificationParameters)
        [output] = outputs
        return labelled(output, self.model.config, parameters.function_to_apply, parameters.top_k)

    def alone(self, output: Any) -> Any:
        """The API answers a single text as if it came in a list."""
        return [output]


def load_text_classification(folder: Path, options: LoadOptions) -> TextClassification:
    model = load_model(
        AutoModelForSequenceClassification, folder, options, task=TEXT_CLASSIFICATION.name
    )
    return TextClassification(model, load_tokenizer(folder, options), options)


# Zero-shot classification: which of the caller's labels fit a text, by a model of inference.
#
# Each label makes a hypothesis of the template, and a row with the text; the score is how far the
# text entails it. A text that is too long is cut, never the hypothesis.


class ZeroShotClassification(TextTask):
    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: LoadOptions
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.entailment = _entailment(model)
        # Where a model knows more than two relations, the first is contradiction, by custom.
        self.contradiction = -1 if self.entailment == 0 else 0

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        assert isinstance(parameters, ZeroShotParameters)
        labels = parameters.candidate_labels
        start, left_out = beginning(self.tokenizer, value, self.window)
        encoded = encode(
            self.tokenizer,
            [start] * len(labels),
            # Not `format`: other braces of a template are text.
            [parameters.hypothesis_template.replace("{}", label) for label in labels],
            limit=self.window,
            truncation="only_first",
        )
        rows = [Row(size=t.size, data=t, group=group(self.model, t)) for t in encoded]
        return PreparedInput(rows=rows, warnings=cut_warning(encoded, left_out=left_out))

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        scores = logits(self.model, self.tokenizer, [row.data for row in rows])
        return [[float(row[self.contradiction]), float(row[self.entailment])] for row in scores]

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del prepared
        assert isinstance(parameters, ZeroShotParameters)
        labels = parameters.candidate_labels
        judged = torch.tensor(outputs)
        if parameters.multi_label or len(labels) == 1:
            scores = judged.softmax(1)[:, 1]
        else:
            scores = judged[:, 1].softmax(0)
        pairs = zip(labels, scores.tolist(), strict=True)
        return [
            {"label": label, "score": score}
            for label, score in sorted(pairs, key=lambda pair: -pair[1])
        ]


def _entailment(model: PreTrainedModel) -> int:
    labels = labels_of(model.config)
    for n, label in labels.items():
        if label.lower().startswith("entail"):
            return n
    known = ", ".join(labels.values())
    raise WrongTask(
        f"The model tells {known}, and nothing of entailment: zero-shot-classification needs a "
        "model of natural language inference, such as facebook/bart-large-mnli. If this is one, "
        "name its label `entailment` in `id2label` of its config.json."
    )


def load_zero_shot_classification(folder: Path, options: LoadOptions) -> ZeroShotClassification:
    model = load_model(
        AutoModelForSequenceClassification, folder, options, task=ZERO_SHOT_CLASSIFICATION.name
    )
    return ZeroShotClassification(model, load_tokenizer(folder, options), options)


# Image classification: what a picture shows, best label first.
#
# Pictures are PNG, JPEG or WebP. They are turned upright by their EXIF data, as transformers'
# pipeline does, and are small tensors by the time that they wait for a batch.

FORMATS = ("PNG", "JPEG", "WEBP")
# Of vision transformers' usual patches; that of another model costs about as much.
PIXELS_PER_TOKEN = 16 * 16


class ImageClassification(LocalTask):
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, processor: BaseImageProcessor, options: LoadOptions
    ) -> None:
        super().__init__(model, options)
        self.processor = processor

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        del parameters  # They only matter to `finish`.
        image = decode_image(value, limit_pixels=self.options.image_limit_pixels)
        inputs = dict(self.processor(images=image, return_tensors="pt"))
        *_, height, width = inputs["pixel_values"].shape
        shapes = {name: list(tensor.shape) for name, tensor in inputs.items()}
        row = Row(size=max(1, height * width // PIXELS_PER_TOKEN), data=inputs, group=str(shapes))
        return PreparedInput(rows=[row])

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        inputs = {
            name: _fitted(torch.cat([row.data[name] for row in rows]), self.model)
            for name in rows[0].data
        }
        with torch.inference_mode():
            output: list[list[float]] = self.model(**inputs).logits.float().tolist()
        return output

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
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


def load_image_classification(folder: Path, options: LoadOptions) -> ImageClassification:
    model = load_model(
        AutoModelForImageClassification, folder, options, task=IMAGE_CLASSIFICATION.name
    )
    return ImageClassification(model, load_image_processor(folder, options), options)
