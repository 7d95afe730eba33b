"""What the API can say of a job of the kind `hf` before any worker sees it."""

from shared.config import Settings
from shared.errors import InvalidInput
from shared.hf import DEFAULT_MODELS, HfInput, single_inputs
from shared.hf_parameters import parse_parameters


def model_of(asked: HfInput, settings: Settings) -> str:
    """The model that the job names, or the task's default."""
    if asked.model is not None:
        return asked.model
    # The shape lets no input through that names neither.
    assert asked.task is not None
    return settings.hf_models.get(asked.task, DEFAULT_MODELS[asked.task])


def check(asked: HfInput, settings: Settings) -> None:
    """Raises InvalidInput. Where the task is not named, the worker looks at the rest."""
    count = len(asked.inputs) if isinstance(asked.inputs, list) else 1
    if count > settings.hf_limit_inputs:
        raise InvalidInput(
            f"inputs has {count:,} entries; a job takes {settings.hf_limit_inputs:,} "
            "(SLUICE_HF_LIMIT_INPUTS). Submit several jobs: they share batches."
        )
    if asked.inputs is None:
        raise InvalidInput("inputs is missing; give what the task is to work on.")
    if asked.task is not None:
        single_inputs(asked.task, asked.inputs)
        parse_parameters(asked.task, asked.parameters)
