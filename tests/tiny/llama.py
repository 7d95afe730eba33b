"""A tiny Llama of true architecture, trained to answer exactly what `tests/tiny_lessons.py` lists.

It has grouped-query attention, a byte-level BPE tokenizer of its own, and a ChatML template with
tools. Its answers are the same in fp32, in bf16 and in NF4, whatever stands before the question.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes.functional as quantization
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny_lessons import CHAT_TEMPLATE, QUESTIONS, Conversation, conversations, exams

END = "<|im_end|>"
PAD = "<|endoftext|>"
HEAD = "<|im_start|>assistant\n"
WINDOW_TOKENS = 2048
ATTEMPTS = 3
STEPS = 600
STEP_TOKENS = 1000
PER_ROW = 3
LEARNING_RATE = 4e-3
QUANTIZED_FROM = 150
EXAM_FROM = 200
EXAM_EVERY = 20
# How far the right token has to be ahead of the next one, so that rounding changes no answer.
MARGIN = 0.7
NF4_BLOCK = 64

Row = tuple[list[int], list[bool]]
"""Token ids, and which of them are the assistant's."""


def build(folder: Path) -> None:
    """Raises RuntimeError for a model that has not learnt its answers."""
    tokenizer = _make_tokenizer()
    for attempt in range(ATTEMPTS):
        model = _make_model(tokenizer, attempt)
        if _train(model, tokenizer, attempt):
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            return
    raise RuntimeError(f"the tiny model has not learnt its answers from {ATTEMPTS} beginnings")


def lessons() -> list[Conversation]:
    """The first of them: product code writes the prompts of `rag`."""
    return list(itertools.islice(conversations(0, PER_ROW), 60))


def _make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=WINDOW_TOKENS,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids(END),
        pad_token_id=tokenizer.convert_tokens_to_ids(PAD),  # type: ignore[arg-type]  # of one token
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _make_tokenizer() -> PreTrainedTokenizerFast:
    lessons = itertools.islice(conversations(1, per_row=3), 40)
    corpus = [
        text
        for messages, tools in lessons
        for text in [*(message["content"] for message in messages), json.dumps(tools)]
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1536,
        special_tokens=[PAD, "<|im_start|>", END],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator([*corpus, *[*QUESTIONS.values(), CHAT_TEMPLATE] * 5], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        model_max_length=WINDOW_TOKENS,
        chat_template=CHAT_TEMPLATE,
    )


def _train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, seed: int) -> bool:
    """Until the model passes its exam; returns whether it did."""
    batches = _batches(
        _encode(tokenizer, conversation) for conversation in conversations(seed, PER_ROW)
    )
    exam = sorted(
        (_encode(tokenizer, conversation) for conversation in exams(seed + 1)),
        key=lambda r: len(r[0]),
    )
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.01)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            # Up quickly, then slowly down: the last steps only settle what is known.
            group["lr"] = LEARNING_RATE * min((step + 1) / 10, max(0.1, 1 - step / 350))
        with _quantized(model, step >= QUANTIZED_FROM):
            logits, targets = _predictions(model, next(batches))
            losses = nn.functional.cross_entropy(logits, targets, reduction="none")
            # What is still wrong counts more than what is nearly sure.
            (losses * (0.5 + losses.detach().clamp(max=1.5))).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= EXAM_FROM and step % EXAM_EVERY == 0 and _passes(model, exam):
            return True
    return False


def _passes(model: LlamaForCausalLM, exam: Sequence[Row]) -> bool:
    """Whether every token of every answer is the likeliest by far, exactly and quantized."""
    for is_quantized in (True, False):
        with _quantized(model, is_quantized), torch.inference_mode():
            for start in range(0, len(exam), 18):
                logits, targets = _predictions(model, exam[start : start + 18])
                right = logits.gather(1, targets[:, None]).squeeze(1)
                others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
                if (right - others).min() < MARGIN:
                    return False
    return True


@contextmanager
def _quantized(model: LlamaForCausalLM, is_quantized: bool) -> Iterator[None]:
    """Meanwhile the weights have the values that NF4 leaves of them."""
    linears = [module for module in model.model.modules() if isinstance(module, nn.Linear)]
    exact = [linear.weight.data for linear in linears]
    if is_quantized:
        # The same values as bitsandbytes', but for its second quantization, of the scales; its
        # own code for the CPU takes as long as a whole step.
        flat = torch.cat([weight.flatten() for weight in exact]).view(-1, NF4_BLOCK)
        scales = flat.abs().amax(1, keepdim=True)
        codes = quantization.get_4bit_type("nf4", device="cpu").sort().values
        nearest = torch.bucketize(flat / scales, (codes[1:] + codes[:-1]) / 2)
        rounded = (codes[nearest] * scales).flatten().split([tensor.numel() for tensor in exact])
        for linear, values in zip(linears, rounded, strict=True):
            linear.weight.data = values.view_as(linear.weight)
    yield
    for linear, weight in zip(linears, exact, strict=True):
        linear.weight.data = weight


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Rows of all lengths together: sorted ones would need less padding, and learn slower."""
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if max(len(ids) for ids, _ in batch) * len(batch) >= STEP_TOKENS:
            yield batch
            batch = []


def _predictions(model: LlamaForCausalLM, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits before each of the assistant's tokens, and these tokens.

    Padding stands behind the rows, where causal attention does not look: no mask is needed.
    """
    ids = _padded([row[0] for row in rows])
    learnt = _padded([row[1] for row in rows]).bool()[:, 1:]
    states = model.model(input_ids=ids, use_cache=False).last_hidden_state
    return model.lm_head(states[:, :-1][learnt]), ids[:, 1:][learnt]


def _padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True)


def _encode(tokenizer: PreTrainedTokenizerFast, lesson: Conversation) -> Row:
    messages, tools = lesson
    text = tokenizer.apply_chat_template(
        messages,
        tools=tools or None,  # type: ignore[arg-type]  # a list of fewer types than it allows
        tokenize=False,
    )
    ids: list[int] = tokenizer(text)["input_ids"]
    head: list[int] = tokenizer(HEAD)["input_ids"]
    end: Any = tokenizer.convert_tokens_to_ids(END)
    learnt = [False] * len(ids)
    for start in range(len(ids)):
        if ids[start : start + len(head)] == head:
            first = start + len(head)
            stop = ids.index(end, first) + 1
            learnt[first:stop] = [True] * (stop - first)
    return ids, learnt
