"""The tiny models under the names of those that they stand for, as a folder of models has them."""

import shutil
from pathlib import Path

from tests.tiny import (
    bart,
    crossencoder,
    distilbert,
    gpt2,
    marian,
    mlm,
    ner,
    nli,
    roberta_qa,
    vit,
    wav2vec2,
    whisper,
)

MODELS = {
    "facebook/bart-large-cnn": bart.folder,
    "deepset/roberta-base-squad2": roberta_qa.folder,
    "distilbert/distilbert-base-uncased-finetuned-sst-2-english": distilbert.folder,
    "Helsinki-NLP/opus-mt-ru-en": marian.folder,
    "facebook/wav2vec2-base-960h": wav2vec2.folder,
    "openai/whisper-tiny": whisper.folder,
    "facebook/bart-large-mnli": nli.folder,
    "dslim/bert-base-NER": ner.folder,
    "google-bert/bert-base-uncased": mlm.folder,
    "HuggingFaceTB/SmolLM2-135M-Instruct": gpt2.folder,
    "cross-encoder/ms-marco-MiniLM-L6-v2": crossencoder.folder,
    "google/vit-base-patch16-224": vit.folder,
}


def place(root: Path) -> None:
    """Put them all into a folder that SLUICE_MODELS_FOLDER can name."""
    for name, folder in MODELS.items():
        shutil.copytree(folder(), root / name, dirs_exist_ok=True)
