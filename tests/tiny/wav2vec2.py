"""A tiny Wav2Vec2 with a CTC head that writes down what `tests.tiny.voice` says, letter by letter.

Its first layer begins as a bank of tones, which training would need minutes to find. Everything
else is learnt, frame by frame: the voice's own timing says what each frame holds.
"""

import itertools
import json
import random
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
)

from tests.tiny.manifest import checkpoint
from tests.tiny.voice import LETTER_S, LETTERS, LOWEST_HZ, STEP_HZ, length_s, letters, speak

ALPHABET: Final = LETTERS[:11]
RATE_HZ: Final = 16_000
FRAME_SAMPLES: Final = 320
KERNELS: Final = (160, 20)
STRIDES: Final = (16, 20)
CHANNELS: Final = 48
LOUD: Final = 0.08
QUIET: Final = 5e-5
"""How loud the first layer is. One norm over all of a channel would make noise as loud as a tone
where no tone of the channel is heard; so quiet, it stays below the norm's epsilon."""

TOKENS: Final = ["<pad>", "<s>", "</s>", "<unk>", "|", *ALPHABET]
BLANK: Final = 0
SPACE: Final = 4
LESSON_S: Final = 2.4
ROWS: Final = 5
RATE: Final = 4e-3
STEPS: Final = 240
EXAM_ROWS: Final = 60
EXAM_FROM: Final = 100
EXAM_EVERY: Final = 10


def folder() -> Path:
    """Of the checkpoint of `build`."""
    return checkpoint("wav2vec2")


def masked_folder() -> Path:
    """Of the checkpoint of `build_masked`."""
    return checkpoint("wav2vec2-masked")


def build(folder: Path) -> None:
    """Like wav2vec2-base: one norm over all of a channel, and no attention mask."""
    _build(folder, norm="group")


def build_masked(folder: Path) -> None:
    """Like wav2vec2-large-960h-lv60: a norm in each layer, and an attention mask."""
    _build(folder, norm="layer")


def _build(folder: Path, *, norm: str) -> None:
    is_masked = norm == "layer"
    config = Wav2Vec2Config(
        vocab_size=len(TOKENS),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=128,
        conv_dim=(CHANNELS, CHANNELS),
        conv_kernel=KERNELS,
        conv_stride=STRIDES,
        conv_bias=is_masked,
        feat_extract_norm=norm,
        do_stable_layer_norm=is_masked,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=0.0,
        final_dropout=0.0,
        layerdrop=0.0,
        mask_time_prob=0.0,
        pad_token_id=BLANK,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Wav2Vec2ForCTC(config)
        _tune(model, scale=LOUD if is_masked else QUIET)
        _train(model)
    model.save_pretrained(folder)
    Wav2Vec2FeatureExtractor(
        sampling_rate=RATE_HZ, do_normalize=True, return_attention_mask=is_masked
    ).save_pretrained(folder)
    vocabulary = folder / "vocab.json"
    vocabulary.write_text(json.dumps({token: n for n, token in enumerate(TOKENS)}))
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(folder)


def _tune(model: Wav2Vec2ForCTC, *, scale: float) -> None:
    """Each two channels in front hear one pitch, whatever its phase; then comes their mean."""
    model.freeze_feature_encoder()
    first, second = model.wav2vec2.feature_extractor.conv_layers
    times = torch.arange(KERNELS[0]) / RATE_HZ
    pitches = torch.linspace(LOWEST_HZ - STEP_HZ, LOWEST_HZ + STEP_HZ * 11, CHANNELS // 2)
    angles = 2 * torch.pi * pitches[:, None] * times
    waves = torch.stack([angles.sin(), angles.cos()], 1).flatten(0, 1)
    # torch types what a module holds as a tensor or a module.
    first.conv.weight.data = (  # type: ignore[union-attr]
        scale * (waves * torch.hann_window(KERNELS[0]))[:, None]
    )
    second.conv.weight.data = (  # type: ignore[union-attr]
        torch.eye(CHANNELS)[..., None].expand(-1, -1, KERNELS[1]) / KERNELS[1]
    )


def _train(model: Wav2Vec2ForCTC) -> None:
    """Raises RuntimeError for a model that has not learnt to listen."""
    generator = random.Random(0)
    exam = _lessons(generator, EXAM_ROWS)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        betas=(0.9, 0.99),
        weight_decay=0.01,
    )
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / 10, max(0.05, 1 - step / STEPS))
        sounds, targets = _lessons(generator, ROWS)
        logits = model(sounds).logits
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= EXAM_FROM and step % EXAM_EVERY == 0 and _passes(model, *exam):
            return
    raise RuntimeError(f"the tiny Wav2Vec2 has not learnt its letters in {STEPS} steps")


def _passes(model: Wav2Vec2ForCTC, sounds: torch.Tensor, targets: torch.Tensor) -> bool:
    model.eval()
    with torch.inference_mode():
        predicted = model(sounds).logits.argmax(-1)
    model.train()
    pairs = zip(predicted.tolist(), targets.tolist(), strict=True)
    return all(_heard(row) == _heard(right) for row, right in pairs)


def _heard(frames: list[int]) -> str:
    """Without what is repeated, and without spaces around the text, which tokenizers drop."""
    text = "".join(TOKENS[token] for token, _ in itertools.groupby(frames) if token != BLANK)
    return text.strip(TOKENS[SPACE])


def _lessons(generator: random.Random, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sounds as the feature extractor makes them, and the token of each frame."""
    lessons = [_lesson(generator) for _ in range(rows)]
    return torch.stack([sound for sound, _ in lessons]), torch.stack([row for _, row in lessons])


def _lesson(generator: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
    """Some words with noise and silence around them."""
    text, room_s = "", generator.uniform(0.3, LESSON_S - 0.8)
    while length_s(text) < room_s:
        text += "".join(generator.choices(ALPHABET, k=generator.randint(1, 5))) + " "
    start_s = generator.uniform(0, LESSON_S - length_s(text))
    sound = 10 ** generator.uniform(-4, -2) * np.random.default_rng(
        generator.getrandbits(32)
    ).standard_normal(round(LESSON_S * RATE_HZ))
    spoken = speak(text.strip())
    sound[round(start_s * RATE_HZ) :][: len(spoken)] += spoken
    normed = (sound - sound.mean()) / np.sqrt(sound.var() + 1e-7)
    return torch.from_numpy(normed.astype(np.float32)), _frames(text, start_s, len(sound))


def _frames(text: str, start_s: float, samples: int) -> torch.Tensor:
    """What each frame holds."""
    count = ((samples - KERNELS[0]) // STRIDES[0] + 1 - KERNELS[1]) // STRIDES[1] + 1
    reach = KERNELS[0] + STRIDES[0] * (KERNELS[1] - 1)
    middles = (torch.arange(count) * FRAME_SAMPLES + reach / 2) / RATE_HZ
    tokens = torch.full((count,), BLANK)
    last_s = start_s
    for letter, begin_s, end_s in letters(text, start_s):
        if begin_s - last_s > LETTER_S:
            tokens[(middles > last_s + 0.02) & (middles < begin_s - 0.02)] = SPACE
        tokens[(middles > begin_s) & (middles < end_s)] = TOKENS.index(letter)
        last_s = end_s
    return tokens
