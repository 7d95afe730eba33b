"""The back end `hf/...`: one model in this process, whose batch requests join and leave.

`scheduler.py` runs the model, in the thread of `loop.py`; here requests become rows for it, in the
caller's thread. Calls of tools stay in the text, for `toolcalls.py` to find.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.config import Settings
from shared.errors import ConfigurationError
from workers.generation.batch.budget import kv_budget_bytes
from workers.generation.batch.counters import Counters
from workers.generation.batch.graphs import StaticSteps
from workers.generation.batch.intake import Bounds, Intake
from workers.generation.batch.loop import Loop
from workers.generation.batch.packing import pack
from workers.generation.batch.prefixes import Prefixes
from workers.generation.batch.probe import adapt
from workers.generation.batch.scheduler import Limits, Scheduler
from workers.generation.batch.slab import COLUMNS_STEP
from workers.generation.batch.templates import Prompts
from workers.generation.engine import (
    FinishReason,
    Generation,
    Generator,
    Message,
    Request,
    Tool,
)
from workers.generation.quantized import Loaded, load


def make_rolling(name: str, settings: Settings, on_fatal: Callable[[], None]) -> "RollingGenerator":
    """Load the model `hf/<name>` and start its thread. Raises ConfigurationError.

    `on_fatal` is called from that thread once the device is broken and all requests were handed
    back; the process should end.
    """
    return RollingGenerator(f"hf/{name}", load(name, settings), settings, on_fatal)


class RollingGenerator(Generator):
    """A loaded model, and the thread that runs it."""

    def __init__(
        self,
        reference: str,
        loaded: Loaded,
        settings: Settings,
        on_fatal: Callable[[], None],
    ) -> None:
        self.reference = reference
        self._prompts = Prompts(loaded.tokenizer)
        self.has_native_tools = self._prompts.has_tools
        pack(loaded.model)
        network = adapt(loaded.model, settings.generation_batch_requests)
        slab = network.slab
        budget = kv_budget_bytes(settings, network.device) // slab.bytes_per_token
        prefixes = Prefixes(int(budget * settings.generation_prefix_fraction))
        slab.token_limit = budget - prefixes.token_limit
        slab.drop()
        bounds = _bounds(loaded.window_tokens, slab.token_limit, network.vocabulary_tokens)
        self.window_tokens = bounds.window_tokens
        self._intake = Intake(self._prompts, bounds)
        self._scheduler = Scheduler(
            network,
            limits=Limits(
                rows=settings.generation_batch_requests,
                prefill_tokens=settings.generation_prefill_tokens,
            ),
            ends=loaded.ends,
            prefixes=prefixes,
            static=StaticSteps(network) if settings.generation_cuda_graphs else None,
        )
        self._loop = Loop(self._scheduler, on_fatal)

    @property
    def counters(self) -> Counters:
        """What has been done so far."""
        return replace(self._scheduler.counters)

    def start(self, request: Request) -> Generation:
        generation = Generation()
        row = self._intake.row(request, generation)
        if row.text.is_stopped:
            row.finish(FinishReason.STOP)
        elif row.generated_tokens >= row.max_tokens:
            row.finish(FinishReason.LENGTH)
        else:
            self._loop.submit(row)
        return generation

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        return len(self._prompts.encode_messages(messages, tools))

    def close(self) -> None:
        self._loop.close()


def _bounds(window_tokens: int, slab_tokens: int, vocabulary_tokens: int) -> Bounds:
    """What one request may have at most: what the model was made for, or what memory holds."""
    held = slab_tokens // COLUMNS_STEP * COLUMNS_STEP - 1
    if held < 1:
        raise ConfigurationError(
            f"The keys and values of {slab_tokens} tokens fit into the memory that is left, and "
            f"at least {COLUMNS_STEP} are needed. Raise SLUICE_GENERATION_KV_MIB or "
            "SLUICE_GENERATION_KV_FRACTION, or use a smaller model."
        )
    if held < window_tokens:
        reason = f"memory bounds the window to {held} (see SLUICE_GENERATION_KV_MIB)"
    else:
        reason = f"the model's window is {window_tokens}"
    return Bounds(
        window_tokens=min(window_tokens, held),
        window_reason=reason,
        vocabulary_tokens=vocabulary_tokens,
    )
