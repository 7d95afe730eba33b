"""Presets of named models: their effect on a generator and on a conversation.

A template of the preset replaces the model's own: messages become a bare prompt, for every back
end.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from shared.kinds.chat import Parameters
from shared.modelfiles import go_templates
from shared.modelfiles.go_templates import GoTemplate
from shared.named_models import Preset
from workers.generation.backends.interface import (
    Generation,
    Message,
    Request,
    Role,
    TextGenerator,
    Tool,
)

LEAST_TOKENS: Final = 1


class PresetGenerator(TextGenerator):
    """Wraps a generator with a template and a window. It does not close the inner generator."""

    def __init__(
        self, inner: TextGenerator, template: GoTemplate | None, window_tokens: int | None
    ) -> None:
        self.reference = inner.reference
        self._inner = inner
        self._template = template
        self._window_tokens = window_tokens
        self.has_native_tools = inner.has_native_tools if template is None else template.has_tools

    @property
    def window_tokens(self) -> int:  # type: ignore[override]  # known once the inner one is
        inner = self._inner.window_tokens
        return inner if self._window_tokens is None else min(inner, self._window_tokens)

    def learn(self, check: Callable[[], None]) -> None:
        self._inner.learn(check)

    def start(self, request: Request) -> Generation:
        if self._window_tokens is not None and request.messages:
            room = self.window_tokens - self.count_tokens(request.messages, request.tools)
            max_tokens = min(request.sampling.max_tokens, max(room, LEAST_TOKENS))
            request = replace(request, sampling=replace(request.sampling, max_tokens=max_tokens))
        if self._template is not None and request.messages:
            prompt = self._render(request.messages, request.tools)
            request = replace(request, messages=(), prompt=prompt)
        return self._inner.start(request)

    def count_tokens(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
        if self._template is None or not messages:
            return self._inner.count_tokens(messages, tools)
        prompt = self._render(messages, tools)
        return self._inner.count_tokens([Message(role=Role.USER, content=prompt)])

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        assert self._template is not None
        return self._template.render(
            [message.as_dict() for message in messages], [tool.as_dict() for tool in tools]
        )


def generator_for(
    generator: TextGenerator, preset: Preset | None, parameters: Parameters
) -> TextGenerator:
    """The generator with the preset and the window of a job. Raises InvalidInput for a template
    that cannot be parsed."""
    template = None if preset is None else preset.template
    if template is None and parameters.window_tokens is None:
        return generator
    parsed = None if template is None else go_templates.parse(template)
    return PresetGenerator(generator, parsed, parameters.window_tokens)


def system_of(preset: Preset | None) -> list[Message]:
    """The system prompts of a named model, which those of a conversation replace."""
    if preset is None:
        return []
    texts = [preset.system] if preset.system else []
    texts += [message.content for message in preset.messages if message.role == "system"]
    return [Message(role=Role.SYSTEM, content=text) for text in texts]


def spoken_of(preset: Preset | None) -> list[Message]:
    """The messages of a named model that come before every conversation."""
    return [
        Message(role=Role(message.role), content=message.content)
        for message in (preset.messages if preset is not None else ())
        if message.role != "system"
    ]


def name_of(preset: Preset | None, generator: TextGenerator) -> str:
    """The model name for the result: the one that the job names."""
    return generator.reference if preset is None else preset.name
