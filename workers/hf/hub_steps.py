"""Jobs of the back end `hub`: requests to another server, several at once."""

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Final

from shared.errors import Cancelled, ConfigurationError, InvalidInput
from shared.hf import BINARY, HfInput, Task
from workers.hf import contents, hub, results
from workers.step import Context, Done, Settle

POLL_S: Final = 0.2
"""How often it is looked whether a job that waits for the hub has to stop."""


def run(asked: Sequence[tuple[Context, HfInput]], settle: Settle) -> None:
    """Ask the hub for each job, and settle each as its answer comes, or as it has to stop: a
    request that hangs keeps no job from that."""
    settings = asked[0][0].process.settings
    pool = ThreadPoolExecutor(settings.hf_hub_parallel_requests, thread_name_prefix="hub")
    waiting: dict[Future[Any], Context] = {
        pool.submit(_ask, context, wanted): context for context, wanted in asked
    }
    try:
        while waiting:
            for future in wait(waiting, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
                context = waiting.pop(future)
                try:
                    outcome: Done | Exception = results.of_answer(context, future.result())
                except Exception as error:
                    outcome = error
                settle(context, outcome)
                settle.flush()
            for future, context in list(waiting.items()):
                if context.stop.is_set():
                    del waiting[future]
                    future.cancel()
                    settle(context, Cancelled(context.stop_reason))
    finally:
        # A request that is under way when nobody waits any more ends by its own timeout.
        pool.shutdown(wait=False, cancel_futures=True)


def _ask(context: Context, wanted: HfInput) -> Any:
    context.check()
    if wanted.task is None or wanted.model is None:
        raise ConfigurationError("API and workers must be of one version.")
    return hub.run(
        wanted.task,
        wanted.model,
        _inputs(context, wanted.task, wanted.inputs),
        wanted.parameters,
        context.process.settings,
        check=context.check,
    )


def _inputs(context: Context, task: Task, inputs: Any) -> Any:
    if task not in BINARY:
        return inputs
    try:
        if isinstance(inputs, list):
            return [contents.read(context.process, value) for value in inputs]
        return contents.read(context.process, inputs)
    except InvalidInput as error:
        raise InvalidInput(f"inputs: {error.message}") from None
