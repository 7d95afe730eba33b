"""Tiny models of true architectures with random weights, and a tokenizer of English and Korean."""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TokenizersBackend,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from shared.config import Settings
from workers.generation.backends.interface import Request, Sampling
from workers.generation.backends.rolling.generator import RollingGenerator
from workers.models.load import LoadedGenerator

TEXTS = (
    "the quick brown fox jumps over the lazy dog and runs home before it rains",
    "안녕하세요 여러분 오늘은 날씨가 맑고 바람이 시원합니다 모델이 한국어로 답합니다",
    "<|user|>hello<|end|> <|assistant|>world<|end|>",
)
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


@cache
def trained() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<pad>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 4, trainer)
    return tokenizer


def tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> TokenizersBackend:
    return TokenizersBackend(
        tokenizer_object=trained(),
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"],
        chat_template=chat_template,
    )


def vocabulary() -> int:
    return trained().get_vocab_size()


def llama(**options: Any) -> LlamaConfig:
    shape = {**SHAPE, "num_key_value_heads": 2, "vocab_size": vocabulary()}
    return LlamaConfig(**{**shape, **options})


def model(config: PreTrainedConfig, kind: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """With weights that are large enough for texts to differ."""
    torch.manual_seed(5)
    made: PreTrainedModel
    made = kind(config) if kind else AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    made.eval()
    return made


@cache
def tiny_llama() -> PreTrainedModel:
    return model(llama())


class Scripted(LlamaForCausalLM):
    """Says `script` to any prompt; over and over, from the first token of the answer on."""

    script: Sequence[int] = ()
    prompt_tokens = 0

    def forward(self, *args: Any, **options: Any) -> Any:
        out = super().forward(*args, **options)
        keep = options.get("logits_to_keep", 0)
        positions = options.get("position_ids")
        if positions is None:
            ids = options["input_ids"] if "input_ids" in options else args[0]
            positions = torch.arange(ids.shape[1])[None]
        kept = positions[:, keep] if isinstance(keep, torch.Tensor) else positions[:, -keep:]
        script = torch.tensor(self.script)
        said = script[(kept - self.prompt_tokens + 1) % len(script)]
        out.logits = torch.nn.functional.one_hot(said, out.logits.shape[-1]).float()
        return out


class Flat(LlamaForCausalLM):
    """Finds every token as likely as any other."""

    def forward(self, *args: Any, **options: Any) -> Any:
        out = super().forward(*args, **options)
        out.logits = torch.ones_like(out.logits)
        return out


def scripted(script: Sequence[int], prompt: str = "hello") -> PreTrainedModel:
    made = model(llama(), Scripted)
    assert isinstance(made, Scripted)
    made.script = script
    made.prompt_tokens = len(tokenizer()(prompt).input_ids)
    return made


class Stepped:
    """Lets a model make its passes one at a time, so that what happens between two is certain."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._is_held = False
        self._may_go = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        model.register_forward_pre_hook(self._wait)

    def _wait(self, *_: object) -> None:
        if self._is_held:
            self._stands.release()
            self._may_go.acquire()

    def hold(self) -> None:
        """Returns when the model stands before its next pass."""
        self._is_held = True
        self._stands.acquire()

    def step(self) -> None:
        """One pass; returns when the model stands before the next."""
        self._may_go.release()
        self._stands.acquire()

    def release(self) -> None:
        self._is_held = False
        self._may_go.release()


class Reference:
    """The same model as transformers runs it, one request at a time."""

    def __init__(self, of: PreTrainedModel) -> None:
        self._model: Any = copy.deepcopy(of)
        if self._model.config._attn_implementation == "sluice":
            self._model.set_attn_implementation("eager")
        assert self._model.generation_config is not None
        self._model.generation_config.eos_token_id = None

    def greedy(self, prompt: Sequence[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        # Its own pad token would read as padding within prompts.
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
        ids_after: list[int] = out[0, len(prompt) :].tolist()
        return ids_after


@contextmanager
def rolling(
    of: PreTrainedModel | None = None,
    *,
    ends: frozenset[int] = frozenset(),
    chat_template: str | None = CHAT_TEMPLATE,
    on_fatal: Callable[[], None] = lambda: None,
    window_tokens: int = 256,
    **settings: Any,
) -> Iterator[RollingGenerator]:
    loaded = LoadedGenerator(
        model=of or tiny_llama(),
        tokenizer=tokenizer(chat_template),
        window_tokens=window_tokens,
        ends=ends,
        precision="float32",
    )
    generator = RollingGenerator("hf/tiny", loaded, Settings(_env_file=None, **settings), on_fatal)
    try:
        yield generator
    finally:
        generator.close()


def asks(prompt: str, tokens: int = 24, **options: Any) -> Request:
    sampling = {
        name: options.pop(name)
        for name in ("temperature", "top_p", "top_k", "stop", "seed", "repetition_penalty")
        if name in options
    }
    return Request(prompt=prompt, sampling=Sampling(max_tokens=tokens, **sampling), **options)


def control_id(of: PreTrainedTokenizerBase, control: str) -> int:
    """The number of one control token."""
    number = of.convert_tokens_to_ids(control)
    assert isinstance(number, int)
    return number


def ids_of(generation: Any) -> list[int]:
    return [token for delta in generation for token in delta.token_ids]
