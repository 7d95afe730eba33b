"""Text generation: a prompt goes on. It is a plain text; no chat template is applied.

The answer has the prompt before it, unless the caller wants the new text alone. A prompt that is
too long for the model loses its beginning, with a warning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from shared.kinds.hf import Task, TaskParameters, TextGenerationParameters
from workers.hf.arguments import (
    NEW_TOKENS,
    asked_settings,
    known_settings,
    own_settings,
    settle,
    shapes_chances,
    task_settings,
)
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.tasks.seq2seq import Source, check_has_tokens, decoded, generate, make_row
from workers.hf.text import window_tokens
from workers.models.load import load_model, load_tokenizer
from workers.models.text import StopFilter


class TextGeneration(LocalTask):
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        own = own_settings(model, tokenizer)
        # Chat models give their window as `max_length`, which is no length for an answer.
        self.own = {name: own[name] for name in own if name not in {"max_length", "min_length"}}
        self.task = known_settings(task_settings(model, Task.TEXT_GENERATION))
        self.window = window_tokens(model, tokenizer)

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, TextGenerationParameters)
        check_has_tokens(self.tokenizer, value)
        ids: list[int] = self.tokenizer(value, verbose=False)["input_ids"]
        settings, seed = asked_settings(parameters)
        if shapes_chances(settings):
            # As text-generation-inference understands it, and unlike `generate`.
            settings.setdefault("do_sample", True)
        kept = self._kept(ids, parameters.truncate, settings.get("max_new_tokens", NEW_TOKENS))
        arguments = settle(
            settings,
            self.task,
            self.own,
            prompt_tokens=len(kept),
            room=None if self.window is None else self.window - len(kept),
            sequences=parameters.num_return_sequences or 1,
        )
        source = Source(ids=kept, arguments=arguments, stop=tuple(parameters.stop), seed=seed)
        # What is generated stays in memory beside the prompt.
        row = make_row(self.model, source, size=len(kept) + arguments.new_tokens)
        cut = f"was cut from {len(ids):,} to {len(kept):,} tokens: its beginning was left out."
        warnings = [cut] if len(kept) < len(ids) else []
        return Prepared(rows=[row], rest=(value, kept), warnings=[*warnings, *arguments.warnings])

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        return generate(self.model, self.tokenizer, [row.data for row in rows], watch)

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        assert isinstance(parameters, TextGenerationParameters)
        prompt, ids = prepared.rest
        front = prompt if parameters.return_full_text else ""
        [sequences] = outputs
        texts = [
            {"generated_text": front + self._continuation(ids, tokens, parameters.stop)}
            for tokens in sequences
        ]
        return texts if parameters.num_return_sequences is not None else texts[0]

    def alone(self, output: Any) -> Any:
        """The API answers a single prompt with a list of its continuations."""
        return output if isinstance(output, list) else [output]

    def _kept(self, ids: list[int], truncate: int | None, new_tokens: int) -> list[int]:
        """A prompt that fits is kept whole, if the new text has to be shorter; one that does not
        leaves up to half of the window for it."""
        limit = len(ids) if truncate is None else truncate
        if self.window is not None and min(limit, len(ids)) >= self.window:
            limit = self.window - min(new_tokens, self.window // 2)
        if len(ids) <= limit:
            return ids
        begins = ids[:1] if ids[0] == self.tokenizer.bos_token_id and limit > 1 else []
        return [*begins, *ids[len(ids) - limit + len(begins) :]]

    def _continuation(self, ids: Sequence[int], new: Sequence[int], stop: Sequence[str]) -> str:
        """Decoded with the prompt before it: alone, many tokenizers drop its first space."""
        before = decoded(self.tokenizer, ids)
        text = decoded(self.tokenizer, [*ids, *new])
        is_split = text.startswith(before)
        text = text.removeprefix(before) if is_split else decoded(self.tokenizer, new)
        ending = StopFilter(stop)
        shown = ending.feed(text)
        return shown + ending.flush()


def load(folder: Path, options: Options) -> TextGeneration:
    model = load_model(AutoModelForCausalLM, folder, options, task=Task.TEXT_GENERATION)
    return TextGeneration(model, load_tokenizer(folder, options), options)
