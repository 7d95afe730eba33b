"""The shapes of the HTTP API: requests and answers."""

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool, create_model

from shared import prompts
from shared.bounds import (
    BATCH_LIMIT_JOBS,
    EARLIEST,
    LATEST,
    YEAR_S,
    FreeMetadata,
    FullLine,
    ModelName,
    Natural,
    Paragraph,
    RunAfter,
    Scalar,
    Unreadable,
    WebUrl,
    as_object,
)
from shared.config import ConnectionSettings
from shared.conversations import ListedConversation
from shared.documents.checks import CheckState, LastCheck
from shared.documents.collections import Summary
from shared.documents.documents import ChunkView, DocumentView
from shared.documents.indexes import IndexState, IndexSummary
from shared.jobs import jobs
from shared.jobs.jobs import Contents
from shared.jobs.queues import Estimate
from shared.kinds.chat import Parameters
from shared.kinds.hf import Task
from shared.kinds.kind import Kind
from shared.kinds.registry import KINDS
from shared.modelfiles.modelfile import Description, options_of, read_modelfile
from shared.named_models import LICENSES_LIMIT, MESSAGES_LIMIT, PresetMessage
from shared.prompts import TemplateText, Variables, VariableValues, VersionedPrompt
from shared.tables import ConversationMessage, File, Job, Schedule
from shared.vector_stores import configured_store
from shared.vocabulary import Lane, LaneRank, Queue, Shape, State

# Type checkers cannot evaluate types that are made from records.
if TYPE_CHECKING:
    KindName = str
else:
    KindName = Literal[tuple(KINDS)]

HIDDEN = "It belongs to a conversation of another key."

UNREADABLE = "Unreadable"
"""The type of the error of a job whose row cannot be read."""


class BatchView(BaseModel):
    ids: list[UUID]


class ErrorView(BaseModel):
    type: str
    message: str


class ProgressView(BaseModel):
    done: int
    total: int | None
    unit: str | None


class JobView(BaseModel):
    """A job. `position` is how many steps are served before it; `position` and `eta_s` may be null.

    `waiting_for` says what a queued job, or the next step of a running one, waits for besides its
    position: a paused queue, a worker that can take it, its time, an earlier turn, or the next
    attempt, with the reason why the last one failed. A result that is too large for this answer is
    null, and is at `result_url`. Lists and events leave out large fields: these are null, and are
    listed in `truncated`; `GET /v1/jobs/{id}` has them. If a part of the row cannot be read, the
    rest is shown, and `error` says so.

    `batch_id` is the batch of which the job is a line.

    Turns of a conversation are visible only to the key that owns it. Other keys see that the job
    exists and how far it is: `input` and `metadata` are empty, `result` and `waiting_for` are null,
    and an error has no message.
    """

    id: UUID
    kind: str
    state: State | str
    lane: Lane | None
    queue: str
    input: dict[str, Any] | None
    result: Any = None
    result_url: str | None = None
    warnings: list[str] = []
    error: ErrorView | None = None
    progress: ProgressView
    position: int | None = None
    eta_s: float | None = None
    waiting_for: str | None = None
    attempt: int
    max_attempts: int
    batch_id: UUID | None = None
    metadata: dict[str, Any]
    truncated: list[str] = []
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @classmethod
    def of(
        cls, job: Job, estimate: Estimate, fair_key: str, contents: Contents | None = None
    ) -> "JobView":
        """The job as the key may see it. `contents` replaces the contents of the row, if these were
        not loaded."""
        hides_text = jobs.hides_text(job, fair_key)
        if hides_text:
            contents = Contents(input={}, metadata={})
        elif contents is None:
            contents = Contents(input=job.input, result=job.result, metadata=job.meta)
        flaws = [name for name, value in _doubtful(job, contents) if value is None]
        error = as_object(job.error)
        message = HIDDEN if hides_text else str(error.get("message", ""))
        view = cls.model_construct(
            id=job.id,
            kind=job.kind,
            state=State(job.state) if job.state in set(State) else job.state,
            lane=LaneRank(job.lane).lane if job.lane in set(LaneRank) else None,
            queue=job.queue,
            input=contents.input if isinstance(contents.input, dict) else None,
            result=None if isinstance(contents.result, Unreadable) else contents.result,
            result_url=f"/v1/jobs/{job.id}/result" if job.result_path and not hides_text else None,
            warnings=[] if hides_text else [str(warning) for warning in job.warnings],
            error=ErrorView(type=str(error.get("type", "")), message=message)
            if job.error
            else None,
            progress=ProgressView(
                done=job.progress_done, total=job.progress_total, unit=job.progress_unit
            ),
            position=estimate.position,
            eta_s=estimate.eta_s,
            waiting_for=None if hides_text else estimate.waiting_for,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            batch_id=job.batch_id,
            metadata=as_object(contents.metadata),
            truncated=list(contents.truncated),
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
        )
        return view.model_copy(update=view.reduced(flaws)) if flaws else view

    def reduced(self, flaws: Sequence[str]) -> dict[str, Any]:
        """The changes to the view of a row of which the fields `flaws` cannot be read."""
        if not flaws:
            return {}
        remark = (
            f"The row of this job cannot be read in full ({', '.join(flaws)}). If it is open, "
            f"cancel it with POST /v1/jobs/{self.id}/cancel; then erase it with "
            f"DELETE /v1/jobs/{self.id}."
        )
        if self.error is None:
            return {"error": ErrorView(type=UNREADABLE, message=remark)}
        message = f"{self.error.message} {remark}".strip()
        return {"error": ErrorView(type=self.error.type or UNREADABLE, message=message)}


def _doubtful(job: Job, contents: Contents) -> Iterator[tuple[str, object]]:
    """Names of fields of a row that may be invalid; with None for those that are."""
    yield "kind", job.kind if job.kind in set(KINDS) else None
    yield "state", job.state if job.state in set(State) else None
    yield "lane", job.lane if job.lane in set(LaneRank) else None
    yield "queue", job.queue if job.queue in set(Queue) else None
    for name in ("created_at", "run_after", "started_at", "finished_at", "deadline_at"):
        yield name, None if getattr(job, name) in (EARLIEST, LATEST) else name
    for name in ("input", "metadata"):
        is_there = name in contents.truncated or isinstance(getattr(contents, name), dict)
        yield name, name if is_there else None
    yield "result", None if isinstance(contents.result, Unreadable) else "result"
    yield "error", "error" if job.error is None or isinstance(job.error, dict) else None


ItemT = TypeVar("ItemT")


class Items(BaseModel, Generic[ItemT]):
    items: list[ItemT]

    @classmethod
    def model_parametrized_name(cls, params: tuple[Any, ...]) -> str:
        """Names such as `FileList` and `JobPage` for generated clients."""
        item = params[0].__name__.removesuffix("View").removesuffix("Out")
        return f"{item}{'List' if cls.__name__ == 'Items' else cls.__name__}"


class Page(Items[ItemT], Generic[ItemT]):
    next_cursor: str | None = None
    """Pass it as `cursor` for the next page; null on the last."""


class LastCheckView(BaseModel):
    """The state and the counts are those of the job's result."""

    state: CheckState
    finished_at: datetime
    job_id: UUID | None
    missing: int
    surplus: int
    stale: int
    sampled: int
    wrong: int
    foreign: int
    leftover: int

    @classmethod
    def of(cls, check: LastCheck) -> "LastCheckView":
        counts = asdict(check.counts)
        del counts["checked"]
        return cls(state=check.state, finished_at=check.finished_at, job_id=check.job_id, **counts)


def only_store(settings: ConnectionSettings) -> str | None:
    """The URL of the store, without credentials; None if there is none, or several servers."""
    configured = configured_store(settings)
    urls = () if configured is None else configured.urls
    return str(urls[0]) if len(urls) == 1 else None


class CollectionView(BaseModel):
    name: str
    embedding_model: str
    dimension: int | None
    distance: str
    store: str | None = Field(
        description="Where its vectors lie: the URL of the store, without credentials. Null where "
        "no store is set, and of several servers until one is chosen, at the first ingestion."
    )
    documents: int
    chunks: int
    check: LastCheckView | None = Field(
        description="What the last `check` job has found; null before the first."
    )
    created_at: datetime

    @classmethod
    def of(cls, summary: Summary, settings: ConnectionSettings) -> "CollectionView":
        return cls(
            name=summary.name,
            embedding_model=summary.embedding_model,
            dimension=summary.dimension,
            distance=summary.distance,
            store=summary.server or only_store(settings),
            documents=summary.documents,
            chunks=summary.chunks,
            check=None if summary.check is None else LastCheckView.of(summary.check),
            created_at=summary.created_at,
        )


class IndexView(BaseModel):
    """Vectors of one model. Searches read the one whose state is `active`."""

    name: str = Field(description="What it is called in the store.")
    embedding_model: str
    dimension: int | None
    distance: str
    state: IndexState
    store: str | None = Field(description="Where its vectors lie, as of the collection.")
    chunks: int = Field(
        description="Of how many chunks it has the vectors; 0 if it is retired and nobody can go "
        "back to it."
    )
    can_roll_back: bool = Field(description="Whether a rollback may go back to it.")
    job_id: UUID | None = Field(description="The job that builds it, or has built it.")
    created_at: datetime
    kept_until: datetime | None = Field(
        description="When it is dropped; null while it is not retired."
    )

    @classmethod
    def of(cls, index: IndexSummary, settings: ConnectionSettings) -> "IndexView":
        return cls(
            name=index.stored_name,
            embedding_model=index.embedding_model,
            dimension=index.dimension,
            distance=index.distance,
            state=index.state,
            store=index.server or only_store(settings),
            chunks=index.chunks,
            can_roll_back=index.can_roll_back,
            job_id=index.job_id,
            created_at=index.created_at,
            kept_until=index.kept_until if index.state is IndexState.RETIRED else None,
        )


class CollectionDetails(CollectionView):
    indexes: list[IndexView]

    @classmethod
    def with_indexes(
        cls, summary: Summary, indexes: Sequence[IndexSummary], settings: ConnectionSettings
    ) -> "CollectionDetails":
        view = CollectionView.of(summary, settings)
        return cls(
            **view.model_dump(), indexes=[IndexView.of(index, settings) for index in indexes]
        )


class DocumentOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    collection: str
    source: str
    sha256: str
    content_hash: str
    size_bytes: int
    chunks: int
    metadata: dict[str, Any]
    source_id: str | None = Field(description="The `id` of its source, if that had one.")
    container: str | None = Field(description="The archive, or the mail, that it lies in.")
    container_sha256: str | None = Field(
        description="Of the bytes of that; null while not all of it has been read."
    )
    is_whole: bool = Field(
        description="False while not all has been read of the archive that it lies in, or of its "
        "attachments."
    )
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, view: DocumentView) -> "DocumentOut":
        return cls.model_validate(view)


class ChunkOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: str
    document_id: UUID
    source: str
    ordinal: int
    start: int
    text: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, view: ChunkView) -> "ChunkOut":
        return cls.model_validate(view)


class FileView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: UUID
    name: str
    size_bytes: int
    sha256: str
    content_type: str | None
    created_at: datetime

    @classmethod
    def of(cls, file: File) -> "FileView":
        return cls.model_validate(file)


class KindView(BaseModel):
    """A kind of job; `input` and `result` are JSON Schemas."""

    name: KindName
    summary: str
    queue: Queue
    input: dict[str, Any]
    result: dict[str, Any] | None
    example: dict[str, Any]


class ModelView(BaseModel):
    """A model that can run here. With `default`, its kinds use it unless a job names another one.

    `workers` is the number of living generation workers that serve it; null for models that any CPU
    worker can load. `tasks` are the Hugging Face tasks that use it by default. `base` is the model
    on which a named model is based.
    """

    reference: str
    kinds: list[KindName]
    default: bool
    workers: int | None = None
    tasks: list[Task] = []
    base: str | None = None


class ModelDetails(ModelView):
    details: dict[str, Any]


class NamedModelSpec(Shape):
    """A named model to be made. `modelfile` is a description in Ollama's format; the other fields
    take precedence over it."""

    modelfile: Paragraph | None = None
    from_: ModelName | None = Field(default=None, alias="from")
    system: Paragraph | None = None
    template: Paragraph | None = None
    parameters: Parameters | None = None
    messages: (
        Annotated[list[PresetMessage], Field(fail_fast=True, max_length=MESSAGES_LIMIT)] | None
    ) = None
    adapter: ModelName | None = None
    licenses: Annotated[list[Paragraph], Field(fail_fast=True, max_length=LICENSES_LIMIT)] = []  # noqa: RUF012  (pydantic copies it)

    def description(self) -> Description:
        """Raises InvalidInput, which names the line."""
        read = Description() if self.modelfile is None else read_modelfile(self.modelfile)
        fields: dict[str, Any] = {
            "from_": self.from_, "system": self.system, "template": self.template,
            "adapter": self.adapter,
        }  # fmt: skip
        changes = {name: value for name, value in fields.items() if value is not None}
        if self.messages is not None:
            changes["messages"] = tuple((m.role, m.content) for m in self.messages)
        if self.parameters is not None:
            set_ = self.parameters.model_dump(mode="json", exclude_unset=True)
            changes["parameters"] = read.parameters | options_of(set_)
        lines = {place: n for place, n in read.lines.items() if place.lower() not in changes}
        return replace(read, lines=lines, licenses=(*read.licenses, *self.licenses), **changes)


class ConversationView(BaseModel):
    """A conversation. `summary` replaces messages that do not fit the model's window."""

    id: UUID
    metadata: dict[str, Any]
    summarize: bool
    summary: str | None
    messages: int
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, listed: ListedConversation) -> "ConversationView":
        conversation = listed.conversation
        return cls(
            id=conversation.id,
            metadata=as_object(conversation.meta),
            summarize=conversation.summarize,
            summary=conversation.summary,
            messages=listed.messages,
            created_at=conversation.created_at,
            updated_at=conversation.updated_at,
        )


class MessageView(BaseModel):
    """A stored message in the shape of `chat`, and the job of its turn."""

    message: dict[str, Any]
    job_id: UUID | None
    created_at: datetime

    @classmethod
    def of(cls, row: ConversationMessage) -> "MessageView":
        return cls(message=as_object(row.message), job_id=row.job_id, created_at=row.created_at)


class VariableView(BaseModel):
    """A variable of a prompt's template; one whose `default` is null needs a value."""

    name: str
    description: str
    default: Scalar | None


class ScheduledJob(BaseModel):
    """The job that a schedule submits, without the secret of its webhook."""

    kind: str
    input: dict[str, Any]
    lane: Lane
    metadata: dict[str, Any]
    webhook_url: str | None
    timeout_s: float | None
    max_attempts: int


class ScheduleView(BaseModel):
    """A schedule. `next_at` is when its next job is due, `last_job_id` is the last job, `error` is
    why that could not be submitted. In lists, `job` is null, because it may be large."""

    name: str
    cron: str
    timezone: str
    kind: str
    paused: bool
    next_at: datetime | None
    last_at: datetime | None
    last_job_id: UUID | None
    error: str | None
    job: ScheduledJob | None
    created_at: datetime
    updated_at: datetime

    @classmethod
    def of(cls, schedule: Schedule, *, with_job: bool = False) -> "ScheduleView":
        return cls(
            job=_scheduled_job(schedule) if with_job else None,
            name=schedule.name,
            cron=schedule.cron,
            timezone=schedule.timezone,
            kind=schedule.kind,
            paused=schedule.paused_at is not None,
            next_at=schedule.next_at,
            last_at=schedule.last_at,
            last_job_id=schedule.last_job_id,
            error=schedule.error,
            created_at=schedule.created_at,
            updated_at=schedule.updated_at,
        )


def _scheduled_job(schedule: Schedule) -> ScheduledJob:
    options = as_object(schedule.options)
    return ScheduledJob(
        kind=schedule.kind,
        input=as_object(schedule.input),
        lane=Lane(options["lane"]),
        metadata=options["metadata"],
        webhook_url=(options["webhook"] or {}).get("url"),
        timeout_s=options["timeout_s"],
        max_attempts=options["max_attempts"],
    )


class ScheduledRun(BaseModel):
    """The job that a schedule has submitted."""

    job_id: UUID


class PromptView(BaseModel):
    """A version of a prompt. `reference` is its name for jobs; `current` is the version that the
    name alone means, `latest` is the newest version."""

    name: str
    version: int
    reference: str
    current: int
    latest: int
    is_current: bool
    template: str
    description: str
    variables: list[VariableView]
    created_at: datetime

    @classmethod
    def of(cls, version: VersionedPrompt) -> "PromptView":
        return cls(
            name=version.name,
            version=version.version,
            reference=str(version),
            current=version.current,
            latest=version.latest,
            is_current=version.version == version.current,
            template=version.content.template,
            description=version.content.description,
            variables=_variables(version),
            created_at=version.created_at,
        )


def _variables(version: VersionedPrompt) -> list[VariableView]:
    return [
        VariableView(name=name, description=variable.description, default=variable.default)
        for name, variable in version.content.variables.items()
    ]


class PromptDifference(BaseModel):
    """The difference of two versions; `template` is a unified diff, or empty if both are equal."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: str
    from_: int = Field(serialization_alias="from")
    to: int
    template: str
    added: list[VariableView]
    removed: list[VariableView]
    changed: list[VariableView]
    """The variables of the newer version."""
    description: str | None
    """The new description; null if it has not changed."""

    @classmethod
    def of(cls, old: VersionedPrompt, new: VersionedPrompt) -> "PromptDifference":
        before = {variable.name: variable for variable in _variables(old)}
        after = {variable.name: variable for variable in _variables(new)}
        description = new.content.description
        return cls.model_construct(
            name=new.name,
            from_=old.version,
            to=new.version,
            template=prompts.difference(old, new),
            added=[after[name] for name in after if name not in before],
            removed=[before[name] for name in before if name not in after],
            changed=[
                after[name] for name in after if name in before and after[name] != before[name]
            ],
            description=None if description == old.content.description else description,
        )


class RenderedPrompt(BaseModel):
    prompt: str
    text: str


class QueueView(BaseModel):
    """A queue; `messages` is null if Redis does not answer."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    queued: int
    running: int
    paused: bool
    messages: int | None


class WorkerView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str
    hostname: str
    pid: int
    queues: list[str]
    models: list[str]
    concurrency: int
    started_at: datetime
    last_seen_at: datetime
    alive: bool


class HealthView(BaseModel):
    status: Literal["ok"]


class CheckView(BaseModel):
    ok: bool
    detail: str


class ReadinessView(BaseModel):
    status: Literal["ready", "not ready"]
    checks: dict[str, CheckView]


class ProblemView(BaseModel):
    """RFC 9457, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[dict[str, str]] | None = None


# Requests; the inputs of kinds are in `shared/kinds/`.

SHA256 = r"^[0-9a-fA-F]{64}$"
PRINTABLE = r"^[\x21-\x7e]+$"
ID_PREFIX = r"^[0-9a-fA-F](-?[0-9a-fA-F]){3,31}-?$"
"""The first four or more digits of an id, with or without hyphens."""


class Webhook(Shape):
    """The URL for a POST when the job has ended; with a secret it is signed by Standard
    Webhooks."""

    url: WebUrl
    secret: Annotated[str, Field(min_length=1, max_length=1024)] | None = None


class NewJobBase(Shape):
    kind: str
    input: Shape
    lane: Lane | None = None
    """`normal` unless set; `interactive` with `Prefer: wait`."""
    metadata: FreeMetadata = Field(default_factory=dict)
    webhook: Webhook | None = None
    timeout_s: Annotated[float, Field(gt=0, le=YEAR_S)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=20)] | None = None
    run_after: RunAfter | None = None


def _literal(value: str) -> Any:
    return Literal[value]


def _request(kind: Kind) -> type[NewJobBase]:
    return create_model(
        f"New{kind.name.capitalize()}",
        __base__=NewJobBase,
        kind=(_literal(kind.name), ...),
        input=(kind.input, ...),
    )


REQUESTS = {kind.name: _request(kind) for kind in KINDS.values()}
if TYPE_CHECKING:
    JobRequest = NewJobBase
else:
    JobRequest = Annotated[
        functools.reduce(operator.or_, REQUESTS.values()), Field(discriminator="kind")
    ]


class BatchRequest(Shape):
    jobs: Annotated[
        list[JobRequest], Field(fail_fast=True, min_length=1, max_length=BATCH_LIMIT_JOBS)
    ]


class NewSchedule(Shape):
    """A schedule to be stored. `cron` has five fields (minute, hour, day of the month, month, day
    of the week), or is one of `@hourly`, `@daily`, `@weekly`, `@monthly`, `@yearly`; `timezone` is
    a name of the IANA database. `job` is as for `POST /v1/jobs`, without `run_after` and
    conversation."""

    cron: FullLine
    timezone: FullLine = "UTC"
    job: JobRequest


class NewConversation(Shape):
    """A conversation to be started. With `summarize`, messages that do not fit the model's window
    are summarized."""

    metadata: FreeMetadata = Field(default_factory=dict)
    summarize: StrictBool = False


class NewPrompt(Shape):
    """A version to be stored. `{name}` in the template is a variable; `{{` and `}}` are braces.
    `variables` may declare defaults and descriptions. With `make_current` false the current version
    does not change."""

    template: TemplateText
    description: Paragraph = ""
    variables: Variables = Field(default_factory=dict)
    make_current: StrictBool = True


class RollBack(Shape):
    version: Natural | None = None


class VariablesBody(Shape):
    variables: VariableValues = Field(default_factory=dict)


class CollectionSpec(Shape):
    """A collection to be made; by default with the server's embedding model."""

    embedding_model: ModelName | None = None
    dimension: Annotated[int, Field(ge=1, le=65_535)] | None = None
    distance: Literal["cosine", "l2", "ip"] = "cosine"


EXAMPLES: dict[str, dict[str, Any]] = {
    kind.name: {
        "summary": f"{kind.name}: {kind.summary}",
        "value": {"kind": kind.name, "input": kind.example},
    }
    for kind in KINDS.values()
}
