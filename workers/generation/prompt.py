"""The prompt of `rag`: rules, what was said before, numbered passages, the question.

The passages come best first. Those that find no room in the model's window are dropped from the
tail, and the first one alone is cut where even that is too long. Equal input gives an equal
prompt, so that a retried attempt goes on where the one before stopped; the rules in front are the
same for all questions of a language and equal passages are written equally, so that back ends can
reuse what they have computed for a common beginning. `fence.py` keeps passages from being more
than text. No type of LangChain leaves this module.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Final

from langchain_core.prompts import PromptTemplate

from shared.errors import InvalidInput
from workers.generation.engine import Message, Role
from workers.generation.prompts.fence import block, code_for
from workers.generation.prompts.fitting import most
from workers.generation.prompts.wording import Wording, wording_for

Count = Callable[[Sequence[Message]], int]

PLACES: Final = frozenset({"context", "question"})
_SENTENCE_END: Final = re.compile(r"[.!?…。！？][\"'”’)\]»」』]*(?=\s|$)|\n")
_SPACE: Final = re.compile(r"\s")
_CUT_MARK: Final = " …"


@dataclass(frozen=True, kw_only=True)
class Passage:
    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class RagPrompt:
    """The first `used` passages are in it, as `[1]` to `[used]`; `dropped` found no room."""

    messages: tuple[Message, ...]
    used: int
    dropped: int
    is_cut: bool = False
    """Whether of the one passage that is in it only the beginning is."""


def build(
    question: str,
    passages: Sequence[Passage],
    *,
    template: str | None = None,
    budget_tokens: int,
    count: Count,
    history: Sequence[Message] = (),
) -> RagPrompt:
    """Raises InvalidInput where the question has no room even beside a single word of a passage.

    `history` is what was said before, without a system prompt; it is taken whole, so trim it to a
    part of the budget first.
    """
    wording = wording_for(question)
    written = _template(template) if template is not None else None
    code = code_for(text for passage in passages for text in (passage.text, passage.source))

    def messages(shown: Sequence[Passage]) -> tuple[Message, ...]:
        return _messages(question, shown, code, wording, written, history)

    def fits(shown: Sequence[Passage]) -> bool:
        return count(messages(shown)) <= budget_tokens

    used = most(len(passages), lambda n: fits(passages[:n]))
    if used or not passages:
        prompt = messages(passages[:used])
        if not used and (needed := count(prompt)) > budget_tokens:
            raise _no_room(needed, budget_tokens)
        return RagPrompt(messages=prompt, used=used, dropped=len(passages) - used)
    shortened = _beginning(passages[0], lambda passage: fits([passage]))
    if shortened is None:
        raise _no_room(count(messages([])), budget_tokens)
    return RagPrompt(messages=messages([shortened]), used=1, dropped=len(passages) - 1, is_cut=True)


def _messages(
    question: str,
    passages: Sequence[Passage],
    code: str,
    wording: Wording,
    template: PromptTemplate | None,
    history: Sequence[Message],
) -> tuple[Message, ...]:
    blocks = [
        block("passage", code, passage.text, id=number, source=passage.source)
        for number, passage in enumerate(passages, start=1)
    ]
    context = "\n\n".join(blocks) or wording.no_passages
    rules = wording.passages_are_data
    if template is None:
        rules = f"{wording.answer_from_passages}\n\n{rules}"
        template = PromptTemplate.from_template(wording.question)
    asked = template.format(context=context, question=question)
    return (
        Message(role=Role.SYSTEM, content=rules),
        *history,
        Message(role=Role.USER, content=asked),
    )


def _template(template: str) -> PromptTemplate:
    """A user's template. Only its own braces count: those in passages and questions are text."""
    try:
        fields = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise InvalidInput(
            f"The prompt has a brace too many or too few: {error}. Write {{{{ and }}}} for braces "
            "that are text."
        ) from error
    # A format such as {context:>999999999} would fill the memory; an attribute is no place.
    if {name for name, _, _ in fields} != PLACES or any(spec or conv for _, spec, conv in fields):
        raise InvalidInput(
            "The prompt needs the places {context} and {question}, written just so, and no others. "
            "Write {{ and }} for braces that are text."
        )
    return PromptTemplate.from_template(template)


def _beginning(passage: Passage, fits: Callable[[Passage], bool]) -> Passage | None:
    """As much of the passage as fits, up to the end of a sentence or at least of a word."""
    text = passage.text.strip()

    def of(length: int) -> Passage:
        return Passage(text=text[:length].rstrip() + _CUT_MARK, source=passage.source)

    length = most(len(text), lambda n: fits(of(n)))
    while length:
        end = _boundary(text, length)
        # Fewer characters are nearly always fewer tokens; where they are not, take fewer still.
        if fits(of(end)):
            return of(end)
        length = end - 1
    return None


def _boundary(text: str, length: int) -> int:
    """The last good place to cut at or before `length`, unless that would lose half the text."""
    at_least = length // 2
    for pattern in (_SENTENCE_END, _SPACE):
        ends = [found.end() for found in pattern.finditer(text, 0, length + 1)]
        if usable := [end for end in ends if at_least < end <= length]:
            return usable[-1]
    return length


def _no_room(needed: int, budget_tokens: int) -> InvalidInput:
    return InvalidInput(
        f"The question and the instructions need {needed:,} tokens and a passage needs some more, "
        f"but the model's window leaves {max(budget_tokens, 0):,} for the prompt. Shorten the "
        "question, ask for fewer max_tokens, or take a model with a larger window."
    )
