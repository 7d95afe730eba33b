"""How requests share the batch: memory, prefixes, order and the tokens of prompts."""

from typing import Any

import pytest

from shared.errors import ConfigurationError, InvalidInput
from tests.models import tiny
from tests.models.tiny import TEXTS, Reference, Stepped, asks, ids_of, rolling
from workers.generation.backends.interface import Generation, Request, Sampling
from workers.generation.backends.rolling.attention import SHORTEST_TOKENS, Prefixes, Slab
from workers.generation.backends.rolling.sampling import Chooser
from workers.generation.backends.rolling.scheduler import RollingBatch, SlabRow, shares
from workers.models.detokenize import TextStream

# Keys and values of a token take 2 KiB in this one: 1 MiB holds 512 tokens.
LARGE = {"num_key_value_heads": 4, "head_dim": 32}


def _tokens(prompt: str) -> list[int]:
    ids: list[int] = tiny.tokenizer()(prompt).input_ids
    return ids


def test_where_memory_is_short_the_youngest_make_way_and_nobody_fails() -> None:
    model = tiny.model(tiny.llama(**LARGE, max_position_embeddings=512))
    reference = Reference(model)
    prompts = [TEXTS[0], TEXTS[1], TEXTS[0] + TEXTS[1]]
    settings: dict[str, Any] = {"generation_kv_mib": 1, "generation_prefix_fraction": 0}
    with rolling(model, window_tokens=512, **settings) as generator:
        # Two have room for 255 tokens each, and one alone for 511.
        started = [generator.start(asks(prompt, 260)) for prompt in prompts]
        answers = [ids_of(generation) for generation in started]
        counters = generator.counters
    assert answers == [reference.greedy(_tokens(prompt), 260) for prompt in prompts]
    assert counters.preemptions > 0
    assert counters.largest_batch == 2


def test_memory_bounds_the_window_and_the_error_names_the_setting() -> None:
    model = tiny.model(tiny.llama(num_key_value_heads=4, head_dim=128))
    with rolling(model, generation_kv_mib=1, generation_prefix_fraction=0) as generator:
        assert generator.window_tokens == 127
        with pytest.raises(InvalidInput, match="SLUICE_GENERATION_KV_MIB"):
            generator.start(asks(TEXTS[0] * 12))
        assert generator.start(asks(TEXTS[0], 500)).result().completion_tokens < 127
    huge = tiny.model(tiny.llama(num_key_value_heads=4, head_dim=256))
    with (
        pytest.raises(ConfigurationError, match="SLUICE_GENERATION_KV_MIB"),
        rolling(huge, generation_kv_mib=1),
    ):
        pass


def test_a_common_beginning_is_read_once() -> None:
    system = TEXTS[0] * 4
    shared = len(_tokens(system))
    assert shared > SHORTEST_TOKENS
    prompts = [f"{system} question {n}" for n in range(6)]
    total = sum(len(_tokens(prompt)) for prompt in prompts)
    reference = Reference(tiny.tiny_llama())
    with rolling(generation_prefill_tokens=16) as generator:
        started = [generator.start(asks(prompt, 8)) for prompt in prompts]
        answers = [ids_of(generation) for generation in started]
        counters = generator.counters
        # Who comes second waits for the first, but not for its last few tokens.
        assert counters.prefix_tokens_reused > 5 * (shared - SHORTEST_TOKENS)
        assert counters.prefill_tokens + counters.prefix_tokens_reused == total
        # And again, when all that read it have ended.
        ids_of(generator.start(asks(f"{system} later", 8)))
        assert generator.counters.prefix_tokens_reused >= counters.prefix_tokens_reused + shared
    assert answers == [reference.greedy(_tokens(prompt), 8) for prompt in prompts]


def test_without_a_store_nothing_of_ended_requests_is_kept() -> None:
    with rolling(generation_prefix_fraction=0) as generator:
        for _ in range(2):
            ids_of(generator.start(asks(TEXTS[0] * 4, 4)))
        assert generator.counters.prefix_tokens_reused == 0


def test_lanes_and_fair_keys_decide_who_joins() -> None:
    model = tiny.model(tiny.llama())
    passes = Stepped(model)
    with rolling(model, generation_batch_requests=2, generation_prefix_fraction=0) as generator:
        first = [generator.start(asks(TEXTS[0], 220, fair_key="a")) for _ in range(2)]
        for generation in first:
            assert generation.read(10) is not None
        passes.hold()
        waiting = {
            "a": generator.start(asks(TEXTS[1], 4, fair_key="a")),
            "b": generator.start(asks(TEXTS[1], 4, fair_key="b")),
            "urgent": generator.start(asks(TEXTS[1], 4, fair_key="a", lane=0)),
        }
        first[0].cancel()
        order: list[str] = []
        while waiting:
            passes.step()
            for name, generation in list(waiting.items()):
                while generation.read(0) is not None:
                    pass
                if generation.is_over:
                    order.append(name)
                    del waiting[name]
        assert not first[1].is_over
        passes.release()
        first[1].cancel()
    assert order == ["urgent", "b", "a"]


def test_a_long_prompt_stalls_no_stream() -> None:
    """While a long prompt is read, a running row has a token for each piece of it."""
    model = tiny.model(tiny.llama())
    passes = Stepped(model)
    with rolling(model, generation_prefill_tokens=8, generation_prefix_fraction=0) as generator:
        running = generator.start(asks(TEXTS[1], 200))
        assert running.read(10) is not None
        passes.hold()
        before = generator.counters
        long = generator.start(asks(TEXTS[0] * 8, 1))
        passes.release()
        long.result()
        after = generator.counters
        running.cancel()
        read = after.prefill_tokens - before.prefill_tokens
        assert read == len(_tokens(TEXTS[0] * 8))
        assert after.decode_steps - before.decode_steps >= read // 8


def test_a_new_request_has_its_first_token_within_three_steps() -> None:
    model = tiny.model(tiny.llama())
    passes = Stepped(model)
    with rolling(model) as generator:
        crowd = [generator.start(asks(TEXTS[1], 200)) for _ in range(6)]
        for generation in crowd:
            assert generation.read(10) is not None
        passes.hold()
        new = generator.start(asks(TEXTS[0], 50))
        before = generator.counters.decode_steps
        while new.read(0) is None:
            passes.step()
        taken = generator.counters.decode_steps - before
        assert not any(generation.is_over for generation in crowd)
        passes.release()
        for generation in [*crowd, new]:
            generation.cancel()
    assert taken <= 3


def _row(age: int, tokens: int, filled: int = 0) -> SlabRow:
    return SlabRow(
        request=Request(prompt="x"),
        generation=Generation(),
        tokens=list(range(tokens)),
        prompt_tokens=tokens,
        max_tokens=10,
        chooser=Chooser(Sampling(), ()),
        spell=lambda _: ("", []),
        text=TextStream(lambda ids: "x" * len(ids)),
        age=age,
        pieces=[],
        repeated_chars=0,
        filled=filled,
    )


@pytest.mark.parametrize(
    ("lacking", "expected"),
    [
        ([], []),
        ([5], [5]),
        ([100], [16]),
        ([100, 3, 50], [8, 3, 5]),
        ([100, 50, 4], [8, 4, 4]),
        ([2, 100, 100], [2, 14, 0]),
        ([100, 1, 2], [13, 1, 2]),
    ],
)
def test_the_oldest_gets_half_and_the_shortest_the_rest(
    lacking: list[int], expected: list[int]
) -> None:
    rows = [_row(age, tokens) for age, tokens in enumerate(lacking)]
    shared = dict(shares(rows, 16))
    assert [shared.get(row, 0) for row in rows] == expected


def test_rows_keep_their_keys_and_values_however_they_move() -> None:
    import random

    import torch

    slab = Slab(8)
    slab.token_limit = 8 * 128
    slab.reserve(8, 20)
    batch = RollingBatch(slab)
    chooser = random.Random(4)
    alive: list[SlabRow] = []

    class Whole:
        """Writes a row's age into its columns, as a forward pass would."""

        def __init__(self, slots: list[int]) -> None:
            self.slots = torch.tensor(slots)

        def cells(self, _: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
            return self.slots, torch.zeros_like(self.slots)

        def visible(self, slab: torch.Tensor) -> torch.Tensor:
            return slab

    def write(row: SlabRow) -> None:
        slab.layout = Whole([batch.slot(row)])  # type: ignore[assignment]  # only writes
        state = torch.full((1, 2, 1, 4), float(row.age))
        slab.update(state, state, 0)
        row.filled = 1

    for age in range(300):
        action = chooser.random()
        if action < 0.5 and len(alive) < 8:
            row = _row(age + 1, 3)
            batch.join(row)
            alive.append(row)
            write(row)
        elif action < 0.75 and batch.prefilling:
            batch.promote(chooser.choice(batch.prefilling))
        elif alive:
            row = alive.pop(chooser.randrange(len(alive)))
            batch.remove(row)
        assert sorted(batch.slot(row) for row in alive) == list(range(len(alive)))
        for row in alive:
            keys, _ = slab.save(batch.slot(row), 1)[0]
            assert float(keys[0, 0, 0]) == row.age


def test_the_slab_changes_its_shape_within_its_budget() -> None:
    slab = Slab(8)
    slab.token_limit = 1024
    assert slab.reserve(1, 100)
    assert slab.reserve(3, 100)
    assert (slab.rows, slab.columns) == (4, 128)
    assert slab.reserve(2, 400)
    assert (slab.rows, slab.columns) == (2, 512)
    assert slab.reserve(8, 100)
    assert (slab.rows, slab.columns) == (8, 128)
    assert not slab.reserve(3, 400)
    assert not slab.fits(1, 1024)
    assert slab.fits(1, 1023)


def test_the_store_of_prefixes_drops_the_least_recently_used() -> None:
    prefixes = Prefixes(100)
    one, other, third = ([n] * 40 for n in (1, 2, 3))
    for prefix in (one, other):
        assert prefixes.is_new(prefix)
        prefixes.keep(prefix, ())
    assert not prefixes.is_new(one)
    assert prefixes.longest([*one, 9])[1] == 40
    prefixes.keep(third, ())
    assert prefixes.longest(other) == (None, 0)
    assert prefixes.longest(one)[1] == 40
    longer = [*one, 5, 6]
    prefixes.keep(longer, ())
    assert prefixes.longest([*longer, 7])[1] == 42
    assert not prefixes.is_new([4] * 101)
    assert not prefixes.is_new([4] * 20)


def test_a_large_request_is_not_passed_over_for_ever() -> None:
    model = tiny.model(tiny.llama(**LARGE))
    settings: dict[str, Any] = {"generation_kv_mib": 1, "generation_prefix_fraction": 0}
    with rolling(model, **settings) as generator:
        # Small ones that would fill the memory for as long as anybody lets them.
        small = [generator.start(asks(TEXTS[1][:30], 60)) for _ in range(60)]
        assert small[0].read(10) is not None
        large = generator.start(asks(TEXTS[0] * 9, 100))
        assert large.result().completion_tokens > 0
        done = sum(generation.read(0) is None and generation.is_over for generation in small)
        for generation in small:
            generation.result()
    assert done < 60
