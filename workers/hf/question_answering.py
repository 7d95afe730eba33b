"""Extractive question answering: the span of a context that answers a question.

A context that is too long for the model is read in windows that overlap, each with the question
beside it; windows are rows, and those of all jobs share batches. Which span is best, and what its
score is, is told in `workers/hf/spans.py`. Positions are in code points of the context as it came,
and `context[start:end]` is the answer.
"""

import base64
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import InvalidInput, Permanent
from shared.hf import Task
from shared.hf_parameters import QuestionAnsweringParameters, TaskParameters
from workers.hf.padding import can_pad, pad, window_tokens
from workers.hf.readings import Reading, read
from workers.hf.spans import Answer, Text, Window, best_answers
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.weights import load_model, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What `finish` needs of an input."""

    text: Text
    firsts: Sequence[int]
    """With which of the text's tokens each window begins."""


class QuestionAnswering(LocalTask):
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        # As transformers 4 has it: models that are padded on the left read the context first.
        self.is_question_first = tokenizer.padding_side == "right"
        # Windows are cut from the front of a context on, wherever the model would cut a text off.
        tokenizer.truncation_side = "right"
        self.window = window_tokens(model, tokenizer)
        self.taken = inspect.signature(model.forward).parameters

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, QuestionAnsweringParameters)
        question, warnings = self._cut(value["question"].lstrip(), parameters.max_question_len)
        size = min(parameters.max_seq_len, self.window or parameters.max_seq_len)
        readings, text = read(
            self.tokenizer,
            question,
            value["context"],
            size=size,
            overlap=self._overlap(question, size, parameters),
            by_word=parameters.align_to_words,
            is_question_first=self.is_question_first,
        )
        if not np.any(text.starts < text.ends):
            raise InvalidInput("the model's tokenizer finds nothing to read in the context.")
        is_asked_for = "max_seq_len" in parameters.model_fields_set
        if is_asked_for and size < parameters.max_seq_len and len(readings) > 1:
            warnings.append(
                f"was read in windows of {size:,} tokens and not of {parameters.max_seq_len:,}: "
                "the model takes no longer ones."
            )
        return Prepared(
            rows=[Row(size=reading.tokens.size, data=reading) for reading in readings],
            rest=_Context(text=text, firsts=[reading.first for reading in readings]),
            warnings=warnings,
        )

    def _cut(self, question: str, limit: int) -> tuple[str, list[str]]:
        """The question, of at most `limit` tokens, and a warning where it had more."""
        places: list[tuple[int, int]] = self.tokenizer(
            question, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        if len(places) <= limit:
            return question, []
        return question[: places[limit - 1][1]], [
            f"has a question of {len(places):,} tokens, which was cut to {limit:,}; "
            "max_question_len can be raised."
        ]

    def _overlap(self, question: str, size: int, parameters: QuestionAnsweringParameters) -> int:
        """How many tokens of the context windows share. Raises InvalidInput where no window of
        `size` could take any new ones."""
        asked = len(self.tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"])
        room = size - asked - self.tokenizer.num_special_tokens_to_add(pair=True)
        if room < 2:
            raise InvalidInput(
                f"the question has {asked:,} tokens, which leaves no room for the context in "
                f"windows of {size:,}. Raise max_seq_len, or lower max_question_len."
            )
        if parameters.doc_stride < room:
            return parameters.doc_stride
        if "doc_stride" in parameters.model_fields_set:
            raise InvalidInput(
                f"windows of {size:,} tokens have room for {room:,} of the context beside the "
                f"question, so they cannot overlap by {parameters.doc_stride:,}. Lower doc_stride, "
                "or raise max_seq_len."
            )
        return room // 2

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        del watch  # One pass through an encoder is not worth watching.
        readings: list[Reading] = [row.data for row in rows]
        if can_pad(self.model, self.tokenizer):
            return self._batch(readings)
        return [output for reading in readings for output in self._batch([reading])]

    def _batch(self, readings: Sequence[Reading]) -> list[Any]:
        inputs = pad(self.tokenizer, [reading.tokens for reading in readings], self.model.device)
        given = {name: tensor for name, tensor in inputs.items() if name in self.taken}
        with torch.inference_mode():
            output = self.model(**given)
        logits = torch.stack([output.start_logits, output.end_logits], dim=1).float().cpu().numpy()
        return [_packed(row, reading) for row, reading in zip(logits, readings, strict=True)]

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        assert isinstance(parameters, QuestionAnsweringParameters)
        context: _Context = prepared.rest
        answers = best_answers(
            context.text,
            [_unpacked(each, first) for each, first in zip(outputs, context.firsts, strict=True)],
            top_k=parameters.top_k,
            max_tokens=parameters.max_answer_len,
            may_be_none=parameters.handle_impossible_answer,
        )
        found = [_wire(answer, context.text.text) for answer in answers]
        return found[0] if parameters.top_k == 1 else found


def _packed(logits: NDArray[np.float32], reading: Reading) -> dict[str, Any]:
    """As JSON, in a third of what lists of numbers take: starts, then ends, of the context.

    All of them, because what one window says of the tokens that it shares with another can only be
    weighed with the other's (`workers/hf/spans.py`).
    """
    n = reading.no_answer
    return {
        "logits": base64.b64encode(logits[:, reading.context].astype("<f4").tobytes()).decode(),
        "no_answer": None if n is None else logits[:, n].tolist(),
    }


def _unpacked(output: dict[str, Any], first: int) -> Window:
    logits = np.frombuffer(base64.b64decode(output["logits"]), dtype="<f4").astype(np.float64)
    if not np.isfinite(logits).all():
        raise Permanent(
            "The model gave scores that are no numbers (NaN or infinity). Set "
            "SLUICE_HF_DTYPE=float32, or use another model."
        )
    starts, ends = logits.reshape(2, -1)
    none = output["no_answer"]
    return Window(
        first=first,
        starts=starts,
        ends=ends,
        no_answer=None if none is None else (none[0], none[1]),
    )


def _wire(answer: Answer, context: str) -> dict[str, Any]:
    return {
        "score": answer.score,
        "start": answer.start,
        "end": answer.end,
        "answer": context[answer.start : answer.end],
    }


def load(folder: Path, options: Options) -> QuestionAnswering:
    model = load_model(AutoModelForQuestionAnswering, folder, options, task=Task.QUESTION_ANSWERING)
    tokenizer = load_tokenizer(folder, options)
    if not tokenizer.is_fast:
        raise Permanent(
            f"The tokenizer of the model ({type(tokenizer).__name__}) does not tell where tokens "
            "lie in a text. question-answering needs a fast one (tokenizer.json)."
        )
    return QuestionAnswering(model, tokenizer, options)
