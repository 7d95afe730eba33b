"""What summarization and translation share: a text goes through an encoder and a decoder, and comes
out as another text.

A text that is too long for the model is cut, with a warning, unless the caller forbids it.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import InvalidInput
from shared.hf_parameters import Seq2SeqParameters, TaskParameters
from workers.generation.stopping import StopFilter
from workers.hf.arguments import Settings, asked_settings, known_settings, own_settings, settle
from workers.hf.generating import Source, decoded, generate, make_row
from workers.hf.padding import cut_warning, encode, window_tokens
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch

UNLIMITED_SOURCE_TOKENS = 4096
"""What is read of a text where a model would read any length (T5): attention is quadratic."""
FIRST_CHARS = 1000


@dataclass(frozen=True, kw_only=True)
class Directed:
    """A text as this model wants it for the task, with what its configuration says of the task."""

    text: str
    settings: Settings = field(default_factory=dict)
    warnings: Sequence[str] = field(default=())


class Seq2Seq(LocalTask):
    model: PreTrainedModel
    output_field: ClassVar[str]

    row_limit = 32
    """Short texts may become long ones: what the decoder holds is not in a row's size."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        self.own = own_settings(model, tokenizer)
        self.window = source_window(model, tokenizer)
        self.room = _room(model)

    @abstractmethod
    def directed(self, text: str, parameters: Seq2SeqParameters) -> Directed:
        """Raises InvalidInput."""

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, Seq2SeqParameters)
        check_has_tokens(self.tokenizer, value)
        directed = self.directed(value, parameters)
        [tokens] = encode(self.tokenizer, [directed.text], limit=self.window)
        if tokens.is_cut and parameters.truncation == "do_not_truncate":
            raise InvalidInput(
                f"the text has {tokens.full_size:,} tokens, and the model takes {self.window:,}; "
                "shorten it, or leave out `truncation` to have it cut."
            )
        asked, seed = asked_settings(parameters, parameters.generate_parameters)
        # `generate` counts the token that every text begins with.
        task = known_settings(directed.settings)
        arguments = settle(asked, task, self.own, given=1, room=self.room)
        source = Source(ids=tokens.inputs["input_ids"], arguments=arguments, seed=seed)
        return Prepared(
            rows=[make_row(self.model, source, size=tokens.size)],
            warnings=[*directed.warnings, *cut_warning([tokens]), *arguments.warnings],
        )

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        return generate(self.model, self.tokenizer, [row.data for row in rows], watch)

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del prepared
        assert isinstance(parameters, Seq2SeqParameters)
        [[tokens]] = outputs
        clean_up = parameters.clean_up_tokenization_spaces
        text = decoded(self.tokenizer, tokens, clean_up=clean_up)
        return {self.output_field: storable(text).strip()}

    def alone(self, output: Any) -> Any:
        """The API answers a single text as if it came in a list."""
        return [output]


def with_prefix(prefix: str, text: str) -> str:
    """Callers of T5 may have written the prefix themselves."""
    return text if prefix and text.startswith(prefix) else prefix + text


def check_has_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    """A text of nothing that the model reads would leave it to its fancies."""
    for part in (text[:FIRST_CHARS], text):
        if tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]:
            return
    raise InvalidInput("the text holds nothing that the model can read; give another one.")


def source_window(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The longest source text, in tokens. T5 has no positions, but says how long its texts were."""
    known = window_tokens(model, tokenizer)
    if known is not None:
        return known
    learnt = getattr(model.config, "n_positions", None)
    return int(learnt or UNLIMITED_SOURCE_TOKENS)


def _room(model: PreTrainedModel) -> int | None:
    """How many new tokens there are positions for, behind the one that begins every text."""
    config = model.config.get_text_config(decoder=True)
    for name in ("max_decoder_position_embeddings", "max_position_embeddings"):
        positions = getattr(config, name, None)
        if positions is not None:
            return int(positions) - 1
    return None


def storable(text: str) -> str:
    """Characters that PostgreSQL keeps in no text are replaced."""
    whole = StopFilter(())
    return whole.feed(text) + whole.flush()
