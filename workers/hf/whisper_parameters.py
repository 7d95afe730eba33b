"""What can be asked of Whisper, and what of that a model of its kind can do."""

import json
import secrets
from dataclasses import dataclass
from typing import Any, Final

from transformers import PreTrainedModel
from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

from shared.errors import InvalidInput
from shared.hf_parameters import GenerationParameters, SpeechParameters
from workers.hf.arguments import Arguments, asked_settings, known_settings, settle

PROMPT_TOKENS: Final = 4
"""Before the text: its start, the language, the task, and that there are no timestamps."""
SHOWN_LANGUAGES: Final = 12


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a window is to be transcribed; the same for all of a batch."""

    arguments: Arguments
    language: str | None
    task: str | None
    timestamps: bool | str
    seed: int | None

    @property
    def group(self) -> str:
        key = [self.arguments.key, self.language, self.task, self.timestamps]
        # The dice are thrown for a whole batch, and words are aligned up to a batch's last token:
        # neither may depend on a row's company.
        is_alone = self.arguments.is_sampled or self.timestamps == "word"
        return json.dumps([*key, secrets.token_hex(16) if is_alone else None])


def wanted_of(model: PreTrainedModel, parameters: SpeechParameters) -> Wanted:
    """What the caller asks of this model. Raises InvalidInput for what the model cannot do."""
    generation: Any = model.generation_config
    asked, seed = asked_settings(
        parameters.generation_parameters or GenerationParameters(), parameters.generate_kwargs
    )
    own = known_settings(generation.to_dict())
    room = model.config.max_target_positions - PROMPT_TOKENS
    return Wanted(
        arguments=settle(asked, {}, own, given=PROMPT_TOKENS, room=room),
        language=_language(generation, parameters.spoken),
        task=_task(generation, parameters.wanted_task),
        timestamps=_timestamps(generation, parameters.return_timestamps),
        seed=seed,
    )


def _language(generation: Any, language: str | None) -> str | None:
    if language is None:
        return None
    known: dict[str, int] = getattr(generation, "lang_to_id", None) or {}
    if not _is_multilingual(generation) or not known:
        raise InvalidInput(
            "parameters.language: the model takes none, it was made for one. Leave it out."
        )
    name = language.strip().lower()
    token = name if name in known else f"<|{TO_LANGUAGE_CODE.get(name, name)}|>"
    if token not in known:
        codes = [each.strip("<|>") for each in known]
        more = len(codes) - SHOWN_LANGUAGES
        raise InvalidInput(
            f"parameters.language {language!r} is none that the model knows; it knows "
            f"{', '.join(codes[:SHOWN_LANGUAGES])}{f' and {more} more' if more > 0 else ''}."
        )
    return token


def _task(generation: Any, task: str | None) -> str | None:
    known = getattr(generation, "task_to_id", None) or {}
    if task is None or (_is_multilingual(generation) and task in known):
        return task
    raise InvalidInput("parameters.task: the model does nothing but transcribe. Leave it out.")


def _is_multilingual(generation: Any) -> bool:
    return bool(getattr(generation, "is_multilingual", True))


def _timestamps(generation: Any, wanted: bool | str) -> bool | str:
    """Some models only write well with timestamps, and say so in their configuration."""
    if wanted == "char":
        raise InvalidInput(
            'parameters.return_timestamps "char" is for models with a CTC head; ask Whisper '
            'for true (segments) or "word".'
        )
    if wanted and not hasattr(generation, "no_timestamps_token_id"):
        raise InvalidInput(
            "parameters.return_timestamps: the model's generation_config.json does not name "
            "its no_timestamps_token_id, so there are no timestamps."
        )
    if wanted == "word" and not hasattr(generation, "alignment_heads"):
        raise InvalidInput(
            'parameters.return_timestamps "word": the model\'s generation_config.json names '
            "no alignment_heads, so words have no times; ask for true (segments)."
        )
    return wanted or bool(getattr(generation, "return_timestamps", False))
