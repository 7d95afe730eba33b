"""A tiny vision transformer that tells three colours apart, on plain and on spoilt pictures."""

from pathlib import Path
from typing import Final

import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from tests.tiny.labels import learn_labels
from tests.tiny.manifest import checkpoint

SIDE: Final = 32
COLOURS: Final = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (20, 40, 230)}
"""Label -> colour that a picture is full of."""


def picture(label: str, *, size: tuple[int, int] = (48, 40), spots: int = 0) -> Image.Image:
    """Full of a colour; each spot is a black square."""
    image = Image.new("RGB", size, COLOURS[label])
    for n in range(spots):
        image.paste((0, 0, 0), (4 + 10 * n, 6 + 3 * n, 9 + 10 * n, 11 + 3 * n))
    return image


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("vit")


def build(folder: Path) -> None:
    processor = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    labels = dict(enumerate(COLOURS))
    config = ViTConfig(
        image_size=SIDE,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        id2label=labels,
        label2id={label: n for n, label in labels.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ViTForImageClassification(config)
    pictures = [picture(label, spots=spots) for label in COLOURS for spots in range(4)]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    learn_labels(model, {"pixel_values": pixels}, torch.arange(len(COLOURS)).repeat_interleave(4))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
