"""The back end `hf/...`: one model in this process, and a batch that requests join and leave.

`scheduler.py` runs the model in a thread of its own; this module makes rows of requests for it, in
the caller's thread. Tool calls stay in the text, where `answers/tool_calls.py` finds them.
"""

import os
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shared.config import Settings
from shared.errors import ConfigurationError, InvalidInput
from shared.models.providers import HF
from workers.generation.backends.interface import (
    FinishReason,
    Generation,
    Message,
    Request,
    Resume,
    Role,
    TextGenerator,
    Tool,
)
from workers.generation.backends.rolling import attention
from workers.generation.backends.rolling.attention import (
    COLUMNS_UNIT,
    SLUICE,
    Network,
    Prefixes,
    PromptPiece,
    Slab,
)
from workers.generation.backends.rolling.graphs import StaticDecode
from workers.generation.backends.rolling.sampling import Chooser
from workers.generation.backends.rolling.scheduler import (
    Counters,
    DecodeLoop,
    Limits,
    Scheduler,
    SlabRow,
)
from workers.models.detokenize import TextStream
from workers.models.load import LoadedGenerator, load_generator

# How much memory the keys and values of requests may take, measured once the model is loaded.

# Other programs need main memory, too: without a setting, no more than this is taken of it.
CPU_LIMIT_BYTES: Final = 4 * 2**30


def kv_budget_bytes(settings: Settings, device: torch.device) -> int:
    if settings.generation_kv_mib is not None:
        return settings.generation_kv_mib * 2**20
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * settings.generation_kv_fraction)
    return min(CPU_LIMIT_BYTES, int(_available_bytes() * settings.generation_kv_fraction))


def _available_bytes() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return int(rest.split()[0]) * 1024
    except OSError:
        pass
    # Not Linux: half of what there is.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


# Linear layers whose weights lie in memory as a processor's matrix kernels read them.
#
# torch's own linear layer makes oneDNN rearrange bfloat16 weights at every call, which costs half
# of the time of a decode step with few rows. Here they are rearranged once; the results are the
# same. The operators are those that torch's compiler uses for frozen models on processors.


class PackedLinear(nn.Module):
    """A linear layer for inference. Its weight is opaque, but shows dtype and device."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.weight, self.bias, "none", [], ""
        )
        return out


def can_pack() -> bool:
    """Whether torch has these operators, and this processor what they need for bfloat16: AVX-512,
    or AVX-NE-CONVERT."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def pack(model: nn.Module) -> int:
    """Replace, in place, the layers that gain by it; returns how many were replaced."""
    if not can_pack():
        return 0
    packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # Subclasses (quantized layers, adapters) have a forward of their own.
            if type(child) is nn.Linear and _is_slow(child.weight):
                setattr(parent, name, PackedLinear(child))
                packed += 1
    return packed


def _is_slow(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


PLAIN_STOP: Final = ("\nUser:",)
# Special tokens that open a tool call (Mistral, Llama 3).
CALL_MARKS: Final = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>")
BYTE_TOKEN: Final = re.compile(r"<0x([0-9A-F]{2})>")
"""How sentencepiece writes a byte that is only a part of a character."""
WORD_BEGIN: Final = "\u2581"


def _bytes_of_letters() -> dict[str, int]:
    """How byte-level BPE writes bytes: printable ones as they are, the others from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }


BYTES_OF_LETTERS: Final = _bytes_of_letters()
_PLAIN_NAMES: Final = {
    Role.SYSTEM: "System",
    Role.USER: "User",
    Role.ASSISTANT: "Assistant",
    Role.TOOL: "Tool",
}


class Prompts:
    """Requests -> token ids, and token ids -> text, by the model's tokenizer. Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._has_template = bool(tokenizer.chat_template)
        # A tokenizer has its truncation and padding as a state, and raises an error ("Already
        # borrowed") when two threads use it.
        self._lock = threading.Lock()
        self._has_byte_letters = "ByteLevel" in str(getattr(self._backend, "decoder", ""))
        special = _special_tokens(tokenizer)
        self._special = _any_of(special)
        self._special_ids = frozenset(special.values())
        self._call_ids = frozenset(special[mark] for mark in CALL_MARKS if mark in special)
        self.has_tools = "tools" in str(tokenizer.chat_template or "")
        """Whether the template describes tools to the model."""

    def encode(self, request: Request) -> list[int]:
        """Raises InvalidInput if the template refuses the messages."""
        if request.prompt is not None:
            return self._ids(request.prompt, with_special=True)
        return self.encode_messages(request.messages, request.tools)

    def encode_messages(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        if not self._has_template:
            return self._ids(self._plain(messages), with_special=True)
        # A template writes the special tokens itself.
        return self._ids(self._from_template(messages, tools), with_special=False)

    def encode_more(self, text: str) -> list[int]:
        """Of a text that continues a prompt."""
        return self._ids(text, with_special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without special tokens."""
        return self._text([id_ for id_ in ids if id_ not in self._special_ids])

    def decode_with_calls(self, ids: Sequence[int]) -> str:
        """The same, with the special tokens that mark tool calls."""
        hidden = self._special_ids - self._call_ids
        return self._text([id_ for id_ in ids if id_ not in hidden])

    def spell(self, id_: int) -> tuple[str, list[int]]:
        """The text of one token, and its bytes: it may be only a part of a character."""
        token = self._tokenizer.convert_ids_to_tokens(id_)
        text = self._text([id_])
        if not isinstance(token, str) or id_ in self._special_ids:
            return text, list(text.encode(errors="replace"))
        byte = BYTE_TOKEN.fullmatch(token)
        if byte is not None:
            return text, [int(byte[1], 16)]
        if self._has_byte_letters and all(letter in BYTES_OF_LETTERS for letter in token):
            return text, [BYTES_OF_LETTERS[letter] for letter in token]
        # Sentencepiece drops the space in front of a text's first word.
        if token.startswith(WORD_BEGIN) and not text.startswith(" "):
            text = f" {text}"
        return text, list(text.encode(errors="replace"))

    def stop_strings(self, request: Request) -> tuple[str, ...]:
        is_plain = request.prompt is None and not self._has_template
        return request.sampling.stop + (PLAIN_STOP if is_plain else ())

    def _text(self, ids: list[int]) -> str:
        # Calls the tokenizer's own library directly if it has one: this runs for every token.
        decode = self._backend.decode if self._backend is not None else self._tokenizer.decode
        text = decode(ids, skip_special_tokens=False)
        assert isinstance(text, str)
        return text

    def _ids(self, text: str, *, with_special: bool) -> list[int]:
        with self._lock:
            ids: list[int] = self._tokenizer(
                text, add_special_tokens=with_special, verbose=False
            ).input_ids
        return ids

    def _from_template(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        try:
            return self._render(messages, tools)
        except TemplateError as error:
            merged = _without_system(messages)
            if merged is None:
                raise InvalidInput(f"The model's chat template refuses this: {error}.") from error
        # Some models know no system role: its text is put before the user's first message.
        return self._from_template(merged, tools)

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        text = self._tokenizer.apply_chat_template(
            [self._break_special(message.as_dict()) for message in messages],
            tools=[tool.as_dict() for tool in tools] if self.has_tools and tools else None,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert isinstance(text, str)
        return text

    def _plain(self, messages: Sequence[Message]) -> str:
        lines = [
            f"{_PLAIN_NAMES[message.role]}: {self._break_special(message.content)}"
            for message in messages
        ]
        return "\n".join([*lines, f"{_PLAIN_NAMES[Role.ASSISTANT]}:"])

    def _break_special(self, value: Any) -> Any:
        """The same, with a space inside of each string that is a special token: no user may write
        one."""
        if isinstance(value, str):
            return self._special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", value)
        if isinstance(value, dict):
            return {key: self._break_special(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._break_special(item) for item in value]
        return value


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """The system message merged into the user's first; None if they are not the first two."""
    if len(messages) < 2 or messages[0].role != Role.SYSTEM or messages[1].role != Role.USER:
        return None
    content = f"{messages[0].content}\n\n{messages[1].content}"
    return [Message(role=Role.USER, content=content), *messages[2:]]


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    added = tokenizer.added_tokens_decoder.items()
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return dict(named) | {token.content: number for number, token in added if token.special}


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted((string for string in strings if len(string) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


# Whether a model computes the same with the slab as on its own.
#
# A model whose architecture does not use transformers' attention interface, or whose attention
# needs more than keys, values, a window and a soft cap (ALiBi, recurrent states), would answer,
# but wrongly. So a few tokens are run both ways when a model is loaded.

TOKENS: Final = 12
# The cosine of the two logits: .999 with four-bit rounding, below .9 with a wrong attention.
ALIKE: Final = 0.98
KNOWN_LAYERS: Final = frozenset({"full_attention", "sliding_attention"})


def adapt(model: PreTrainedModel, row_limit: int) -> Network:
    """The model with a slab, which has no room yet. Raises ConfigurationError if the model cannot
    work with one."""
    name = type(model).__name__
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if strange := kinds - KNOWN_LAYERS:
        raise _unsupported(name, f"it has layers of the kind {', '.join(sorted(strange))}")
    network = Network(model, Slab(row_limit))
    ids = [number * 7919 % network.vocabulary_tokens for number in range(1, TOKENS + 1)]
    try:
        expected = _alone(model, ids)
        attention.register()
        model.set_attn_implementation(SLUICE)
        if model.config.get_text_config()._attn_implementation != SLUICE:
            raise _unsupported(name, "its attention cannot be exchanged")
        actual = _over_slab(network, ids)
    except (TypeError, ValueError, AttributeError, KeyError, NotImplementedError) as error:
        raise _unsupported(name, str(error)) from error
    alike = torch.nn.functional.cosine_similarity(expected, actual, dim=0).item()
    if not alike >= ALIKE:
        raise _unsupported(name, f"its attention differs (similarity {alike:.3f})")
    return network


def _alone(model: PreTrainedModel, ids: list[int]) -> Tensor:
    if model.config._attn_implementation == SLUICE:
        model.set_attn_implementation("eager")
    with torch.inference_mode():
        logits: Tensor = model(torch.tensor([ids], device=model.device), use_cache=False).logits
    return logits[0, -1].float()


def _over_slab(network: Network, ids: list[int]) -> Tensor:
    """Two rows, read in pieces of different lengths; the last token of one is decoded."""
    network.slab.token_limit = 4 * TOKENS * TOKENS
    network.slab.reserve(2, TOKENS)
    middle = TOKENS // 3
    first = [
        PromptPiece(slot=1, start=0, ids=ids[1:]),
        PromptPiece(slot=0, start=0, ids=ids[:middle]),
    ]
    network.prefill(first, [False, False])
    network.prefill([PromptPiece(slot=0, start=middle, ids=ids[middle:-1])], [True])
    logits = network.decode([ids[-1], ids[0]], [TOKENS - 1, TOKENS - 1])
    return logits[0].float()


def _unsupported(name: str, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"Models of the architecture {name} cannot share a batch here: {reason}. Serve this one "
        "with another server, and name it as `ollama/...` or `openai/...`."
    )


# A request -> a row that can join the batch, or the reason why it cannot be served.
#
# What an earlier attempt generated becomes part of the row: the model continues it, and text that
# was shown is not shown again.


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """`window_reason` tells users why the window is not larger."""

    window_tokens: int
    window_reason: str
    vocabulary_tokens: int


class Intake:
    """Makes rows of requests. Thread-safe."""

    def __init__(self, prompts: Prompts, bounds: Bounds) -> None:
        self._prompts = prompts
        self._bounds = bounds
        self._ages = count()

    def row(self, request: Request, generation: Generation) -> SlabRow:
        """Raises InvalidInput."""
        prompt = self._prompts.encode(request)
        self._check(prompt)
        resume = request.resume or Resume()
        text = self._text(request)
        ids = list(resume.token_ids)
        pieces = [piece for token in ids if (piece := text.feed(token))]
        again = "".join(pieces)
        if not (resume.text.startswith(again) or again.startswith(resume.text)) or not ids:
            # The ids are of another model, or there are none: then the text is encoded.
            ids = self._prompts.encode_more(resume.text) if resume.text else []
            text = self._text(request)
            for token in ids:
                text.feed(token)
            pieces, again = [resume.text], resume.text
        tokens = prompt + ids
        room = self._bounds.window_tokens - len(prompt)
        return SlabRow(
            request=request,
            generation=generation,
            tokens=tokens,
            prompt_tokens=len(prompt),
            max_tokens=min(request.sampling.max_tokens, room),
            chooser=Chooser(request.sampling, tokens, len(prompt)),
            text=text,
            age=next(self._ages),
            pieces=pieces,
            spell=self._prompts.spell,
            logprobs=list(resume.logprobs),
            repeated_chars=max(0, len(resume.text) - len(again)),
        )

    def _text(self, request: Request) -> TextStream:
        decode = self._prompts.decode_with_calls if request.tools else self._prompts.decode
        return TextStream(decode, self._prompts.stop_strings(request))

    def _check(self, prompt: list[int]) -> None:
        """Refuse prompts that could end the process in the model (without tokens: SIGFPE)."""
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


class RollingBackend:
    """`on_fatal` is called from a model's thread when the device is broken, after all requests were
    handed back; the process should end."""

    def __init__(self, settings: Settings, *, on_fatal: Callable[[], None]) -> None:
        self._settings = settings
        self._on_fatal = on_fatal

    def generator(self, name: str) -> "RollingGenerator":
        """Load the model `hf/<name>` and start its thread. Raises ConfigurationError."""
        loaded = load_generator(name, self._settings)
        return RollingGenerator(HF.prefix + name, loaded, self._settings, self._on_fatal)

    def close(self) -> None:
        """Nothing to do: models share nothing."""


class RollingGenerator(TextGenerator):
    """A loaded model, and the thread that runs it."""

    def __init__(
        self,
        reference: str,
        loaded: LoadedGenerator,
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
            static=StaticDecode(network) if settings.generation_cuda_graphs else None,
        )
        self._loop = DecodeLoop(self._scheduler, on_fatal)

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
    """The limits of one request: those of the model, or of the memory."""
    slab_window = slab_tokens // COLUMNS_UNIT * COLUMNS_UNIT - 1
    if slab_window < 1:
        raise ConfigurationError(
            f"The keys and values of {slab_tokens} tokens fit into the memory that is left, and "
            f"at least {COLUMNS_UNIT} are needed. Raise SLUICE_GENERATION_KV_MIB or "
            "SLUICE_GENERATION_KV_FRACTION, or use a smaller model."
        )
    if slab_window < window_tokens:
        reason = f"memory bounds the window to {slab_window} (see SLUICE_GENERATION_KV_MIB)"
    else:
        reason = f"the model's window is {window_tokens}"
    return Bounds(
        window_tokens=min(window_tokens, slab_window),
        window_reason=reason,
        vocabulary_tokens=vocabulary_tokens,
    )
