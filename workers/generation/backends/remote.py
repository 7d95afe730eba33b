"""Generating by models of another server: what `ollama.py` and `openai.py` share.

A cancellation or a deadline ends a generation at once, with the text so far, whatever the server
does (`workers/servers/server.py`). Nothing is retried here: the runner does that
(`workers/attempts/retry.py`), and decides by the errors of `workers/outbound.py`. Token counts are
estimates if the server reports none.
"""

import asyncio
import json
import re
from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from shared.errors import InvalidInput, SluiceError, Unavailable
from shared.kinds.chat import TokenLogprob
from workers.generation.backends.interface import (
    Completion,
    Delta,
    FinishReason,
    Generation,
    Message,
    Request,
    TextGenerator,
    Tool,
    ToolCall,
)
from workers.models.detokenize import StopFilter
from workers.outbound import broken_off
from workers.servers.server import Server

# Estimates of how many tokens a text has, for models whose tokenizer is on another server.
#
# Estimates are rather too high, so that a prompt that was trimmed by them fits. Four characters
# of English make about one token; a syllable of Hangul and a Chinese or Japanese character make
# up to one each, depending on the tokenizer.

_DENSE: Final = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af]")
_CHARS_A_TOKEN: Final = 4
_TOKENS_AROUND_A_MESSAGE: Final = 4
_TOKENS_AROUND_AN_ANSWER: Final = 3


def tokens_of(text: str) -> int:
    """At least 1 for any text; 0 for none."""
    dense = len(_DENSE.findall(text))
    return dense + -(-(len(text) - dense) // _CHARS_A_TOKEN)


def tokens_of_prompt(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
    """Of a conversation in its chat template, with the schemas of the tools."""
    of_messages = sum(tokens_of(_text(message)) + _TOKENS_AROUND_A_MESSAGE for message in messages)
    of_tools = sum(
        tokens_of(f"{tool.name} {tool.description} {json.dumps(tool.parameters)}")
        + _TOKENS_AROUND_A_MESSAGE
        for tool in tools
    )
    return of_messages + of_tools + _TOKENS_AROUND_AN_ANSWER


def _text(message: Message) -> str:
    calls = (f"{call.name} {json.dumps(call.arguments)}" for call in message.tool_calls)
    return " ".join([message.content, *calls])


@dataclass
class Reply:
    """What a back end learns about an answer, besides its text, while it reads the stream.

    `finish_reason` is set by the end marker: a stream that ends without one was broken off.
    """

    has_begun: bool = False
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """All that the server sent; those of a resumed text are not among them."""


class RemoteGenerator(TextGenerator):
    """A model of a server. The server outlives it; the back end closes it."""

    def __init__(self, server: Server, reference: str) -> None:
        self.reference = reference
        self._server = server
        self._runs: set[_GenerationRun] = set()

    @abstractmethod
    def converse(self, request: Request, reply: Reply) -> AsyncGenerator[str, None]:
        """Ask the server; yields the new text in pieces, and fills in `reply` meanwhile.

        `request.resume` goes into the server's prompt; its text is not part of the pieces.
        """

    async def window(self) -> int:
        """`window_tokens`, for callers on the loop."""
        return self.window_tokens

    def start(self, request: Request) -> Generation:
        run = _GenerationRun(self, request)
        self._server.post(run.begin)
        return run.generation

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        return tokens_of_prompt(messages, tools)

    def close(self) -> None:
        """End this model's generations; they fail with Unavailable."""
        with suppress(Unavailable):
            self._server.post(self._abandon_all)

    def _abandon_all(self) -> None:
        for run in tuple(self._runs):
            run.abandon()


class _GenerationRun:
    """One running generation. Everything but `__init__` runs on the server's loop."""

    def __init__(self, generator: RemoteGenerator, request: Request) -> None:
        self.generation = Generation(on_cancel=self._cancel)
        self._generator = generator
        self._server = generator._server
        self._request = request
        self._resumed = request.resume.text if request.resume is not None else ""
        self._parts = [self._resumed]
        self._reply = Reply()
        self._shown_logprobs = 0
        self._task: asyncio.Task[None] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._is_over = False

    def begin(self) -> None:
        if self._is_over:
            return
        loop = asyncio.get_running_loop()
        self._generator._runs.add(self)
        if self._request.deadline is not None:
            # The loop's clock is time.monotonic().
            self._alarm = loop.call_at(
                self._request.deadline, partial(self._end, FinishReason.DEADLINE)
            )
        self._task = loop.create_task(self._generate())
        # If it is still open then, something else cancelled the task: the server is being closed.
        self._task.add_done_callback(lambda _: self.abandon())

    def abandon(self) -> None:
        info = self._server.info
        self._fail(Unavailable(f"{info} gets no more requests: this worker is ending."))

    def _cancel(self) -> None:
        with suppress(Unavailable):  # The server is closed, and this has failed already.
            self._server.post(partial(self._end, FinishReason.CANCELLED))

    async def _generate(self) -> None:
        stops = StopFilter(self._request.sampling.stop)
        try:
            async with self._server.slots.slot(self._request.lane):
                await self._check_window()
                pieces = self._generator.converse(self._request, self._reply)
                async with aclosing(pieces):
                    async for piece in pieces:
                        self._show(stops.feed(piece))
                        if stops.has_stopped:
                            break
            if stops.has_stopped:
                self._end(FinishReason.STOP)
            elif self._reply.finish_reason is not None:
                self._show(stops.flush())
                self._end(self._reply.finish_reason)
            else:
                self._fail(broken_off(self._server.info, "it ended without its end marker"))
        except SluiceError as error:
            self._fail(error)
        except Exception as error:
            self._fail(self._translate(error))

    async def _check_window(self) -> None:
        request = self._request
        prompt_tokens = (
            tokens_of(request.prompt)
            if request.prompt is not None
            else tokens_of_prompt(request.messages, request.tools)
        )
        window = await self._generator.window()
        if prompt_tokens > window:
            raise InvalidInput(
                f"The prompt has about {prompt_tokens} tokens, and the window of "
                f"{self._generator.reference} is {window}. Shorten it, or raise "
                "SLUICE_REMOTE_WINDOW_TOKENS if the model's own window is larger."
            )

    def _translate(self, error: Exception) -> Exception:
        known = self._server.translate_error(error, has_begun=self._reply.has_begun)
        if known is None:
            return error
        known.__cause__ = error
        return known

    def _show(self, text: str) -> None:
        if text and not self._is_over:
            self._parts.append(text)
            new = tuple(self._reply.logprobs[self._shown_logprobs :])
            self._shown_logprobs += len(new)
            self.generation.put(Delta(text=text, logprobs=new))

    def _end(self, reason: FinishReason) -> None:
        if not self._is_over:
            self.generation.finish(self._completion(reason))
            self._settle()

    def _fail(self, error: BaseException) -> None:
        if not self._is_over:
            self.generation.fail(error)
            self._settle()

    def _settle(self) -> None:
        """The reader has its answer; drop the rest of the request."""
        self._is_over = True
        self._generator._runs.discard(self)
        if self._alarm is not None:
            self._alarm.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def _completion(self, reason: FinishReason) -> Completion:
        """For the server, a resumed text is part of the prompt; for us, it is part of the
        answer."""
        before = tokens_of(self._resumed)
        resume = self._request.resume
        before_logprobs = () if resume is None else resume.logprobs
        prompt, new = self._reply.prompt_tokens, self._reply.completion_tokens
        if prompt is None:
            request = self._request
            prompt = before + (
                tokens_of(request.prompt)
                if request.prompt is not None
                else tokens_of_prompt(request.messages, request.tools)
            )
        if new is None:
            new = tokens_of("".join(self._parts[1:]))
        return Completion(
            text="".join(self._parts),
            finish_reason=reason,
            prompt_tokens=max(0, prompt - before),
            completion_tokens=before + new,
            tool_calls=tuple(self._reply.tool_calls),
            logprobs=(*before_logprobs, *self._reply.logprobs[: self._shown_logprobs]),
        )


def tokens_left(request: Request) -> int:
    """How many tokens may still come: the limit, less an estimate for the resumed text."""
    before = tokens_of(request.resume.text) if request.resume is not None else 0
    return max(1, request.sampling.max_tokens - before)
