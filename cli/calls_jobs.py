"""The calls about jobs: submit, look, follow, cancel, redrive."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any

from cli.caller import PAGE_ITEMS, Caller, part, silent
from cli.follow import follow
from cli.streaming import Told, told
from cli.waits import Tell, by_line, reasons_told
from cli.wire import Event, Job, State


class JobCalls(Caller):
    """Nothing here waits for anything but the answer, except for events and the end of a job."""

    def submit(
        self,
        kind: str,
        input: Mapping[str, Any],
        *,
        lane: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        webhook: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        max_attempts: int | None = None,
        run_after: datetime | None = None,
        idempotency_key: str | None = None,
        wait_s: float | None = None,
    ) -> Job:
        """A new job. With `wait_s` the answer is held back until it ends, at most so long.

        `run_after` without a time zone is local time.
        """
        optional: dict[str, Any] = {
            "lane": lane,
            "metadata": metadata,
            "webhook": webhook,
            "timeout_s": timeout_s,
            "max_attempts": max_attempts,
            "run_after": run_after.astimezone().isoformat() if run_after else None,
        }
        body = {"kind": str(kind), "input": dict(input)}
        body |= {name: value for name, value in optional.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        if wait_s:
            # RFC 7240 knows whole seconds only.
            headers["Prefer"] = f"wait={max(1, round(wait_s))}"
        answer = self.transport.json(
            "POST", "/v1/jobs", body=body, headers=headers, wait_s=wait_s or 0.0
        )
        return self._with_result(Job.model_validate(answer))

    def submit_batch(self, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Up to 1,000 jobs, all or none; each is a body of `POST /v1/jobs`. Returns their ids.

        The API knows no key for a batch, so it is not repeated when its answer is lost: that
        raises `ConnectionBroken`.
        """
        body = {"jobs": [dict(job) for job in jobs]}
        ids = self.transport.listed("POST", "/v1/jobs/batch", name="ids", body=body, safe=False)
        return [str(job_id) for job_id in ids]

    def job(self, job_id: str, *, with_result: bool = False) -> Job:
        """The job as it is now; `with_result` also fetches one that is too large for that view."""
        job = self._get(Job, f"/v1/jobs/{part(job_id)}")
        return self._with_result(job) if with_result else job

    def result(self, job: Job) -> Any:
        """What a job has ended with, also where that is too large for the job's own view."""
        if job.result is not None or job.result_url is None:
            return job.result
        return self.transport.json("GET", f"/v1/jobs/{part(job.id)}/result")

    def _with_result(self, job: Job) -> Job:
        if job.result is not None or job.result_url is None or job.state is not State.SUCCEEDED:
            return job
        return job.model_copy(update={"result": self.result(job)})

    def _event_with_result(self, event: Event) -> Event:
        if event.event != "end" or not event.data.get("result_url"):
            return event
        job = self._with_result(Job.model_validate(event.data))
        return event.model_copy(update={"data": event.data | {"result": job.result}})

    def erase_job(self, job_id: str) -> None:
        """Forget a job that has ended, with its input and result."""
        self.transport.request("DELETE", f"/v1/jobs/{part(job_id)}")

    def jobs(
        self,
        *,
        state: State | str | None = None,
        kind: str | None = None,
        collection: str | None = None,
        dead: bool | None = None,
        page_items: int = PAGE_ITEMS,
    ) -> Iterator[Job]:
        """Newest first, page by page. `dead=True`: those that have used up their attempts."""
        params: dict[str, Any] = {
            "state": None if state is None else str(state),
            "kind": None if kind is None else str(kind),
            "collection": collection,
            "dead": None if dead is None else str(dead).lower(),
        }
        return self._pages(Job, "/v1/jobs", params, page_items)

    def events(
        self, job_id: str, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> Iterator[Event]:
        """What happens to a job, up to and with `end`, which has its result; resumes by itself."""
        found = follow(self.transport, job_id, last_event_id=last_event_id, timeout_s=timeout_s)
        return map(self._event_with_result, found)

    def stream(
        self, job_id: str, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> Iterator[Told]:
        """The text of a job's answer as it comes, its runs of tools, and at last the ended job.

        However often the connection breaks, each character is told once.
        """
        events = self.events(job_id, last_event_id=last_event_id, timeout_s=timeout_s)
        return told(events, is_whole=last_event_id is None)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_waiting: Tell | None = None,
    ) -> Job:
        """The job once it has ended, however. Raises `WaitTimeout`; the job then goes on.

        What it waits for `on_waiting` is told (in another thread), else `notify` of the client.
        """
        if on_waiting is None and self.notify is not silent:
            on_waiting = by_line(self.notify)
        with nullcontext() if on_waiting is None else self.reasons_told(job_id, on_waiting):
            for event in self.events(job_id, timeout_s=timeout_s):
                if on_event is not None:
                    on_event(event)
                if event.event == "end":
                    return Job.model_validate(event.data)
        return self.job(job_id, with_result=True)

    def reasons_told(
        self, job_id: str, tell: Tell, *, known: str | None = None
    ) -> AbstractContextManager[None]:
        """`tell` hears in another thread what the job waits for, whenever that changes."""

        def read() -> Job:
            path = f"/v1/jobs/{part(job_id)}"
            return Job.model_validate(self.transport.json("GET", path, retry=False))

        return reasons_told(read, tell, known=known)

    def cancel(self, job_id: str) -> Job:
        return Job.model_validate(self._post(f"/v1/jobs/{part(job_id)}/cancel"))

    def retry(self, job_id: str) -> Job:
        """Redrive a failed or cancelled job."""
        # Repeating it blindly could redrive a job that has failed again meanwhile.
        return Job.model_validate(self._post(f"/v1/jobs/{part(job_id)}/retry", safe=False))
