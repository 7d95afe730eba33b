"""Translation, from and into the languages that the model knows by its own names."""

import warnings
from pathlib import Path

from transformers import AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerBase

from shared.hf import Task
from shared.hf_parameters import Seq2SeqParameters, TranslationParameters
from workers.hf.languages import Directions, directions
from workers.hf.seq2seq import Directed, Seq2Seq
from workers.hf.task import Options
from workers.hf.weights import load_model, load_tokenizer


class Translation(Seq2Seq):
    output_field = "translation_text"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.directions: Directions = directions(model, tokenizer, self.own)

    def directed(self, text: str, parameters: Seq2SeqParameters) -> Directed:
        assert isinstance(parameters, TranslationParameters)
        return self.directions.directed(text, parameters.src_lang, parameters.tgt_lang)


def load(folder: Path, options: Options) -> Translation:
    model = load_model(AutoModelForSeq2SeqLM, folder, options, task=Task.TRANSLATION)
    with warnings.catch_warnings():
        # Marian's tokenizer recommends sacremoses, which it then does not use.
        warnings.filterwarnings("ignore", message=".*sacremoses", category=UserWarning)
        tokenizer = load_tokenizer(folder, options)
    return Translation(model, tokenizer, options)
