"""Jobs that know the client which they came from: `job.wait()`, `job.events()`, `job.cancel()`.

They are `Job`, the answers of the API, with its calls about one job beside its fields. `wait`,
`refresh`, `cancel` and `retry` bring the fields up to date and return the job itself.
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


class _KnownJob(Job, Generic[ResultT]):
    """What both have in common."""

    result: ResultT
    """In the form of its kind; None until the job has succeeded."""

    def _become(self, job: Job) -> Self:
        """Take over the fields of a newer answer. These are frozen for everybody else."""
        object.__setattr__(self, "__dict__", dict(job.__dict__))
        object.__setattr__(self, "__pydantic_extra__", job.__pydantic_extra__)
        object.__setattr__(self, "__pydantic_fields_set__", set(job.__pydantic_fields_set__))
        return self

    @classmethod
    def _from(cls, job: Job) -> Self:
        blank: Any = cls.__new__(cls)
        object.__setattr__(blank, "__pydantic_private__", {})
        known: Self = blank._become(job)
        return known


class ClientJob(_KnownJob[ResultT], Generic[ResultT]):
    """A job of a `Client`."""

    _client: "Client" = PrivateAttr()

    @classmethod
    def of(cls, client: "Client", job: Job) -> Self:
        known = cls._from(job)
        known._client = client
        return known

    def wait(
        self,
        *,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
        on_waiting: OnReason | None = None,
    ) -> Self:
        """This job once it has ended, however, as `Client.wait`. Raises `WaitTimeout`."""
        if self.ended:
            return self.refresh(timeout_s=timeout_s) if self.lacks_result else self
        options: dict[str, Any] = {"on_event": on_event, "on_waiting": on_waiting}
        return self._become(self._client.wait(self.id, timeout_s=timeout_s, **options))

    def refresh(self, *, timeout_s: float | None = None) -> Self:
        """This job as it is now, with its result."""
        return self._become(self._client.job(self.id, with_result=True, timeout_s=timeout_s))

    def events(
        self, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> Iterator[Event]:
        """What happens to it, up to and with its end, as `Client.events`."""
        for event in self._client.events(self.id, last_event_id=last_event_id, timeout_s=timeout_s):
            if event.event == "end":
                self._become(Job.model_validate(event.data))
            yield event

    def stream(
        self, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> Iterator[StreamItem]:
        """Its text as it comes, its runs of tools, and at last the ended job."""
        for item in self._client.stream(self.id, last_event_id=last_event_id, timeout_s=timeout_s):
            yield self._become(item) if isinstance(item, Job) else item

    def cancel(self, *, timeout_s: float | None = None) -> Self:
        """Queued, it ends at once; running, it stops soon: `wait` for its end."""
        return self._become(self._client.cancel(self.id, timeout_s=timeout_s))

    def retry(self, *, timeout_s: float | None = None) -> Self:
        """Redrive it after it has failed or was cancelled."""
        return self._become(self._client.retry(self.id, timeout_s=timeout_s))

    def erase(self, *, timeout_s: float | None = None) -> None:
        """Forget it, once it has ended, with its input and result."""
        self._client.erase_job(self.id, timeout_s=timeout_s)


class AsyncClientJob(_KnownJob[ResultT], Generic[ResultT]):
    """A job of an `AsyncClient`: `ClientJob` with `await` and `async for`."""

    _client: "AsyncClient" = PrivateAttr()

    @classmethod
    def of(cls, client: "AsyncClient", job: Job) -> Self:
        known = cls._from(job)
        known._client = client
        return known

    async def wait(
        self,
        *,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
        on_waiting: OnReason | None = None,
    ) -> Self:
        """This job once it has ended, however, as `AsyncClient.wait`. Raises `WaitTimeout`."""
        if self.ended:
            return await self.refresh(timeout_s=timeout_s) if self.lacks_result else self
        options: dict[str, Any] = {"on_event": on_event, "on_waiting": on_waiting}
        return self._become(await self._client.wait(self.id, timeout_s=timeout_s, **options))

    async def refresh(self, *, timeout_s: float | None = None) -> Self:
        """This job as it is now, with its result."""
        job = await self._client.job(self.id, with_result=True, timeout_s=timeout_s)
        return self._become(job)

    async def events(
        self, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """What happens to it, up to and with its end, as `AsyncClient.events`."""
        events = self._client.events(self.id, last_event_id=last_event_id, timeout_s=timeout_s)
        async with aclosing(events):
            async for event in events:
                if event.event == "end":
                    self._become(Job.model_validate(event.data))
                yield event

    async def stream(
        self, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[StreamItem, None]:
        """Its text as it comes, its runs of tools, and at last the ended job."""
        items = self._client.stream(self.id, last_event_id=last_event_id, timeout_s=timeout_s)
        async with aclosing(items):
            async for item in items:
                yield self._become(item) if isinstance(item, Job) else item

    async def cancel(self, *, timeout_s: float | None = None) -> Self:
        """Queued, it ends at once; running, it stops soon: `wait` for its end."""
        return self._become(await self._client.cancel(self.id, timeout_s=timeout_s))

    async def retry(self, *, timeout_s: float | None = None) -> Self:
        """Redrive it after it has failed or was cancelled."""
        return self._become(await self._client.retry(self.id, timeout_s=timeout_s))

    async def erase(self, *, timeout_s: float | None = None) -> None:
        """Forget it, once it has ended, with its input and result."""
        await self._client.erase_job(self.id, timeout_s=timeout_s)
