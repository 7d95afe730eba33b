"""A request -> a row that can join the batch, or the reason why it cannot be served.

What an earlier attempt generated becomes part of the row: the model goes on behind it, and text
that was shown is not shown again.
"""

from dataclasses import dataclass
from itertools import count

from shared.errors import InvalidInput
from workers.generation.batch.detokenize import TextStream
from workers.generation.batch.rows import Row
from workers.generation.batch.sampling import Chooser
from workers.generation.batch.templates import Prompts
from workers.generation.engine import Generation, Request, Resume


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """`window_reason` says, to users, what bounds the window."""

    window_tokens: int
    window_reason: str
    vocabulary_tokens: int


class Intake:
    """Thread-safe."""

    def __init__(self, prompts: Prompts, bounds: Bounds) -> None:
        self._prompts = prompts
        self._bounds = bounds
        self._ages = count()

    def row(self, request: Request, generation: Generation) -> Row:
        """Raises InvalidInput."""
        prompt = self._prompts.encode(request)
        self._check(prompt)
        resume = request.resume or Resume()
        text = self._text(request)
        ids = list(resume.token_ids)
        pieces = [piece for token in ids if (piece := text.feed(token))]
        again = "".join(pieces)
        if not (resume.text.startswith(again) or again.startswith(resume.text)) or not ids:
            # Ids of another model, or none at all: the text is what counts.
            ids = self._prompts.encode_more(resume.text) if resume.text else []
            text = self._text(request)
            for token in ids:
                text.feed(token)
            pieces, again = [resume.text], resume.text
        tokens = prompt + ids
        room = self._bounds.window_tokens - len(prompt)
        return Row(
            request=request,
            generation=generation,
            tokens=tokens,
            prompt_tokens=len(prompt),
            max_tokens=min(request.sampling.max_tokens, room),
            chooser=Chooser(request.sampling, tokens),
            text=text,
            age=next(self._ages),
            pieces=pieces,
            repeated_chars=max(0, len(resume.text) - len(again)),
        )

    def _text(self, request: Request) -> TextStream:
        decode = self._prompts.decode_with_calls if request.tools else self._prompts.decode
        return TextStream(decode, self._prompts.stop_strings(request))

    def _check(self, prompt: list[int]) -> None:
        """What a model is never given: it may end the process (SIGFPE for no tokens at all)."""
        bounds = self._bounds
        if not prompt:
            raise InvalidInput("The prompt is empty: it makes no tokens for this model.")
        if not 0 <= min(prompt) <= max(prompt) < bounds.vocabulary_tokens:
            raise InvalidInput(
                f"The prompt has the token {max(prompt)}, and the model knows "
                f"{bounds.vocabulary_tokens}: its tokenizer belongs to another model."
            )
        if len(prompt) + 1 > bounds.window_tokens:
            raise InvalidInput(
                f"The prompt has {len(prompt)} tokens, which leaves no room for an answer: "
                f"{bounds.window_reason}. Shorten it."
            )
