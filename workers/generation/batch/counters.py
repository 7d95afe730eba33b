"""Figures of a model that runs here, for tests and for whoever watches it."""

from dataclasses import dataclass


@dataclass
class Counters:
    """What the loop has done so far. Written by its thread alone."""

    decode_steps: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    prefix_tokens_reused: int = 0
    preemptions: int = 0
    out_of_memory: int = 0
    largest_batch: int = 0
