"""The contract of a text generator: messages or a prompt in, text out as it comes.

Every back end (`rolling/`, `ollama.py`, `openai.py`) has `TextGenerator`s, which pass
`tests/generation/contract.py`; `extractive.py` quotes, and generates nothing. `start` returns at
once; the text arrives in a `Generation`, which one thread writes and another one reads.
`Generators` makes them from the records in `shared/models/providers.py`. Nothing here uses the
ledger.
"""

import queue
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from importlib import import_module
from typing import Any, Protocol, runtime_checkable

from shared.config import Settings
from shared.errors import InvalidInput, Permanent
from shared.kinds.chat import TokenLogprob
from shared.models.providers import PROVIDERS, provider_of
from workers.attempts.process import Process


class Role(StrEnum):
    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """A call of a tool that the model wrote; `arguments` is the decoded JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool, as models read of it; `parameters` is a JSON Schema of type `object`."""

    name: str
    description: str
    parameters: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """In the shape of OpenAI's protocol, which chat templates take as well."""
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": self.parameters,
            },
        }


@dataclass(frozen=True, kw_only=True)
class Message:
    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """In the shape of `ChatMessage`, which chat templates take. Empty fields are left out."""
        values: dict[str, Any] = {"role": self.role.value, "content": self.content}
        if self.tool_calls:
            values["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        if self.tool_call_id is not None:
            values["tool_call_id"] = self.tool_call_id
        return values


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 exclude no token.

    `stop` strings end the text and are not part of it. With a `seed`, the text does not depend on
    the other requests in the batch, nor on interruptions.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logprobs: int | None = None
    """If set: report the log-probability of each token, before any penalty or temperature, and
    those of this many of the likeliest tokens at its place."""


@dataclass(frozen=True, kw_only=True)
class Resume:
    """What an earlier attempt generated; the text goes on after it.

    `text` is the text of all deltas of that attempt, `token_ids` are their tokens (empty for back
    ends that report no ids), and `logprobs` are those that they reported.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """Either `messages`, which go through the model's chat template, or a bare `prompt`.

    `deadline` is a moment of `time.monotonic()`. `lane` (lower first) and `fair_key` decide who
    joins a full batch next.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    tools: tuple[Tool, ...] = ()
    must_call: bool = False
    """Whether the model has to call a tool. Not every back end can enforce it."""
    parallel_calls: bool = True
    sampling: Sampling = Sampling()
    deadline: float | None = None
    lane: int = 1
    fair_key: str = ""
    resume: Resume | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (not self.messages):
            raise InvalidInput("Give either messages or a prompt.")
        if self.prompt is not None and not self.prompt:
            raise InvalidInput("The prompt is empty; send at least one character.")


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A piece of new text. It may be empty while a character or a stop string is incomplete.

    `logprobs` come with the text of their tokens: those of tokens without text yet come with the
    next piece, and those of a stop string never come.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished text: all of it, including what was resumed. Token counts are the model's own.

    `logprobs` are all that were reported; empty if the request does not ask for them.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass
class Generation:
    """One request under way. A back end calls `put`, then `finish` or `fail`, each from any
    thread; the caller reads, and may `cancel`.
    """

    on_cancel: Callable[[], None] | None = None
    completion: Completion | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._items: queue.SimpleQueue[Delta | Completion | BaseException] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def put(self, delta: Delta) -> None:
        self._items.put(delta)

    def finish(self, completion: Completion) -> None:
        self._items.put(completion)
        self._ended.set()

    def fail(self, error: BaseException) -> None:
        """Ends the generation; `read` raises the error."""
        self._items.put(error)
        self._ended.set()

    def cancel(self) -> None:
        """Ask the back end to stop: it finishes with `cancelled`, within a decode step."""
        self._cancelled.set()
        if self.on_cancel is not None:
            self.on_cancel()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def is_over(self) -> bool:
        return self.completion is not None or self._error is not None

    def wait(self, timeout_s: float) -> None:
        """Return when the text has ended or the time is up; new text does not end the wait."""
        self._ended.wait(timeout_s)

    def read(self, timeout_s: float | None = None) -> Delta | None:
        """The next delta; None when the text has ended or nothing came in time.

        Raises the error of the back end.
        """
        if self._error is not None:
            raise self._error
        if self.completion is not None:
            return None
        try:
            item = self._items.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(item, Delta):
            return item
        if isinstance(item, Completion):
            self.completion = item
            return None
        self._error = item
        raise item

    def __iter__(self) -> Iterator[Delta]:
        """All deltas, up to the end."""
        while not self.is_over:
            delta = self.read()
            if delta is not None:
                yield delta

    def result(self) -> Completion:
        """Wait for the end; the whole text."""
        for _ in self:
            pass
        assert self.completion is not None
        return self.completion


@runtime_checkable
class TextGenerator(Protocol):
    """A model that can generate. Thread-safe."""

    reference: str
    """The model reference."""

    window_tokens: int
    """How many tokens the prompt and the answer may have together."""

    has_native_tools: bool = True
    """Whether the back end describes tools to the model; if not, the prompt has to."""

    def learn(self, check: Callable[[], None]) -> None:  # noqa: ARG002  (for those that override it)
        """Fetch what only another server knows, such as the window of its model. `check` is called
        regularly meanwhile, and may raise. The default fetches nothing."""
        return

    @abstractmethod
    def start(self, request: Request) -> Generation:
        """Begin to generate. Raises InvalidInput if the request cannot be served."""

    @abstractmethod
    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        """How many tokens the messages take as a prompt; an estimate where the model is remote."""

    def close(self) -> None:
        """End running generations and free all resources. The default does nothing."""
        return


class Backend(Protocol):
    """What runs the models of one provider in this process."""

    def generator(self, name: str) -> TextGenerator:
        """The generator of a model, by its name without the provider's. Called once per model."""

    def close(self) -> None:
        """Free what the models share. Called after all models were closed."""


class Generators:
    """Model references -> generators: made at first use, kept for the life of the process.

    Thread-safe. `on_fatal` is called when a device is broken, after its requests were handed back.
    """

    def __init__(self, settings: Settings, *, on_fatal: Callable[[], None]) -> None:
        self._settings = settings
        self._on_fatal = on_fatal
        self._lock = threading.Lock()
        self._generators: dict[str, TextGenerator] = {}
        self._backends: dict[str, Backend] = {}

    def get(self, reference: str) -> TextGenerator:
        """Raises ConfigurationError or Permanent if there can be no such generator."""
        with self._lock:
            if reference not in self._generators:
                self._generators[reference] = self._make(reference)
            return self._generators[reference]

    def prepare(self, model: str) -> None:
        """Load the model, if it is one that a worker has to load."""
        provider = provider_of(model)
        if provider is not None and provider.is_loaded:
            self.get(model)

    def close(self) -> None:
        with self._lock:
            for generator in self._generators.values():
                generator.close()
            for backend in self._backends.values():
                backend.close()
            self._generators.clear()
            self._backends.clear()

    def _make(self, reference: str) -> TextGenerator:
        provider = provider_of(reference)
        if provider is None or provider.backend is None:
            writers = [known for known in PROVIDERS.values() if known.backend is not None]
            raise Permanent(
                f"The model {reference!r} cannot generate text. Name one of "
                f"{', '.join(writer.name for writer in writers)}, as `ollama/llama3.2`; extractive "
                "answers `rag` jobs only."
            )
        if provider.name not in self._backends:
            self._backends[provider.name] = self._backend(provider.backend)
        return self._backends[provider.name].generator(reference.removeprefix(provider.prefix))

    def _backend(self, path: str) -> Backend:
        # Imported late: torch takes seconds, and a worker of remote models needs none.
        module, _, name = path.partition(":")
        make: Callable[..., Backend] = getattr(import_module(module), name)
        return make(self._settings, on_fatal=self._on_fatal)


def is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


def generators_of(process: Process) -> Generators:
    return process.held(_generators, Generators.close)


def _generators(process: Process) -> Generators:
    return Generators(process.settings, on_fatal=process.on_fatal)
