"""Jobs with methods that call their client: `job.wait()`, `job.events()`, `job.cancel()`.

They are `Job`, as the API answers it, with the client's calls about one job. `wait`, `refresh`,
`cancel` and `retry` update the fields and return the job itself.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from pydantic import PrivateAttr

from sluice.events import OnEvent, OnReason, StreamItem
from sluice.shapes import Event, Job

if TYPE_CHECKING:
    from sluice.client import AsyncClient, Client

ResultT = TypeVar("ResultT")


class _BoundJob(Job, Generic[ResultT]):
    """The part that both have in common."""

    result: ResultT
    """The result in the shape of the job's kind; None until the job has succeeded."""

    def _update(self, job: Job) -> Self:
        """Take over the fields of a newer answer. The fields are frozen for all other code."""
        object.__setattr__(self, "__dict__", dict(job.__dict__))
        object.__setattr__(self, "__pydantic_extra__", job.__pydantic_extra__)
        object.__setattr__(self, "__pydantic_fields_set__", set(job.__pydantic_fields_set__))
        return self

    @classmethod
    def _from(cls, job: Job) -> Self:
        blank: Any = cls.__new__(cls)
        object.__setattr__(blank, "__pydantic_private__", {})
        bound: Self = blank._update(job)
        return bound


class ClientJob(_BoundJob[ResultT], Generic[ResultT]):
    """A job of a `Client`."""

    _client: "Client" = PrivateAttr()

    @classmethod
    def of(cls, client: "Client", job: Job) -> Self:
        bound = cls._from(job)
        bound._client = client
        return bound

    def wait(
        self,
        *,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
        on_waiting: OnReason | None = None,
    ) -> Self:
        """As `Client.wait`: this job when it has ended. Raises `WaitTimeout`."""
        if self.ended:
            return self.refresh(timeout_s=timeout_s) if self.lacks_result else self
        options: dict[str, Any] = {"on_event": on_event, "on_waiting": on_waiting}
        return self._update(self._client.wait(self.id, timeout_s=timeout_s, **options))

    def refresh(self, *, timeout_s: float | None = None) -> Self:
        """This job as it is now, with its result."""
        return self._update(self._client.job(self.id, with_result=True, timeout_s=timeout_s))

    def events(
        self, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> Iterator[Event]:
        """As `Client.events`: the events of this job up to its end."""
        for event in self._client.events(self.id, last_event_id=last_event_id, timeout_s=timeout_s):
            if event.event == "end":
                self._update(Job.model_validate(event.data))
            yield event

    def stream(
        self, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> Iterator[StreamItem]:
        """The text of its answer as it is written, its tool runs, and at last the ended job."""
        for item in self._client.stream(self.id, last_event_id=last_event_id, timeout_s=timeout_s):
            yield self._update(item) if isinstance(item, Job) else item

    def cancel(self, *, timeout_s: float | None = None) -> Self:
        """A queued job ends at once. A running one stops soon: `wait` for its end."""
        return self._update(self._client.cancel(self.id, timeout_s=timeout_s))

    def retry(self, *, timeout_s: float | None = None) -> Self:
        """Redrive it after it has failed or has been cancelled."""
        return self._update(self._client.retry(self.id, timeout_s=timeout_s))

    def erase(self, *, timeout_s: float | None = None) -> None:
        """Delete the ended job with its input and result."""
        self._client.erase_job(self.id, timeout_s=timeout_s)


class AsyncClientJob(_BoundJob[ResultT], Generic[ResultT]):
    """A job of an `AsyncClient`: `ClientJob` with `await` and `async for`."""

    _client: "AsyncClient" = PrivateAttr()

    @classmethod
    def of(cls, client: "AsyncClient", job: Job) -> Self:
        bound = cls._from(job)
        bound._client = client
        return bound

    async def wait(
        self,
        *,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
        on_waiting: OnReason | None = None,
    ) -> Self:
        """As `AsyncClient.wait`: this job when it has ended. Raises `WaitTimeout`."""
        if self.ended:
            return await self.refresh(timeout_s=timeout_s) if self.lacks_result else self
        options: dict[str, Any] = {"on_event": on_event, "on_waiting": on_waiting}
        return self._update(await self._client.wait(self.id, timeout_s=timeout_s, **options))

    async def refresh(self, *, timeout_s: float | None = None) -> Self:
        """This job as it is now, with its result."""
        job = await self._client.job(self.id, with_result=True, timeout_s=timeout_s)
        return self._update(job)

    async def events(
        self, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """As `AsyncClient.events`: the events of this job up to its end."""
        events = self._client.events(self.id, last_event_id=last_event_id, timeout_s=timeout_s)
        async with aclosing(events):
            async for event in events:
                if event.event == "end":
                    self._update(Job.model_validate(event.data))
                yield event

    async def stream(
        self, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[StreamItem, None]:
        """The text of its answer as it is written, its tool runs, and at last the ended job."""
        items = self._client.stream(self.id, last_event_id=last_event_id, timeout_s=timeout_s)
        async with aclosing(items):
            async for item in items:
                yield self._update(item) if isinstance(item, Job) else item

    async def cancel(self, *, timeout_s: float | None = None) -> Self:
        """A queued job ends at once. A running one stops soon: `wait` for its end."""
        return self._update(await self._client.cancel(self.id, timeout_s=timeout_s))

    async def retry(self, *, timeout_s: float | None = None) -> Self:
        """Redrive it after it has failed or has been cancelled."""
        return self._update(await self._client.retry(self.id, timeout_s=timeout_s))

    async def erase(self, *, timeout_s: float | None = None) -> None:
        """Delete the ended job with its input and result."""
        await self._client.erase_job(self.id, timeout_s=timeout_s)
