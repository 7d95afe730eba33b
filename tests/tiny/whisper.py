"""A tiny Whisper that knows a word for each tone of `tests.tiny.voice`, when it was said, and what the
Korean ones are in English. Its window is of four seconds.

Where the decoder has to look is taught with the words: that is learnt within seconds, and makes
the heads of alignment good ones.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from tests.tiny.voice import LETTERS, tone

WORDS: Final = (
    "apple cat east hello ice long north old rain star tree 안녕 물 water".split()
)
ENGLISH: Final = {"안녕": "hello", "물": "water"}
"""What the Korean words are translated into."""

WORD_S: Final = 0.3
GAP_S: Final = 0.14
PAUSE_S: Final = 0.5
RATE_HZ: Final = 16_000
WINDOW_S: Final = 4
POSITIONS: Final = WINDOW_S * 50
POSITION_S: Final = 0.02
IGNORED: Final = -100
MERGES: Final = 28
SPECIALS: Final = (
    "<|endoftext|> <|startoftranscript|> <|en|> <|ko|> <|translate|> <|transcribe|> "
    "<|startoflm|> <|startofprev|> <|nospeech|> <|notimestamps|>"
).split()
LENGTH_LIMIT: Final = 64
TIME_SCALE: Final = 0.3
GUIDED: Final = 1.0
ROWS: Final = 8
STEPS: Final = 400
RATE: Final = 4e-3


def timed(text: str, start_s: float = 0) -> Iterator[tuple[str, float, float]]:
    """Each word of a text with its beginning and its end. Two spaces are a pause."""
    at = start_s
    for phrase in text.split("  "):
        for word in phrase.split():
            yield word, at, at + WORD_S
            at += WORD_S + GAP_S
        at += PAUSE_S


def say(text: str, rate: int = RATE_HZ) -> NDArray[np.float32]:
    words = list(timed(text))
    sound = np.zeros(round((words[-1][2] + GAP_S) * rate), np.float32)
    for word, start, _ in words:
        heard = tone(LETTERS[WORDS.index(word)], WORD_S, rate)
        sound[round(start * rate) :][: len(heard)] = heard
    return sound


def build(folder: Path) -> None:
    tokenizer = _tokenizer(folder)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIALS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model(len(tokenizer), ids)
        _train(model, tokenizer, ids)
    extractor().save_pretrained(folder)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=ids["<|startoftranscript|>"],
        pad_token_id=ids["<|endoftext|>"],
        eos_token_id=ids["<|endoftext|>"],
        bos_token_id=ids["<|endoftext|>"],
        max_length=LENGTH_LIMIT,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        is_multilingual=True,
        lang_to_id={name: ids[name] for name in ("<|en|>", "<|ko|>")},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")},
        forced_decoder_ids=[[1, None], [2, ids["<|transcribe|>"]]],
        alignment_heads=[[1, 0]],
    )
    model.save_pretrained(folder)


def extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S, sampling_rate=RATE_HZ)


def _tokenizer(folder: Path) -> WhisperTokenizer:
    """Byte-level BPE as Whisper's, of so few merges that most words are several tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + MERGES, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([f" {word}" for word in WORDS], trainer)
    learnt = json.loads(bpe.to_str())["model"]
    tokenizer = WhisperTokenizer(
        vocab={**learnt["vocab"], "<|endoftext|>": len(learnt["vocab"])},
        merges=[tuple(merge) for merge in learnt["merges"]],
        model_max_length=LENGTH_LIMIT,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIALS[1:])})
    times = [f"<|{n * POSITION_S:.2f}|>" for n in range(POSITIONS + 1)]
    tokenizer.add_tokens([AddedToken(time, normalized=False) for time in times])
    tokenizer.save_pretrained(folder)
    return tokenizer


def _model(tokens: int, ids: dict[str, int]) -> WhisperForConditionalGeneration:
    end = ids["<|endoftext|>"]
    config = WhisperConfig(
        vocab_size=tokens,
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=POSITIONS,
        max_target_positions=LENGTH_LIMIT,
        decoder_start_token_id=ids["<|startoftranscript|>"],
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        begin_suppress_tokens=None,
        init_std=0.05,
        attn_implementation="eager",
    )
    model = WhisperForConditionalGeneration(config)
    # A timestamp's token begins as the place that it stands for, as the encoder writes it.
    first = ids["<|notimestamps|>"] + 1
    places = model.model.encoder.embed_positions.weight.data
    table = model.model.decoder.embed_tokens.weight.data
    table[first : first + POSITIONS] = TIME_SCALE * places
    return model


@dataclass(frozen=True, kw_only=True)
class Lesson:
    sound: NDArray[np.float32]
    tokens: Sequence[int]
    """From the start of the transcript to the end of the text."""
    first_wanted: int
    """The prompt before it is given."""
    heard: Sequence[tuple[float, float] | None]
    """When each token was said; None where it says nothing."""


def _train(model: WhisperForConditionalGeneration, tokenizer: Any, ids: dict[str, int]) -> None:
    generator = random.Random(0)
    listen = extractor()
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )
    model.train()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 20, max(0.05, 1 - step / STEPS))
        lessons = [_lesson(generator, tokenizer, ids) for _ in range(ROWS)]
        loss, told, guided, right = _losses(model, listen, lessons, ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            print(step, told.item(), guided.item(), right)
    model.eval()


def _losses(model, listen, lessons, ids):
    features = listen(
        [lesson.sound for lesson in lessons], sampling_rate=RATE_HZ, return_tensors="pt"
    )["input_features"]
    width = max(len(lesson.tokens) for lesson in lessons)
    inputs = torch.full((len(lessons), width - 1), ids["<|endoftext|>"])
    wanted = torch.full((len(lessons), width - 1), IGNORED)
    now = torch.zeros(len(lessons), width - 1, POSITIONS)
    before = torch.zeros(len(lessons), width - 1, POSITIONS)
    for n, lesson in enumerate(lessons):
        count = len(lesson.tokens) - 1
        inputs[n, :count] = torch.tensor(lesson.tokens[:-1])
        wanted[n, lesson.first_wanted - 1 : count] = torch.tensor(lesson.tokens[lesson.first_wanted :])
        if lesson.first_wanted > 1:
            wanted[n, 0] = lesson.tokens[1]
        for t in range(count):
            for guide, span in ((before, lesson.heard[t]), (now, lesson.heard[t + 1])):
                if span is not None:
                    guide[n, t, round(span[0] * 50) : max(round(span[1] * 50), round(span[0]*50)+1)] = 1
    outputs = model(input_features=features, decoder_input_ids=inputs, output_attentions=True)
    told = nn.functional.cross_entropy(outputs.logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
    guided = _guided(outputs.cross_attentions[0][:, 0], before) + _guided(outputs.cross_attentions[1][:, 0], now)
    m = wanted != IGNORED
    right = (outputs.logits.argmax(-1) == wanted)[m].float().mean().item()
    return told + GUIDED * guided, told, guided, right


def _guided(attention: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
    is_guided = guide.any(-1)
    return -((attention * guide).sum(-1)[is_guided] + 1e-6).log().mean()


def _lesson(generator: random.Random, tokenizer: Any, ids: dict[str, int]) -> Lesson:
    """A window of some talk, which may begin and end in the middle of it."""
    words = generator.sample(WORDS, k=len(WORDS))
    count = generator.choice([0, 1, 2, 3, 4, 6, 8, 10])
    text, phrases = "", []
    for word in words[:count]:
        text += ("  " if generator.random() < 0.25 else " ") + word
    length_s = max((end for _, _, end in timed(text.strip())), default=0)
    start_s = generator.uniform(0, WINDOW_S - length_s) if length_s < WINDOW_S else generator.uniform(WINDOW_S - length_s, 0)
    if count == 10: start_s -= 0
    sound = np.random.default_rng(generator.getrandbits(32)).standard_normal(WINDOW_S * RATE_HZ)
    sound = (10 ** generator.uniform(-5, -3) * sound).astype(np.float32)
    if generator.random() < 0.5:
        sound[:] = 0
    spans = []
    if text:
        said = say(text.strip())
        at = round(start_s * RATE_HZ)
        said = said[max(0, -at) :][: len(sound) - max(0, at)]
        sound[max(0, at) :][: len(said)] += said
        for phrase in _phrases(text.strip(), start_s):
            inside = [(w, a, b) for w, a, b in phrase if a > -0.1 and b < WINDOW_S + 0.1]
            inside = [(w, max(0., a), min(b, WINDOW_S)) for w, a, b in inside]
            if inside:
                spans.append(inside)
    is_korean = any(word in ENGLISH for phrase in spans for word, _, _ in phrase)
    language = "<|ko|>" if is_korean else "<|en|>"
    is_translated = generator.random() < 0.3
    task = "<|translate|>" if is_translated else "<|transcribe|>"
    has_times = generator.random() < 0.5
    tokens = [ids["<|startoftranscript|>"], ids[language], ids[task]]
    heard = [None, None, None]
    if not has_times:
        tokens.append(ids["<|notimestamps|>"])
        heard.append(None)
    first = len(tokens)
    zero = ids["<|notimestamps|>"] + 1
    for phrase in spans:
        if has_times:
            n = round(phrase[0][1] / POSITION_S)
            tokens.append(zero + n)
            heard.append((max(0,phrase[0][1]-.04), phrase[0][1]+0.06))
        for word, a, b in phrase:
            written = ENGLISH.get(word, word) if is_translated else word
            new = tokenizer(f" {written}", add_special_tokens=False)["input_ids"]
            tokens += new
            heard += [(a, b)] * len(new)
        if has_times:
            n = round(phrase[-1][2] / POSITION_S)
            tokens.append(zero + n)
            heard.append((phrase[-1][2] - 0.06, min(WINDOW_S,phrase[-1][2]+.04)))
    tokens.append(ids["<|endoftext|>"])
    heard.append(None)
    return Lesson(sound=sound, tokens=tokens, first_wanted=first, heard=heard)


def _phrases(text: str, start_s: float):
    at = start_s
    for phrase in text.split("  "):
        spans = []
        for word in phrase.split():
            spans.append((word, at, at + WORD_S))
            at += WORD_S + GAP_S
        at += PAUSE_S
        yield spans
