"""The answers of the API as typed, frozen values.

Unknown fields are kept and dumped again, so that an older client works with a newer server, and
`--json` shows everything. Nothing here uses the network.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sluice.errors import ConnectionFailed, JobCancelled, JobFailed


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class Wire(BaseModel):
    """The base class of all answers."""

    model_config = ConfigDict(extra="allow", frozen=True)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """Raises `ConnectionFailed` for an answer that no API of this version gives."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            location = ".".join(map(str, ("answer", *first["loc"])))
            raise ConnectionFailed(
                f"The server answered, but not as this version of Sluice does ({location}: "
                f"{first['msg']}). Is SLUICE_URL right, and is that server of this version?"
            ) from error


class Page(Wire):
    """A page of a list, with the cursor of the next page."""

    items: list[Any]
    next_cursor: str | None = None


class Progress(Wire):
    done: int = 0
    total: int | None = None
    unit: str | None = None


class JobError(Wire):
    type: str = ""
    message: str = ""


class Job(Wire):
    id: str
    kind: str
    state: Annotated[State | str, Field(union_mode="left_to_right")]
    lane: str | None = None
    queue: str | None = None
    input: dict[str, Any] | None = None
    result: Any = None
    result_url: str | None = None
    """The place of a result that is too large to be here; `Client.result` fetches it."""
    truncated: list[str] = []
    """Large fields that a list left out; `Client.job` has them."""
    warnings: list[str] = []
    error: JobError | None = None
    progress: Progress | None = None
    position: int | None = None
    eta_s: float | None = None
    waiting_for: str | None = None
    attempt: int | None = None
    max_attempts: int | None = None
    metadata: dict[str, Any] | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def lacks_result(self) -> bool:
        """Whether the result is too large for this answer and has to be fetched."""
        is_there = self.state is State.SUCCEEDED and self.result_url is not None
        return is_there and self.result is None

    def require_success(self) -> Self:
        """This job. Raises `JobFailed` or `JobCancelled`."""
        if self.state is State.FAILED:
            raise JobFailed(self)
        if self.state is State.CANCELLED:
            raise JobCancelled(self)
        return self


class BatchLines(Wire):
    """The numbers of lines of a batch by state. `waiting` lines are no jobs yet; `running` ones are
    queued or running."""

    total: int = 0
    waiting: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0


class LineError(Wire):
    """An error in a line of a batch's file; `line` counts from 1."""

    line: int | None = None
    code: str = ""
    message: str = ""
    param: str | None = None


class Batch(Wire):
    """A file whose lines are run as jobs. The batch itself is a job with the same id.

    `status` has more values than `state`, as in OpenAI's API: `validating`, `in_progress`,
    `finalizing`, `completed`, `failed`, `expired`, `cancelling` or `cancelled`.
    """

    id: str
    state: Annotated[State | str, Field(union_mode="left_to_right")]
    status: str
    endpoint: str
    file_id: str
    lines: BatchLines = BatchLines()
    progress: Progress | None = None
    position: int | None = None
    eta_s: float | None = None
    waiting_for: str | None = None
    errors: list[LineError] = []
    error: JobError | None = None
    warnings: list[str] = []
    output_file_id: str | None = None
    error_file_id: str | None = None
    finish_by: datetime | None = None
    metadata: dict[str, Any] = {}
    created_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def closed(self) -> bool:
        """Whether it has ended and its files are written."""
        return self.ended and self.status not in ("finalizing", "cancelling")


class Event(Wire):
    """One Server-Sent Event of a job: `state`, `progress`, `token`, `tool` or `end`."""

    id: str | None = None
    event: str
    data: dict[str, Any]


class LastCheck(Wire):
    """What the last `check` job of a collection has found."""

    state: str
    """`ok`, `mended` or `damaged`."""
    finished_at: datetime
    job_id: str | None = None
    missing: int = 0
    surplus: int = 0
    stale: int = 0
    sampled: int = 0
    wrong: int = 0
    foreign: int = 0
    leftover: int = 0


class Collection(Wire):
    name: str
    embedding_model: str | None = None
    dimension: int | None = None
    distance: str | None = None
    store: str | None = None
    """Where its vectors lie; None until that is chosen."""
    documents: int = 0
    chunks: int = 0
    check: LastCheck | None = None
    """None before the first one."""
    created_at: datetime | None = None


class CollectionIndex(Wire):
    """Vectors of one model; searches read the one whose state is `active`."""

    name: str
    """What it is called in the store."""
    embedding_model: str
    dimension: int | None = None
    distance: str | None = None
    state: str
    """`active`, `building` or `retired`."""
    store: str | None = None
    chunks: int = 0
    can_roll_back: bool = False
    """Whether `rebuild_collection` with `rollback` may go back to it."""
    job_id: str | None = None
    created_at: datetime | None = None
    kept_until: datetime | None = None
    """When it is dropped; None while it is not retired."""


class CollectionDetails(Collection):
    indexes: list[CollectionIndex] = []
    """The active one first, then the newest."""


class Document(Wire):
    id: str
    collection: str
    source: str
    sha256: str | None = None
    content_hash: str | None = None
    size_bytes: int | None = None
    chunks: int = 0
    metadata: dict[str, Any] = {}
    source_id: str | None = None
    """The `id` of its source, if that had one."""
    container: str | None = None
    """The archive, or the mail, that it lies in."""
    container_sha256: str | None = None
    """Of the bytes of that, where all of it has been read."""
    is_whole: bool = True
    """False while not all has been read of the archive that it lies in, or of its attachments."""
    created_at: datetime | None = None
    updated_at: datetime | None = None


class Chunk(Wire):
    id: str
    document_id: str | None = None
    source: str | None = None
    ordinal: int
    start: int | None = None
    text: str
    metadata: dict[str, Any] = {}


class StoredFile(Wire):
    id: str
    name: str
    size_bytes: int
    sha256: str
    content_type: str | None = None
    created_at: datetime | None = None


class Hit(Wire):
    """A passage that a search has found. `span` has `start` and `end` of the part of `text` that
    fits the query best, and `debug` the parts of the score. `collection` is set if several were
    searched."""

    chunk_id: str
    document_id: str
    source: str
    text: str
    start: int | None = None
    score: float
    metadata: dict[str, Any] = {}
    collection: str | None = None
    span: dict[str, int] | None = None
    debug: dict[str, Any] | None = None


class Citation(Hit):
    marker: str


class Answer(Wire):
    answer: str
    citations: list[Citation] = []
    model: str
    usage: dict[str, Any] = {}
    finish_reason: str = "stop"
    passages_dropped: int = 0
    markers_removed: int = 0
    parsed: Any = None


class ChatAnswer(Wire):
    """`message` has the shape of messages of `chat`; `steps` are the tool calls before it."""

    message: dict[str, Any]
    model: str
    usage: dict[str, Any] = {}
    finish_reason: str = "stop"
    turns: int = 1
    steps: list[dict[str, Any]] = []
    messages_dropped: int = 0
    parsed: Any = None

    @property
    def text(self) -> str:
        return str(self.message.get("content") or "")

    @property
    def tool_calls(self) -> list[dict[str, Any]]:
        """Calls of tools that the caller has declared and has to run."""
        return list(self.message.get("tool_calls") or [])


class Embeddings(Wire):
    model: str
    dimension: int
    embeddings: list[list[float]]


class SourceError(Wire):
    source: str
    message: str


class DocumentCounts(Wire):
    added: int = 0
    replaced: int = 0
    skipped: int = 0
    failed: int = 0
    erased: int = 0
    """They were in an archive, or the like, that was ingested again without them."""

    def __add__(self, other: "DocumentCounts") -> "DocumentCounts":
        return DocumentCounts(
            added=self.added + other.added,
            replaced=self.replaced + other.replaced,
            skipped=self.skipped + other.skipped,
            failed=self.failed + other.failed,
            erased=self.erased + other.erased,
        )


class IngestOutcome(Wire):
    documents: DocumentCounts = DocumentCounts()
    chunks: int = 0
    errors: list[SourceError] = []
    vanished: list[str] = []


class Schedule(Wire):
    """A job that is submitted regularly. `error` says why the last one was not submitted. `job`
    is the body that is submitted; lists do not have it."""

    name: str
    cron: str
    timezone: str = "UTC"
    kind: str
    paused: bool = False
    next_at: datetime | None = None
    last_at: datetime | None = None
    last_job_id: str | None = None
    error: str | None = None
    job: dict[str, Any] | None = None


class Queue(Wire):
    name: str
    queued: int = 0
    running: int = 0
    paused: bool = False
    messages: int | None = None


class Worker(Wire):
    name: str
    hostname: str | None = None
    pid: int | None = None
    queues: list[str] = []
    models: list[str] = []
    concurrency: int | None = None
    started_at: datetime | None = None
    last_seen_at: datetime | None = None
    alive: bool = True


class Model(Wire):
    reference: str
    kinds: list[str] = []
    default: bool | list[str] = False
    workers: int | None = None
    base: str | None = None
    """The model behind a named one."""


class ModelDetails(Model):
    details: dict[str, Any] = {}


class Conversation(Wire):
    id: str
    metadata: dict[str, Any] = {}
    summarize: bool = False
    summary: str | None = None
    messages: int = 0
    created_at: datetime | None = None
    updated_at: datetime | None = None


class ConversationMessage(Wire):
    message: dict[str, Any]
    job_id: str | None = None
    created_at: datetime | None = None


class PromptVariable(Wire):
    """A variable of a prompt. Without a `default`, jobs have to set it."""

    name: str
    description: str = ""
    default: str | int | float | bool | None = None


class Prompt(Wire):
    """A version of a prompt. Jobs name it by its `reference`. `current` is the version that the
    name alone stands for, `latest` the newest."""

    name: str
    version: int
    reference: str
    current: int
    latest: int
    is_current: bool = False
    template: str
    description: str = ""
    variables: list[PromptVariable] = []
    created_at: datetime | None = None


class PromptDifference(Wire):
    """`template` is a unified diff, empty if both are equal. `changed` has variables in their newer
    version."""

    name: str
    from_: Annotated[int, Field(alias="from")]
    to: int
    template: str
    added: list[PromptVariable] = []
    removed: list[PromptVariable] = []
    changed: list[PromptVariable] = []
    description: str | None = None


class Check(Wire):
    ok: bool
    detail: str | None = None


class Readiness(Wire):
    status: str
    checks: dict[str, Check] = {}

    @property
    def ready(self) -> bool:
        return self.status == "ready"
