"""Summarization, with the beams and lengths that the model's configuration sets for it."""

from pathlib import Path

from transformers import AutoModelForSeq2SeqLM

from shared.kinds.hf import Seq2SeqParameters, Task
from workers.hf.arguments import task_settings
from workers.hf.task import Options
from workers.hf.tasks.seq2seq import Directed, Seq2Seq, with_prefix
from workers.models.load import load_model, load_tokenizer


class Summarization(Seq2Seq):
    output_field = "summary_text"

    def directed(self, text: str, parameters: Seq2SeqParameters) -> Directed:
        del parameters
        settings = task_settings(self.model, "summarization")
        prefix = settings.get("prefix") or getattr(self.model.config, "prefix", None) or ""
        return Directed(text=with_prefix(prefix, text), settings=settings)


def load(folder: Path, options: Options) -> Summarization:
    model = load_model(AutoModelForSeq2SeqLM, folder, options, task=Task.SUMMARIZATION)
    return Summarization(model, load_tokenizer(folder, options), options)
