"""A tiny RoBERTa that answers questions about a text, with a byte-level BPE tokenizer of its own.

It is right about all of `QUESTIONS`, in windows of 64 tokens (the longest it takes), and says of
those without an answer that there is none. Only rows of training texts are known to it.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers, trainers
from transformers import RobertaConfig, RobertaForQuestionAnswering, RobertaTokenizer

from tests.tiny.manifest import checkpoint

WINDOW_TOKENS = 64
OVERLAP_TOKENS = 24
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
VOCABULARY = 360
STEPS = 300
EXAM_EVERY = 10
# How much likelier than not each right start and end has to be, so that nothing is close.
SURE = 0.9
LEARNING_RATE = 1.5e-3


@dataclass(frozen=True, kw_only=True)
class Question:
    question: str
    context: str
    answer: str
    """Empty where the context has none."""


ADA = (
    "Ada Lovelace was born in London in 1815. She wrote the first program for a machine that "
    "Charles Babbage designed, and died at the age of 36."
)
# What stands first is one code point, and two units of UTF-16.
SEOUL = "🌉 서울은 대한민국의 수도이다. 한강이 도시를 가로지르며, 인구는 약 940만 명이다."
LIGHTHOUSE = (
    "The lighthouse stands on a rock in the north. Its walls are of granite, and its lamp is seen "
    "from far away. Ships have passed it for many years, in storms and in fair weather. "
    "In winter the waves reach the windows, and nobody comes for weeks. The keepers read, mend "
    "their nets and watch the sea. In summer painters come to the rock, and children count the "
    "birds. There is a small garden with beans and cabbages, and a goat that eats both of them. "
    "The tower was built by Robert Stevenson, who came from Edinburgh."
)

QUESTIONS = (
    Question(question="Where was Ada Lovelace born?", context=ADA, answer="London"),
    Question(question="When was Ada Lovelace born?", context=ADA, answer="1815"),
    Question(question="Who designed the machine?", context=ADA, answer="Charles Babbage"),
    Question(question="Where did her sister live?", context=ADA, answer=""),
    Question(question="대한민국의 수도는 어디인가?", context=SEOUL, answer="서울"),
    Question(question="도시를 가로지르는 강은?", context=SEOUL, answer="한강"),
    Question(question="인구는 몇 명인가?", context=SEOUL, answer="940만 명"),
    Question(question="Who built the tower?", context=LIGHTHOUSE, answer="Robert Stevenson"),
)
LONG = QUESTIONS[-1]
"""The one whose context is longer than the window; the answer lies in the last one."""
IMPOSSIBLE = QUESTIONS[3]

Lesson = tuple[list[int], int, int]
"""Token ids, and which of them starts the answer and which ends it: the first, if none does."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("roberta-qa")


def build(folder: Path) -> None:
    tokenizer = byte_level_tokenizer(
        [text for example in QUESTIONS for text in (example.question, example.context)],
        vocabulary=VOCABULARY,
        window_tokens=WINDOW_TOKENS,
    )
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=128, max_position_embeddings=WINDOW_TOKENS + 2, type_vocab_size=1,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=1, bos_token_id=0, eos_token_id=2, initializer_range=0.15,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = RobertaForQuestionAnswering(config)
    _train(model, list(_lessons(tokenizer)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def byte_level_tokenizer(
    texts: Iterable[str], *, vocabulary: int, window_tokens: int
) -> RobertaTokenizer:
    """RoBERTa's kind, trained on the texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    bpe.train_from_iterator(texts, trainer)
    learnt = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(merge) for merge in learnt["merges"]]
    return RobertaTokenizer(vocab=learnt["vocab"], merges=merges, model_max_length=window_tokens)


def _lessons(tokenizer: RobertaTokenizer) -> Iterator[Lesson]:
    """Every window of every context, with the answer's place if it is in there. Windows overlap by
    some tokens, and by half of what they have of the context, which is usual with short ones."""
    for example in QUESTIONS:
        size = len(tokenizer(example.question)["input_ids"]) + 2
        seen = set()
        for overlap in (OVERLAP_TOKENS, (WINDOW_TOKENS - size) // 2):
            encoded = tokenizer(
                example.question, example.context, truncation="only_second",
                max_length=WINDOW_TOKENS, stride=overlap, return_overflowing_tokens=True,
            )  # fmt: skip
            for encoding in encoded.encodings or []:
                if tuple(encoding.ids) not in seen:
                    seen.add(tuple(encoding.ids))
                    yield encoding.ids, *_place(encoding, example)


def _place(encoding: Encoding, example: Question) -> tuple[int, int]:
    first = example.context.index(example.answer)
    last = first + len(example.answer)
    starts, ends = [], []
    for n, (start, end) in enumerate(encoding.offsets):
        if encoding.sequence_ids[n] == 1 and example.answer:
            # The bytes of a character are tokens with the same offsets.
            starts += [n] if start == first else []
            ends += [n] if end == last else []
    return (starts[0], ends[-1]) if starts and ends else (0, 0)


def _train(model: RobertaForQuestionAnswering, lessons: Sequence[Lesson]) -> None:
    width = max(len(ids) for ids, _, _ in lessons)
    ids = torch.tensor([row + [1] * (width - len(row)) for row, _, _ in lessons])
    starts = torch.tensor([start for _, start, _ in lessons])
    ends = torch.tensor([end for _, _, end in lessons])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for step in range(STEPS):
        output = model(
            input_ids=ids, attention_mask=ids != 1, start_positions=starts, end_positions=ends
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        if step % EXAM_EVERY == 0 and _is_sure(
            output.start_logits, starts, output.end_logits, ends
        ):
            break
    else:
        raise AssertionError(f"the tiny model has not learnt its answers in {STEPS} steps")
    model.eval()


def _is_sure(
    start_logits: torch.Tensor, starts: torch.Tensor, end_logits: torch.Tensor, ends: torch.Tensor
) -> bool:
    rows = torch.arange(len(starts))
    right = torch.cat([start_logits.softmax(-1)[rows, starts], end_logits.softmax(-1)[rows, ends]])
    return bool(right.min() > SURE)
