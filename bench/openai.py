"""OpenAI's API end to end, against what is behind it alone.

    python -m bench.openai [--rounds 3] [--tokens 128] [--threads 1] [--texts 1000] [--shape 90m]

A local stack (real API and workers) and the openai client, in turns with the same engine in this
process and no queue: 32 streams at once in tokens a second, the first token of a lone request, and
1,000 embeddings in one call and in 1,000 calls, against `SentenceTransformer.encode`. Prints
medians over the rounds; ratios are of pairs that ran after each other.
"""

import argparse
import asyncio
import platform
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
import torch
from openai import AsyncOpenAI, OpenAI
from sentence_transformers import SentenceTransformer

from bench.support.generate_sides import jobs
from bench.support.random_model import SHAPES, save_random_model
from bench.support.stack import running_stack
from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from workers.generation.backends.interface import Message, Request, Role, Sampling
from workers.generation.backends.rolling.generator import RollingBackend, RollingGenerator
from workers.models.load import LoadOptions, load_sentence_transformer
from workers.models.locate import locate

STREAMS = 32
LONE_REQUESTS = 9
LONE_TOKENS = 24
"""Of a lone request, so that its first token does not come with its end."""
CALLS_AT_ONCE = 32


class Pairs:
    """What both sides have taken, a pair a round."""

    def __init__(self, name: str, unit: str) -> None:
        self.name, self.unit = name, unit
        self.alone: list[float] = []
        self.wire: list[float] = []

    def measure(self, alone: Callable[[], float], wire: Callable[[], float]) -> None:
        self.alone.append(alone())
        self.wire.append(wire())

    def report(self) -> None:
        ratio = statistics.median(w / a for w, a in zip(self.wire, self.alone, strict=True))
        less = statistics.median(w - a for w, a in zip(self.wire, self.alone, strict=True))
        print(
            f"  {self.name:44}{statistics.median(self.alone):10.1f}"
            f"{statistics.median(self.wire):10.1f} {self.unit:9}{ratio:6.2f}{less:+9.1f}",
            flush=True,
        )


def _request(prompt: str, tokens: int) -> Request:
    message = Message(role=Role.USER, content=prompt)
    return Request(messages=(message,), sampling=Sampling(max_tokens=tokens))


class Engine:
    """The batch in this process."""

    def __init__(self, generator: RollingGenerator) -> None:
        self._generator = generator

    def tokens_per_s(self, prompts: Sequence[str], tokens: int) -> float:
        started = time.perf_counter()
        running = [self._generator.start(_request(prompt, tokens)) for prompt in prompts]
        readers = [threading.Thread(target=one.result) for one in running]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return len(prompts) * tokens / (time.perf_counter() - started)

    def first_token_ms(self, prompts: Sequence[str]) -> float:
        return statistics.median(self._first_ms(prompt) for prompt in prompts)

    def _first_ms(self, prompt: str) -> float:
        started = time.perf_counter()
        generation = self._generator.start(_request(prompt, LONE_TOKENS))
        generation.read()
        seconds = time.perf_counter() - started
        generation.result()
        return seconds * 1e3


class Wire:
    """The same by HTTP."""

    def __init__(self, url: str, model: str) -> None:
        self._base_url = f"{url}/openai/v1"
        self._model = model
        self._client = OpenAI(base_url=self._base_url, api_key="none", max_retries=0)

    def tokens_per_s(self, prompts: Sequence[str], tokens: int) -> float:
        async def read(client: AsyncOpenAI, prompt: str) -> int:
            chunks = await client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=tokens,
                stream=True,
                stream_options={"include_usage": True},
            )
            count = 0
            async for chunk in chunks:
                count = chunk.usage.completion_tokens if chunk.usage else count
            return count

        async def run() -> float:
            async with AsyncOpenAI(
                base_url=self._base_url, api_key="none", max_retries=0
            ) as client:
                started = time.perf_counter()
                counts = await asyncio.gather(*(read(client, prompt) for prompt in prompts))
                seconds = time.perf_counter() - started
            if set(counts) != {tokens}:
                raise RuntimeError(f"streams had {counts} tokens instead of {tokens}")
            return sum(counts) / seconds

        return asyncio.run(run())

    def first_token_ms(self, prompts: Sequence[str]) -> float:
        return statistics.median(self._first_ms(prompt) for prompt in prompts)

    def _first_ms(self, prompt: str) -> float:
        started = time.perf_counter()
        chunks = self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=LONE_TOKENS,
            stream=True,
        )
        first = None
        for chunk in chunks:
            if first is None and chunk.choices and chunk.choices[0].delta.content:
                first = time.perf_counter()
        if first is None:
            raise RuntimeError("no text came")
        return (first - started) * 1e3

    def embed_once(self, texts: Sequence[str]) -> float:
        started = time.perf_counter()
        answer = self._client.embeddings.create(model=DEFAULT_EMBEDDING_MODEL, input=list(texts))
        seconds = time.perf_counter() - started
        if len(answer.data) != len(texts):
            raise RuntimeError("vectors are missing")
        return len(texts) / seconds

    def embed_each(self, texts: Sequence[str]) -> float:
        async def run() -> float:
            room = asyncio.Semaphore(CALLS_AT_ONCE)
            async with AsyncOpenAI(
                base_url=self._base_url, api_key="none", max_retries=0
            ) as client:

                async def one(text: str) -> None:
                    async with room:
                        await client.embeddings.create(model=DEFAULT_EMBEDDING_MODEL, input=text)

                started = time.perf_counter()
                await asyncio.gather(*map(one, texts))
                return len(texts) / (time.perf_counter() - started)

        return asyncio.run(run())


class Encoder:
    """`SentenceTransformer.encode` in this process, as fast as it goes."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model

    def embed_once(self, texts: Sequence[str]) -> float:
        started = time.perf_counter()
        vectors = self._model.encode(list(texts), show_progress_bar=False)
        seconds = time.perf_counter() - started
        if not np.isfinite(vectors).all():
            raise RuntimeError("vectors are no numbers")
        return len(texts) / seconds

    def embed_each(self, texts: Sequence[str]) -> float:
        started = time.perf_counter()
        for text in texts:
            self._model.encode(text, show_progress_bar=False)
        return len(texts) / (time.perf_counter() - started)


def _encoder() -> Encoder:
    settings = Settings(_env_file=None)
    folder = locate(DEFAULT_EMBEDDING_MODEL, settings, task="feature-extraction")
    options = LoadOptions(device=torch.device("cpu"), dtype=torch.float32, trust_remote_code=False)
    return Encoder(load_sentence_transformer(folder, options, task="feature-extraction"))


def _texts(chance: random.Random, count: int) -> list[str]:
    words = "we open at nine and close when the last guest of the day has gone".split()  # noqa: SIM905
    return [" ".join(chance.choices(words, k=chance.randint(5, 40))) for _ in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--shape", choices=list(SHAPES), default="90m")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads",
        type=int,
        default=torch.get_num_threads(),
        help="of the engine; one less than there are cores leaves one for the rest",
    )
    parser.add_argument("--only", choices=["streams", "embeddings"])
    options = parser.parse_args()
    chance = random.Random(options.seed)
    torch.set_num_threads(options.threads)
    with ExitStack() as entered:
        folder = Path(entered.enter_context(tempfile.TemporaryDirectory()))
        model = folder / "model"
        save_random_model(model, options.shape)
        settings = Settings(
            _env_file=None, generation_precision="bfloat16", generation_batch_requests=STREAMS
        )
        generator = RollingBackend(settings, on_fatal=lambda: None).generator(str(model))
        entered.callback(generator.close)
        stack, _ = entered.enter_context(
            running_stack(
                SLUICE_GENERATION_MODEL=f"hf/{model}",
                SLUICE_GENERATION_PRECISION="bfloat16",
                SLUICE_GENERATION_BATCH_REQUESTS=str(STREAMS),
                SLUICE_GENERATION_THREADS=str(options.threads),
            )
        )
        engine, wire, encoder = Engine(generator), Wire(stack.api_url, f"hf/{model}"), _encoder()
        streams = Pairs(f"{STREAMS} streams of {options.tokens} tokens", "tokens/s")
        first = Pairs("first token of a lone request", "ms")
        once = Pairs(f"{options.texts} embeddings in one call", "texts/s")
        each = Pairs(f"{options.texts} embeddings in as many calls", "texts/s")

        def prompts(count: int) -> list[str]:
            return [job.prompt for job in jobs(chance, [1] * count)]

        for side in (engine, wire):  # models are loaded, memory is taken
            side.tokens_per_s(prompts(STREAMS), 8)
            side.first_token_ms(prompts(2))
        warm = _texts(chance, 64)
        encoder.embed_once(warm)
        wire.embed_once(warm)
        for number in range(1, options.rounds + 1):
            for_streams, lone = prompts(STREAMS), prompts(LONE_REQUESTS)
            texts = _texts(chance, options.texts)
            if options.only != "embeddings":
                streams.measure(
                    partial(engine.tokens_per_s, for_streams, options.tokens),
                    partial(wire.tokens_per_s, for_streams, options.tokens),
                )
                first.measure(
                    partial(engine.first_token_ms, lone),
                    partial(wire.first_token_ms, lone),
                )
            if options.only != "streams":
                once.measure(
                    partial(encoder.embed_once, texts),
                    partial(wire.embed_once, texts),
                )
                each.measure(
                    partial(encoder.embed_each, texts),
                    partial(wire.embed_each, texts),
                )
            print(f"round {number} of {options.rounds} done", flush=True)
        print(f"\n{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads")
        print(f"  {'':44}{'alone':>10}{'wire':>10} {'':9}{'ratio':>6}{'wire-alone':>11}")
        for pairs in (streams, first, once, each):
            if pairs.wire:
                pairs.report()


if __name__ == "__main__":
    main()
