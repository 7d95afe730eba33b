"""A tiny Whisper that writes down what `tests.tiny.voice` says, and when; what it hears in Korean it
can put into Latin letters. Its window is of four seconds.

The voice says a letter every 0.12 s and a letter is a token, so a token's place in the text is that
of its sound. Where the decoder has to look is taught with the letters: that takes seconds, and makes
the heads of alignment good ones.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import AddedToken, pre_tokenizers
from torch import nn
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from tests.tiny.voice import LETTER_S, LETTERS, speak

LATIN: Final = {"안": "A", "녕": "N", "물": "L"}
"""How the task `translate` writes Korean."""

PAUSE: Final = "   "
"""So much silence parts segments."""

RATE_HZ: Final = 16_000
WINDOW_S: Final = 4
CHUNK_S: Final = 3.6
"""In pieces of this length, every piece of a long recording begins with a letter's own time."""

POSITION_S: Final = 0.02
POSITIONS: Final = round(WINDOW_S / POSITION_S)
SLOT: Final = round(LETTER_S / POSITION_S)
SLOTS: Final = POSITIONS // SLOT
SPECIALS: Final = (
    "<|startoftranscript|> <|en|> <|ko|> <|translate|> <|transcribe|> <|startoflm|> "
    "<|startofprev|> <|nospeech|> <|notimestamps|>"
).split()
END: Final = "<|endoftext|>"
PROMPT: Final = 4
LENGTH_LIMIT: Final = 48
IGNORED: Final = -100
JITTER_S: Final = 0.01
INIT=0.1
HEADS=4
WEIGHT=4
ROWS: Final = 8
STEPS: Final = 400
RATE: Final = 2e-3
EXAM_ROWS: Final = 32
EXAM_FROM: Final = 100
EXAM_EVERY: Final = 20


def build(folder: Path) -> None:
    tokenizer = _tokenizer(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model(tokenizer)
        _train(model, tokenizer)
    model.save_pretrained(folder)
    _extractor().save_pretrained(folder)


def _tokenizer(folder: Path) -> Any:
    """Byte-level as Whisper's; each Korean letter's bytes are merged into one token."""
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = []
    for letter in LATIN:
        [(first, second, third)] = [
            piece
            for piece, _ in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(letter)
        ]
        merges += [(first, second), (first + second, third)]
        pieces += [piece for piece in (first + second, first + second + third)]
    pieces = list(dict.fromkeys(pieces))
    tokenizer = WhisperTokenizer(
        vocab={piece: n for n, piece in enumerate([*pieces, END])},
        merges=list(dict.fromkeys(merges)),
        model_max_length=LENGTH_LIMIT,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    times = [f"<|{n * POSITION_S:.2f}|>" for n in range(POSITIONS + 1)]
    tokenizer.add_tokens([AddedToken(time, normalized=False) for time in times])
    tokenizer.save_pretrained(folder)
    return tokenizer


def _extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=80, chunk_length=WINDOW_S, sampling_rate=RATE_HZ)


def _model(tokenizer: Any) -> WhisperForConditionalGeneration:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (END, *SPECIALS)}
    tokens = {
        "decoder_start_token_id": ids["<|startoftranscript|>"],
        "pad_token_id": ids[END],
        "bos_token_id": ids[END],
        "eos_token_id": ids[END],
    }
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_source_positions=POSITIONS,
        max_target_positions=LENGTH_LIMIT,
        begin_suppress_tokens=None,
        init_std=INIT,
        attn_implementation="eager",
        **tokens,
    )
    model = WhisperForConditionalGeneration(config)
    decoder = model.model.decoder
    first = ids["<|notimestamps|>"] + 1
    for k in range(SLOTS+1):
        decoder.embed_tokens.weight.data[first + SLOT*k] = decoder.embed_positions.weight.data[PROMPT - 1 + k]
    model.generation_config = GenerationConfig(
        max_length=LENGTH_LIMIT,
        no_timestamps_token_id=ids["<|notimestamps|>"],
        prev_sot_token_id=ids["<|startofprev|>"],
        is_multilingual=True,
        lang_to_id={name: ids[name] for name in ("<|en|>", "<|ko|>")},
        task_to_id={name: ids[f"<|{name}|>"] for name in ("transcribe", "translate")},
        forced_decoder_ids=[[1, None], [2, ids["<|transcribe|>"]]],
        alignment_heads=[[1, 0]],
        **tokens,
    )
    return model


@dataclass(frozen=True, kw_only=True)
class Lesson:
    samples: np.ndarray
    tokens: Sequence[int]
    """The prompt, the text, and its end."""


def _train(model: WhisperForConditionalGeneration, tokenizer: Any) -> None:
    """Raises RuntimeError for a model that has not learnt to listen."""
    global END_ID,SPACE_ID
    END_ID=tokenizer.convert_tokens_to_ids(END); [SPACE_ID]=tokenizer(" ",add_special_tokens=False)["input_ids"]
    generator = random.Random(0)
    exam = [_lesson(generator, tokenizer) for _ in range(EXAM_ROWS)]
    weights = torch.ones(len(tokenizer)); weights[END_ID:] = WEIGHT; weights[SPACE_ID]=WEIGHT/2
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 20, max(0.05, 1 - step / STEPS))
        logits, wanted, looks = _listen(model, [_lesson(generator, tokenizer) for _ in range(ROWS)])
        told = nn.functional.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), weights, ignore_index=IGNORED
        )
        (told - looks.log().mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= EXAM_FROM and step % EXAM_EVERY == 0:
            p=_passes(model, exam)
            print(step, told.item(), looks.mean().item(), p)
            if p==1: return
    raise RuntimeError(f"the tiny Whisper has not learnt its letters in {STEPS} steps")


def _passes(model: WhisperForConditionalGeneration, exam: Sequence[Lesson]) -> bool:
    with torch.inference_mode():
        logits, wanted, _ = _listen(model, exam)
    import collections
    ok=collections.Counter(); n=collections.Counter()
    for row,w in zip(logits.argmax(-1).tolist(),wanted.tolist()):
        for i,(a,b) in enumerate(zip(row,w)):
            if b==IGNORED: continue
            c="lang" if i==0 else "end" if b==END_ID else "space" if b==SPACE_ID else "time0" if i<4 else "time" if b>END_ID else "letter"
            n[c]+=1; ok[c]+= a==b
    print({c:(ok[c],n[c]) for c in n})
    return ((logits.argmax(-1) == wanted) | (wanted == IGNORED)).all(-1).float().mean().item()


def _listen(
    model: WhisperForConditionalGeneration, lessons: Sequence[Lesson]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The logits, the tokens that they should give, and how much of where it should look the head of
    alignment looks at."""
    features = _extractor()(
        [lesson.samples for lesson in lessons], sampling_rate=RATE_HZ, return_tensors="pt"
    )["input_features"]
    rows = [torch.tensor(lesson.tokens) for lesson in lessons]
    tokens = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    inputs = tokens[:, :-1].clamp(min=0)
    wanted = tokens[:, 1:].clone()
    # The language is told from the sound; the rest of the prompt is given.
    wanted[:, 1 : PROMPT - 1] = IGNORED
    outputs = model(input_features=features, decoder_input_ids=inputs, output_attentions=True)
    attention = outputs.cross_attentions[1][..., : SLOTS * SLOT]
    places = attention.unflatten(-1, (SLOTS, SLOT)).sum(-1)
    text = places[:, :, PROMPT - 1 :][:, :, : SLOTS - 3]
    heard = text[:, 0].diagonal(dim1=1, dim2=2)
    ahead = sum(text[:, 1].diagonal(offset=n, dim1=1, dim2=2)[:, :text.shape[2]] for n in (1, 2, 3))
    first = places[:, 0, :1, :2].sum(-1)
    return outputs.logits, wanted, torch.cat([heard, ahead, first], 1) + 1e-6


def _lesson(generator: random.Random, tokenizer: Any) -> Lesson:
    text = _text(generator)
    samples = np.zeros(WINDOW_S * RATE_HZ, np.float32)
    said = speak(text)
    at = round(generator.uniform(-JITTER_S, JITTER_S) * RATE_HZ)
    said = said[max(0, -at) : len(samples) - max(0, at)]
    samples[max(0, at) :][: len(said)] = said
    noise = np.random.default_rng(generator.getrandbits(32)).standard_normal(len(samples))
    samples += generator.choice([0, 1e-5, 1e-4, 1e-3]) * noise.astype(np.float32)
    language = "ko" if set(text) & set(LATIN) else "en"
    task = generator.choice(["transcribe", "translate"])
    written = text.translate(str.maketrans(LATIN)) if task == "translate" else text
    if generator.random() < 0.5:
        written = "<|notimestamps|>" + written
    else:
        written = _with_times(written)
    prompt = f"<|startoftranscript|><|{language}|><|{task}|>"
    tokens = tokenizer(prompt + written + END, add_special_tokens=False)["input_ids"]
    return Lesson(samples=samples, tokens=tokens)


def _text(generator: random.Random) -> str:
    """Words, pauses, and silence after them; a window may begin between two words."""
    size, text = round(SLOTS * generator.random() ** 0.5), " " * generator.randint(0, 1)
    letters = "".join(LATIN) if generator.random() < 0.3 else LETTERS[: -len(LATIN)]
    while len(text) < size:
        word = "".join(generator.choices(letters, k=generator.randint(1, 6)))
        text += word + (PAUSE if generator.random() < 0.2 else " ")
    return text[:size].rstrip()


def _with_times(text: str) -> str:
    """Of the three letters' silence between segments, two are the times that it begins and ends."""
    if not text:
        return _time(0)
    written, at = "", 0
    for segment in text.split(PAUSE):
        if written:
            written += _time(at)
            at += 1
            segment = " " + segment
        else:
            written += _time(0)
        written += segment
        at += len(segment)
        written += _time(at)
        at += 1
    return written


def _time(slot: int) -> str:
    return f"<|{slot * LETTER_S:.2f}|>"
