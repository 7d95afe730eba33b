"""The steps of `complete`: the model continues texts, without a chat template."""

from typing import Any
from uuid import UUID

from shared.database.transaction import Transaction
from shared.errors import InvalidInput
from shared.jobs import jobs
from shared.kinds.chat import Usage
from shared.kinds.complete import CompleteInput, CompleteResult, TextChoice
from workers.attempts.context import Context, Done, Handler
from workers.generation import presets
from workers.generation.backends.interface import Request, generators_of
from workers.generation.choices import choice_results, choice_steps, logprobs_of
from workers.generation.transcripts import NoFilter, deadline, sampling, write
from workers.servers.pulls import on_demand


def complete_write(context: Context) -> Done:
    """The text of a single choice, or a step for each of several choices."""
    input_ = context.input(CompleteInput)
    model = input_.model or context.process.settings.generation_model
    choices = len(input_.prompts) * input_.n
    if choices > 1:
        return Done(children=choice_steps("complete.choice", model, [{}] * choices))
    return _write_choice(context, input_, model, choice=0)


def complete_choice(context: Context) -> Done:
    input_ = context.input(CompleteInput)
    model = input_.model or context.process.settings.generation_model
    return _write_choice(context, input_, model, choice=context.claim.payload["choice"])


def _write_choice(context: Context, input_: CompleteInput, model: str, *, choice: int) -> Done:
    base = generators_of(context.process).get(model)
    generator = presets.generator_for(base, None, input_.parameters)
    generator.learn(context.check)
    sampling_ = sampling(
        input_.parameters,
        context.process.settings,
        step_id=context.claim.step_id,
        choice=choice,
    )
    request = Request(
        prompt=input_.prompts[choice // input_.n],
        sampling=sampling_,
        deadline=deadline(context),
        lane=context.claim.lane,
        fair_key=context.claim.fair_key,
    )
    try:
        written = write(context, generator, request, NoFilter())
    except InvalidInput as error:
        if len(input_.prompts) == 1:
            raise
        raise InvalidInput(f"prompts.{choice // input_.n}: {error.message}") from error
    completion = written.completion
    result = CompleteResult(
        choices=[
            TextChoice(
                text=written.shown,
                finish_reason=completion.finish_reason.value,
                logprobs=logprobs_of(completion, input_.parameters, model),
            )
        ],
        model=presets.name_of(input_.preset, generator),
        usage=Usage(
            prompt_tokens=completion.prompt_tokens,
            completion_tokens=completion.completion_tokens,
        ),
    )
    values = result.model_dump(mode="json")
    if "choice" in context.claim.payload:
        values["choice"] = choice
    return Done(result=values, record=written.record)


def all_choices(transaction: Transaction, job_id: UUID) -> dict[str, Any]:
    """The result of all choices. The tokens of a prompt count once, however many choices it has."""
    results = choice_results(transaction, job_id, "complete.choice")
    input_ = CompleteInput.model_validate(jobs.get(transaction, job_id).input)
    parts = [
        CompleteResult.model_validate({key: part[key] for key in CompleteResult.model_fields})
        for part in results
    ]
    usage = Usage(
        prompt_tokens=sum(part.usage.prompt_tokens for part in parts[:: input_.n]),
        completion_tokens=sum(part.usage.completion_tokens for part in parts),
    )
    whole = CompleteResult(
        choices=[choice for part in parts for choice in part.choices],
        model=parts[0].model,
        usage=usage,
    )
    return whole.model_dump(mode="json")


COMPLETE_WRITE = Handler(run=on_demand(complete_write))
COMPLETE_CHOICE = Handler(run=on_demand(complete_choice), finish=all_choices)
