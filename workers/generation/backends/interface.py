"""The contract of a text generator: messages or a prompt in, text out as it comes.

Every back end (`rolling/`, `remote/`) implements `Generator`, and passes
`tests/generation/contract.py`; `extractive.py` quotes, and generates nothing. `start` returns at
once; the text arrives in a `Generation`, which one thread writes and another one reads. No ledger
in here.
"""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shared.errors import InvalidInput


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
    """A model's wish to have a tool run; `arguments` is the decoded JSON object."""

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A tool as models are told of it; `parameters` is a JSON Schema of type `object`."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Message:
    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave all.

    `stop` strings end the text and are not part of it. With a `seed` the text is the same however
    many requests share the batch, and goes on the same after an interruption.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    repetition_penalty: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Resume:
    """What an earlier attempt generated; the text goes on behind it.

    `text` is what that attempt's deltas added up to, `token_ids` their tokens (empty for back
    ends that tell no ids).
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Request:
    """Either `messages`, which go through the model's chat template, or a bare `prompt`.

    `deadline` is a moment of `time.monotonic()`. `lane` (lower first) and `fair_key` decide who
    joins a full batch next.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    tools: tuple[Tool, ...] = ()
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
    """A piece of new text. The text may be empty while a character or a stop string is open."""

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A finished text: all of it, with what was resumed. Token counts are the model's own."""

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    tool_calls: tuple[ToolCall, ...] = ()


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
        """Until the text has ended, or the time is up, however much comes meanwhile."""
        self._ended.wait(timeout_s)

    def read(self, timeout_s: float | None = None) -> Delta | None:
        """The next delta; None when the text has ended or nothing came in time.

        Raises what the back end failed with.
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


class Generator(ABC):
    """A model that can generate. Thread-safe."""

    reference: str
    """The model reference, as `hf/...`, `ollama/...`, `openai/...`, `extractive`."""

    window_tokens: int
    """How many tokens prompt and answer may have together."""

    has_native_tools: bool = True
    """Whether the model is told of tools by the back end; else the prompt has to describe them."""

    def learn(self, check: Callable[[], None]) -> None:  # noqa: B027  (there may be nothing)
        """Find out what has to be asked for, such as the window of a model of another server;
        `check` is called all the while, and may raise."""

    @abstractmethod
    def start(self, request: Request) -> Generation:
        """Begin to generate. Raises InvalidInput where the request cannot be served as it is."""

    @abstractmethod
    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        """How many tokens the messages take as a prompt; an estimate where the model is remote."""

    def close(self) -> None:  # noqa: B027  (there may be nothing to give back)
        """End what runs and give everything back."""


def is_past(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline
