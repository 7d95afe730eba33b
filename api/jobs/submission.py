"""From a request to a committed job: defaults, checks that need the database, one transaction."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from pydantic import AnyHttpUrl
from sqlalchemy.orm import Session

from api.deps import Parts
from api.schemas import JobRequest, JobView, ProgressView
from shared import conversations, files
from shared.addresses import is_allowed, literal
from shared.bounds import shown
from shared.config import EXTRACTIVE, Settings
from shared.documents import collections, erasure
from shared.errors import InvalidInput, NotFound, QueueFull
from shared.jobs import submission
from shared.jobs.submission import FIRST_STEP, NewJob, Submitted
from shared.kinds.generation import ChatInput
from shared.kinds.hf import (
    BINARY,
    DEFAULT_MODELS,
    HfInput,
    Task,
    file_ids,
    parse_parameters,
    single_inputs,
)
from shared.kinds.payloads import EraseInput, IngestInput, Kind, RagInput
from shared.redis.bell import Lane
from shared.vocabulary import State

# What the API can say of a job of the kind `hf` before any worker sees it.


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


def new_job(
    request: JobRequest,
    settings: Settings,
    *,
    fair_key: str,
    lane: Lane = Lane.NORMAL,
    idempotency_key: str | None = None,
    body: Any = None,
) -> NewJob:
    """The job that is asked for; `lane` is where it goes unless the request says. Raises
    InvalidInput for what this server cannot run."""
    _check_input(request, settings)
    webhook = request.webhook
    if webhook is not None:
        _check_address(webhook.url, settings)
    return NewJob(
        kind=request.kind,
        input=request.input.model_dump(mode="json") | _model(request, settings),
        fair_key=fair_key,
        lane=request.lane or lane,
        metadata=request.metadata,
        webhook=webhook.model_dump(mode="json", exclude_none=True) if webhook else None,
        timeout_s=request.timeout_s,
        max_attempts=request.max_attempts or settings.max_attempts,
        run_after=request.run_after,
        conversation_id=getattr(request.input, "conversation_id", None),
        idempotency_key=idempotency_key,
        body_hash=_hash(body) if idempotency_key is not None else None,
    )


def submit(parts: Parts, new: NewJob) -> Submitted:
    """Commit one job. Raises QueueFull, NotFound for its collection, Conflict for its key."""
    # A turn of a conversation takes a lock and several statements.
    single = new.conversation_id is None
    with parts.ledger.begin_single() if single else parts.ledger.begin() as session:
        try:
            parts.gate.admit(session, FIRST_STEP[new.kind][1], new.fair_key)
        except QueueFull:
            # A job that is there already takes no new place.
            replayed = submission.find_replayed(session, new)
            if replayed is None:
                raise
            return replayed
        _require_collection(session, new)
        _require_talk(session, [new])
        _require_files(session, [new])
        return submission.submit(session, new)


def submit_batch(parts: Parts, new: list[NewJob]) -> list[UUID]:
    """Commit all of the jobs, or none. Raises what `submit` does, naming the job."""
    with parts.ledger.begin() as session:
        for queue, count in Counter(FIRST_STEP[each.kind][1] for each in new).items():
            parts.gate.admit(session, queue, new[0].fair_key, count)
        # One look for each kind and collection, at the first job that names it.
        wanted = {(each.kind, each.input.get("collection")): n for n, each in _backwards(new)}
        for n in wanted.values():
            try:
                _require_collection(session, new[n])
            except NotFound as error:
                raise NotFound(f"jobs.{n}: {error.message}") from error
        _require_talk(session, new)
        _require_files(session, new)
        return submission.submit_batch(session, new)


def view_of_new(new: NewJob, made: Submitted) -> JobView:
    """What reading the job back would give, less position and ETA, which take queries."""
    return JobView.model_construct(
        id=made.id,
        kind=new.kind.value,
        state=State.QUEUED,
        lane=new.lane,
        queue=FIRST_STEP[new.kind][1].value,
        input=new.input,
        progress=ProgressView.model_construct(done=0, total=None, unit=None),
        attempt=0,
        max_attempts=new.max_attempts,
        metadata=new.metadata,
        created_at=made.created_at,
    )


def _backwards(new: list[NewJob]) -> Iterator[tuple[int, NewJob]]:
    return zip(reversed(range(len(new))), reversed(new), strict=True)


def _require_collection(session: Session, new: NewJob) -> None:
    name = new.input.get("collection")
    if name is None:
        return
    if new.kind is Kind.ERASE:
        erasure.require_collection(session, name)
    else:
        collections.get(session, name)


def _require_talk(session: Session, new: Sequence[NewJob]) -> None:
    """The conversations are the caller's own, and the collections of their tools are there."""
    talks = {(each.conversation_id, each.fair_key) for each in new}
    for conversation_id, fair_key in talks:
        if conversation_id is not None:
            conversations.get(session, conversation_id, fair_key)
    names = {
        tool.get("collection")
        for each in new
        if each.kind is Kind.CHAT
        for tool in each.input.get("tools", ())
    }
    for name in names - {None}:
        collections.get(session, name)


def _require_files(session: Session, new: Sequence[NewJob]) -> None:
    """The uploads are there that tasks are to work on."""
    ids = [
        file_id
        for each in new
        if each.kind is Kind.HF and Task(each.input["task"] or Task.SPEECH_RECOGNITION) in BINARY
        for file_id in file_ids(each.input["inputs"])
    ]
    if ids:
        files.require(session, ids)


def _model(request: JobRequest, settings: Settings) -> dict[str, str]:
    """The model that the job runs with, whatever the default is when it does."""
    if isinstance(request.input, HfInput):
        return {"model": model_of(request.input, settings)}
    if not isinstance(request.input, RagInput | ChatInput):
        return {}
    return {"model": request.input.model or settings.generation_model}


def _check_input(request: JobRequest, settings: Settings) -> None:
    asked = request.input
    if isinstance(asked, IngestInput) and len(asked.sources) > settings.max_sources_per_job:
        raise InvalidInput(
            f"input.sources has {len(asked.sources)} entries; a job takes "
            f"{settings.max_sources_per_job} (SLUICE_MAX_SOURCES_PER_JOB). Submit several jobs."
        )
    if isinstance(asked, RagInput | ChatInput):
        _check_generation(asked, settings)
    if isinstance(asked, HfInput):
        check(asked, settings)
    if isinstance(asked, EraseInput):
        for n, document_id in enumerate(asked.document_ids or ()):
            try:
                UUID(document_id)
            except ValueError:
                raise InvalidInput(
                    f"input.document_ids.{n} is {shown(document_id)}; ids are UUIDs, as "
                    "`GET /v1/collections/{name}/documents` lists them."
                ) from None


def _check_address(url: AnyHttpUrl, settings: Settings) -> None:
    """What a webhook's URL spells out; names are looked up when it is sent."""
    if url.username or url.password:
        raise InvalidInput(
            "webhook.url has a user name or a password in it; give a `secret`, which signs."
        )
    address = literal(url.host or "")
    if address is not None and not is_allowed(
        address, allow_private=settings.webhook_allow_private
    ):
        raise InvalidInput(
            f"webhook.url is at {address}, which is not an address of the public internet. "
            "SLUICE_WEBHOOK_ALLOW_PRIVATE lets webhooks reach this machine and its network."
        )


def _check_generation(asked: RagInput | ChatInput, settings: Settings) -> None:
    model = asked.model or settings.generation_model
    where = "input.model" if asked.model else "SLUICE_GENERATION_MODEL"
    if model == EXTRACTIVE and isinstance(asked, ChatInput):
        raise InvalidInput(
            f"{where} is {EXTRACTIVE!r}, which answers `rag` jobs only. Name a model that can "
            "chat, as `ollama/llama3.2` or `hf/Qwen/Qwen3-4B-Instruct-2507`."
        )
    if model == EXTRACTIVE and isinstance(asked, RagInput):
        ignored = [
            name for name in ("prompt", "parameters", "response_format")
            if name in asked.model_fields_set
        ]  # fmt: skip
        if ignored:
            raise InvalidInput(
                f"input.{ignored[0]} is for models that generate text; {where} is {EXTRACTIVE!r}, "
                "which quotes passages. Name another model or leave it out."
            )
    if model.startswith("openai/") and settings.openai_base_url is None:
        raise InvalidInput(
            f"{where} is {model!r}, but no server is set for such models: set "
            "SLUICE_OPENAI_BASE_URL for the API and the generation workers."
        )
    wanted, limit = asked.parameters.max_tokens, settings.max_tokens_limit
    if wanted is not None and wanted > limit:
        raise InvalidInput(
            f"input.parameters.max_tokens is {wanted:,}; this server allows {limit:,} "
            "(SLUICE_MAX_TOKENS_LIMIT)."
        )


def _hash(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
