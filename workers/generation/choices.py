"""Jobs that write several texts: a step for each, in parallel, and one result of all.

The first step of such a job makes the others. Each has its own transcript, and its result stays in
its row until the last one ends the job.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from shared.errors import Permanent
from shared.jobs import steps
from shared.jobs.steps import NewStep
from shared.kinds.chat import Parameters, TokenLogprob
from shared.models.providers import route_of
from shared.vocabulary import Queue
from workers.generation.backends.interface import Completion


def choice_steps(name: str, model: str, payloads: Sequence[Mapping[str, Any]]) -> list[NewStep]:
    """A step for each text, numbered in the order of the payloads."""
    return [
        NewStep(
            name=name,
            queue=Queue.GENERATE,
            route=route_of(model),
            payload={**payload, "choice": number},
        )
        for number, payload in enumerate(payloads)
    ]


def choice_results(session: Session, job_id: UUID, name: str) -> list[dict[str, Any]]:
    """The results of the steps of this name, in the order of their numbers."""
    results = steps.results_of(session, job_id, name)
    return sorted(results, key=lambda result: int(result["choice"]))


def logprobs_of(
    completion: Completion, parameters: Parameters, reference: str
) -> list[TokenLogprob] | None:
    """The log-probabilities of a completion; None if the job does not ask for them. Raises
    Permanent if the server does not report them."""
    if parameters.logprobs is None:
        return None
    if completion.completion_tokens and completion.text and not completion.logprobs:
        raise Permanent(
            f"The server of {reference} reports no log-probabilities. Leave out logprobs, or name "
            "a model of a server that does, such as `hf/...`."
        )
    return list(completion.logprobs)
