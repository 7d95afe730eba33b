"""The generation engine on a GPU, at the shape of Llama 3 8B with random weights.

    python -m bench.gpu [--shape llama-3-8b] [--device cuda] [--precision bfloat16,nf4]

Needs torch, transformers and bitsandbytes, and this repository on PYTHONPATH; no network, no
server, no queue. The weights are made on the device and saved once (16 GB for the large shape;
`--folder` keeps them for the next run), then loaded the way that workers load models. For each
precision: seconds to load, memory of the weights, and tokens/s of `generate()` one at a time and
of the rolling engine at several batch sizes, with CUDA graphs and without. The limit by memory
bandwidth is what the card could do if a decode step read the weights once and did nothing else;
bandwidth is measured by copying. `--shape tiny --device cpu` runs all of it in seconds.
"""

import argparse
import gc
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.support.random_model import SHAPES, save_random_model
from shared.config import Settings
from workers.generation.backends.interface import Request, Sampling
from workers.generation.backends.rolling.generator import RollingGenerator
from workers.models.load import LoadedGenerator, load_generator

COPIES = 20
ALONE_REQUESTS = 3


@dataclass(frozen=True, kw_only=True)
class Work:
    """Each request has so many tokens of prompt, and generates so many."""

    prompt_tokens: int
    new_tokens: int
    batches: tuple[int, ...]
    rounds: int


def bandwidth_bytes_per_s(device: torch.device) -> float:
    """Of memory: what a copy reads and writes."""
    size = 2**30 if device.type == "cuda" else 2**27
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    _finish(device)
    started = time.perf_counter()
    for _ in range(COPIES):
        target.copy_(source)
    _finish(device)
    return 2 * size * COPIES / (time.perf_counter() - started)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def weight_bytes(model: torch.nn.Module) -> int:
    """What a decode step reads: all weights but the embeddings, of which it reads a few rows."""
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)
    }
    is_tied = any(
        id(module.weight) in embeddings
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    return sum(
        parameter.numel() * parameter.element_size()
        for parameter in model.parameters()
        if is_tied or id(parameter) not in embeddings
    )


def all_bytes(model: torch.nn.Module, device: torch.device) -> int:
    """Memory that the loaded model takes; on a GPU with the scales of quantized weights."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    held = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held)


def loaded_model(folder: Path, settings: Settings) -> tuple[LoadedGenerator, float]:
    started = time.perf_counter()
    loaded = load_generator(str(folder), settings)
    _finish(loaded.model.device)
    return loaded, time.perf_counter() - started


def alone_rate(loaded: LoadedGenerator, work: Work, prompts: Callable[[int], list[str]]) -> float:
    """Tokens/s of `generate()`, a request at a time."""
    model: Any = loaded.model

    def one(prompt: str) -> float:
        inputs = loaded.tokenizer(prompt, return_tensors="pt").to(loaded.model.device)
        started = time.perf_counter()
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=work.new_tokens, do_sample=False)
        _finish(loaded.model.device)
        return work.new_tokens / (time.perf_counter() - started)

    one(prompts(1)[0])
    return statistics.median(one(prompt) for prompt in prompts(ALONE_REQUESTS))


def rolling_rate(generator: RollingGenerator, work: Work, prompts: Sequence[str]) -> float:
    """Tokens/s from the first request to the last token, prompts included."""
    sampling = Sampling(max_tokens=work.new_tokens)
    started = time.perf_counter()
    running = [generator.start(Request(prompt=prompt, sampling=sampling)) for prompt in prompts]
    ended = [generation.result() for generation in running]
    seconds = time.perf_counter() - started
    tokens = sum(generation.completion_tokens for generation in ended)
    if tokens != work.new_tokens * len(prompts):
        raise RuntimeError(f"{tokens} tokens were generated, not {work.new_tokens} a request")
    return tokens / seconds


def measure(folder: Path, settings: Settings, work: Work, bandwidth: float) -> None:
    chance = random.Random(0)

    def prompts(count: int) -> list[str]:
        letters = "abcdefghijklmnopqrstuvwxyz "
        return ["".join(chance.choices(letters, k=work.prompt_tokens)) for _ in range(count)]

    loaded, seconds = loaded_model(folder, settings)
    device = loaded.model.device
    read = weight_bytes(loaded.model)
    steps_limit = bandwidth / read
    alone = alone_rate(loaded, work, prompts)
    print(
        f"\n{settings.generation_precision}: loaded in {seconds:.1f} s; memory "
        f"{all_bytes(loaded.model, device) / 2**30:.2f} GiB, of which a decode step reads "
        f"{read / 2**30:.2f} GiB: at most {steps_limit:.0f} steps/s\n"
        f"  generate(), one at a time: {alone:.1f} tokens/s = {alone / steps_limit:.2f} of the "
        "limit",
        flush=True,
    )
    for graphs in (False, True):
        chosen = settings.model_copy(update={"generation_cuda_graphs": graphs})
        generator = RollingGenerator("hf/random", loaded, chosen, _broken)
        try:
            for batch in work.batches:
                rolling_rate(generator, work, prompts(batch))  # shapes are made, graphs captured
                rates = [rolling_rate(generator, work, prompts(batch)) for _ in range(work.rounds)]
                rate = statistics.median(rates)
                print(
                    f"  rolling, {'CUDA graphs' if graphs else 'no graphs':11} batch {batch:3}: "
                    f"{rate:8.1f} tokens/s = {rate / alone:6.2f} x generate(), "
                    f"{rate / (steps_limit * batch):5.2f} of the limit",
                    flush=True,
                )
            counters = generator.counters
            if counters.out_of_memory or counters.preemptions:
                print(f"  memory was short: {counters}")
        finally:
            generator.close()
        del generator
        _free()


def _broken() -> None:
    print("the device is broken; see the log", flush=True)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def machine(device: torch.device) -> str:
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if device.type != "cuda":
        return f"{device}; {versions}"
    gpu: Any = torch.cuda.get_device_properties(device)
    return f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}; {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="bfloat16,nf4", help="separated by commas")
    parser.add_argument("--batches", default="1,8,32,64")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="keep the weights here, and take them if there")
    options = parser.parse_args()
    device = torch.device(options.device)
    work = Work(
        prompt_tokens=options.prompt_tokens,
        new_tokens=options.new_tokens,
        batches=tuple(map(int, options.batches.split(","))),
        rounds=options.rounds,
    )
    bandwidth = bandwidth_bytes_per_s(device)
    print(f"{machine(device)}; memory bandwidth {bandwidth / 1e9:.0f} GB/s by copying", flush=True)
    _free()
    with ExitStack() as stack:
        folder = options.folder or Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-bench-"))
        )
        if not (folder / "config.json").exists():
            started = time.perf_counter()
            parameters = save_random_model(folder, options.shape, device=str(device))
            print(
                f"{options.shape}: {parameters / 1e9:.2f}G parameters made and saved in "
                f"{time.perf_counter() - started:.1f} s",
                flush=True,
            )
        for precision in options.precision.split(","):
            _free()
            settings = Settings(
                _env_file=None,
                generation_precision=precision,
                generation_device=options.device,
                generation_batch_requests=max(work.batches),
            )
            measure(folder, settings, work, bandwidth)


if __name__ == "__main__":
    main()
