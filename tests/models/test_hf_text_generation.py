"""Text generation: right word for word, in any company, cut where it should be and nowhere else."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from shared.errors import InvalidInput
from shared.kinds.hf import TASKS, Task, parse_parameters
from tests.models.hf_tasks import OPTIONS, outputs, warnings
from tests.tiny import gpt2
from tests.tiny_models import one_thread
from workers.hf.task import UNWATCHED, Row
from workers.hf.tasks import generation
from workers.hf.tasks.generation import TextGeneration

GENERATE = Task("text-generation")
PROMPTS = [*gpt2.CONTINUATIONS, "river", "The capital of Japan, a fox who lived near " * 3]
FOX = "Once upon a time"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def task() -> TextGeneration:
    return generation.load_text_generation(gpt2.folder(), OPTIONS)


def rows(task: TextGeneration, *prompts: str, **options: Any) -> list[Row]:
    parameters = parse_parameters(GENERATE, options)
    return [row for prompt in prompts for row in task.prepare(prompt, parameters).rows]


def new_texts(task: TextGeneration, prompt: str, **options: Any) -> list[str]:
    [output] = outputs(task, GENERATE, [prompt], return_full_text=False, **options)
    return [
        sequence["generated_text"]
        for sequence in (output if isinstance(output, list) else [output])
    ]


def test_texts_are_right(task: TextGeneration) -> None:
    answers = outputs(task, GENERATE, list(gpt2.CONTINUATIONS))
    full = [{"generated_text": start + rest} for start, rest in gpt2.CONTINUATIONS.items()]
    assert answers == full
    # As the API answers a single prompt.
    assert TASKS[GENERATE].alone(answers[0]) == [full[0]]
    new = outputs(task, GENERATE, list(gpt2.CONTINUATIONS), return_full_text=False)
    assert new == [{"generated_text": rest} for rest in gpt2.CONTINUATIONS.values()]


def test_texts_are_those_of_generate(task: TextGeneration) -> None:
    model = GPT2LMHeadModel.from_pretrained(gpt2.folder()).eval()
    for prompt in PROMPTS:
        tokens = task.tokenizer(prompt, return_tensors="pt")
        [ids] = model.generate(**tokens, max_new_tokens=20, pad_token_id=0)
        reference = task.tokenizer.decode(ids, skip_special_tokens=True)
        [output] = outputs(task, GENERATE, [prompt], max_new_tokens=20)
        assert output == {"generated_text": reference}


@pytest.mark.parametrize(
    "options",
    [{}, {"num_beams": 3}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2},
     {"min_new_tokens": 20}, {"stop": ["river", "e"]}],
)  # fmt: skip
def test_company_does_not_change_a_text(task: TextGeneration, options: dict[str, Any]) -> None:
    options = {"max_new_tokens": 20, **options}
    together = outputs(task, GENERATE, PROMPTS, **options)
    assert together == [outputs(task, GENERATE, [text], **options)[0] for text in PROMPTS]


def test_rows_of_any_length_share_a_batch_unless_a_rule_reads_the_padding(
    task: TextGeneration,
) -> None:
    assert len({row.group for row in rows(task, *PROMPTS, max_new_tokens=9)}) == 1
    apart = rows(task, *PROMPTS, max_new_tokens=9, no_repeat_ngram_size=2)
    assert len({row.group for row in apart}) == len({len(row.data.ids) for row in apart})
    unlike: list[dict[str, Any]] = [
        {}, {"max_new_tokens": 9}, {"stop": ["."]}, {"stop": [".."]}, {"num_beams": 2}
    ]  # fmt: skip
    other = [rows(task, "A", **options)[0].group for options in unlike]
    assert len(set(other)) == len(other)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["fox"], " there was a "),
        (["the", "there"], " "),  # The first one in the text, whichever that is.
        (["no such"], gpt2.CONTINUATIONS[FOX]),
        # One in the middle of tokens, one over many of them.
        (["lep"], " there was a fox who lived near the river. She s"),
        (["who lived near the r"], " there was a fox "),
        (["time"], gpt2.CONTINUATIONS[FOX]),  # The prompt may hold it.
        ([" "], ""),
    ],
)
def test_stop_strings_are_cut_off(task: TextGeneration, stop: list[str], expected: str) -> None:
    assert new_texts(task, FOX, stop=stop) == [expected]
    assert new_texts(task, FOX, stop=stop, num_beams=2) == [expected]


@pytest.mark.parametrize("beams", [1, 2])
def test_stop_strings_spare_tokens(task: TextGeneration, beams: int) -> None:
    options = {"stop": ["fox"], "min_new_tokens": 500, "max_new_tokens": 500, "num_beams": beams}
    calls = itertools.count()

    def watch() -> list[bool]:
        next(calls)
        return [False]

    task.run(rows(task, FOX, **options), watch)
    assert next(calls) < 60


def test_lengths_count_new_tokens_or_all(task: TextGeneration) -> None:
    prompts = {prompt: len(task.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS}
    for prompt, size in prompts.items():
        [[tokens]] = task.run(
            rows(task, prompt, max_length=size + 3, min_length=size + 3), UNWATCHED
        )
        assert len(tokens) == 3
        with pytest.raises(InvalidInput, match=f"max_length is {size}, and {size} tokens stand"):
            rows(task, prompt, max_length=size)
    [row] = rows(task, "A", max_new_tokens=7, max_length=1)
    assert row.data.arguments.new_tokens == 7
    # Nobody says anything.
    assert rows(task, "A")[0].data.arguments.new_tokens == 256


def test_a_prompt_that_leaves_little_room_is_kept_whole(task: TextGeneration) -> None:
    prompt = "fox " * 900
    size = len(task.tokenizer(prompt)["input_ids"])
    limit = 1024 - size + 5
    assert 800 < size < 1000
    [warning] = warnings(task, GENERATE, prompt, max_new_tokens=limit)
    assert warning.startswith(f"gets at most {limit - 5} new tokens rather than {limit}")
    [row] = rows(task, prompt, max_new_tokens=limit)
    assert len(row.data.ids) == size
    # The last position is used, and none behind it.
    room = {"min_new_tokens": limit - 5, "max_new_tokens": limit}
    [[tokens]] = task.run(rows(task, prompt, **room), UNWATCHED)
    assert len(tokens) == limit - 5


def test_a_prompt_that_is_too_long_loses_its_beginning(task: TextGeneration) -> None:
    long = "fox " * 2000 + FOX
    size = len(task.tokenizer(long, verbose=False)["input_ids"])
    [warning] = warnings(task, GENERATE, long, max_new_tokens=24)
    assert warning.startswith(f"was cut from {size:,} to 1,000 tokens")
    [row] = rows(task, long, max_new_tokens=24)
    assert str(task.tokenizer.decode(row.data.ids)).endswith("fox fox " + FOX)
    # An answer of any length leaves half of the window to the prompt.
    [row] = rows(task, long, max_new_tokens=5000)
    assert len(row.data.ids) == 512
    assert row.data.arguments.new_tokens == 512
    # What the model forgot is still the prompt.
    assert outputs(task, GENERATE, [long], max_new_tokens=2)[0]["generated_text"].startswith(long)


def test_truncate_keeps_the_last_tokens(task: TextGeneration) -> None:
    size = len(task.tokenizer(FOX)["input_ids"])
    assert new_texts(task, "river river " + FOX, truncate=size) == [gpt2.CONTINUATIONS[FOX]]
    [warning] = warnings(task, GENERATE, "river " + FOX, truncate=size)
    assert warning.endswith(f"to {size} tokens: its beginning was left out.")
    assert not warnings(task, GENERATE, FOX, truncate=size)


def test_a_cut_prompt_still_begins_as_its_tokenizer_begins(tmp_path: Path) -> None:
    """Llama's prompts begin with a token of their own; untrained, to look at the rows alone."""
    tokenizer = AutoTokenizer.from_pretrained(gpt2.folder())
    tokenizer.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    begin = {"SpecialToken": {"id": gpt2.END, "type_id": 0}}
    described["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [begin, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {gpt2.END: {"id": gpt2.END, "ids": [0], "tokens": [gpt2.END]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    task = generation.load_text_generation(tmp_path, OPTIONS)
    [row] = rows(task, "fox " * 100, max_new_tokens=4)
    assert row.data.ids[0] == 0
    assert len(row.data.ids) == 60
    assert 0 not in row.data.ids[1:]
    [output] = outputs(task, GENERATE, ["A"], max_new_tokens=4)
    assert output["generated_text"].startswith("A")


NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "typical_p": 1.0, "epsilon_cutoff": 0.0,
           "repetition_penalty": 1.0, "num_beams": None, "do_sample": None}  # fmt: skip


@pytest.mark.parametrize(
    "names",
    [
        *itertools.chain.from_iterable(
            itertools.combinations(("temperature", "top_p", "top_k", "typical_p"), n)
            for n in range(5)
        ),
        tuple(NEUTRAL),
        ("repetition_penalty",),
    ],
    ids="+".join,
)
def test_neutral_values_do_not_switch_sampling_on(
    task: TextGeneration, names: tuple[str, ...]
) -> None:
    options = {name: NEUTRAL[name] for name in names}
    for seed in ({}, {"seed": 3}):
        [row] = rows(task, FOX, **options, **seed)
        assert not row.data.arguments.is_sampled
        assert warnings(task, GENERATE, FOX, **options, **seed) == []
    # Who says so wants it all the same.
    assert rows(task, FOX, **options | {"do_sample": True})[0].data.arguments.is_sampled


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.7), ("temperature", 1.5), ("top_p", 0.9), ("top_k", 5), ("typical_p", 0.9),
     ("epsilon_cutoff", 0.1)],
)  # fmt: skip
def test_one_value_that_is_not_neutral_does(task: TextGeneration, name: str, value: float) -> None:
    assert rows(task, FOX, **NEUTRAL | {name: value})[0].data.arguments.is_sampled
    off = NEUTRAL | {name: value, "do_sample": False}
    assert not rows(task, FOX, **off)[0].data.arguments.is_sampled


def test_the_time_for_a_text_is_kept(task: TextGeneration) -> None:
    """No time at all is enough for one token: the clock is looked at behind each."""
    for time_s, count in ((0, 1), (3600, 9)):
        [row] = rows(task, FOX, max_time=time_s, min_new_tokens=9, max_new_tokens=9)
        [[tokens]] = task.run([row], UNWATCHED)
        assert len(tokens) == count


def test_what_is_sampled_depends_on_the_seed_alone(task: TextGeneration) -> None:
    # Who names a temperature wants to sample, as for text-generation-inference.
    options = {"temperature": 3.0, "max_new_tokens": 12, "seed": 3}
    state = torch.get_rng_state()
    together = outputs(task, GENERATE, PROMPTS, **options)
    assert together == [outputs(task, GENERATE, [text], **options)[0] for text in PROMPTS]
    assert together != outputs(task, GENERATE, PROMPTS, **options | {"seed": 4})
    unseeded = {tuple(new_texts(task, FOX, temperature=3.0)) for _ in range(12)}
    assert len(unseeded) > 1
    greedy = [gpt2.CONTINUATIONS[FOX]]
    assert new_texts(task, FOX, temperature=3.0, do_sample=False) == greedy
    assert new_texts(task, FOX, temperature=0, top_p=0.9) == greedy
    assert torch.equal(torch.get_rng_state(), state)


def test_many_sequences_of_a_prompt(task: TextGeneration) -> None:
    sampled = new_texts(task, FOX, num_return_sequences=3, do_sample=True, temperature=5.0, seed=1)
    assert len(set(sampled)) == 3
    beams = new_texts(task, FOX, num_return_sequences=2, num_beams=4)
    assert beams[0] == gpt2.CONTINUATIONS[FOX]
    assert len(set(beams)) == 2
    [output] = outputs(task, GENERATE, [FOX], num_return_sequences=2, num_beams=4)
    assert TASKS[GENERATE].alone(output) == output
    for options in ({}, {"num_beams": 2}, {"num_beams": 2, "do_sample": True}):
        with pytest.raises(InvalidInput, match="num_return_sequences 3 needs"):
            outputs(task, GENERATE, [FOX], num_return_sequences=3, **options)


def test_settings_of_the_configuration_hold(tmp_path: Path) -> None:
    """Also those that stand where older models have them; those that would fetch code do not."""
    model = GPT2LMHeadModel.from_pretrained(gpt2.folder())
    AutoTokenizer.from_pretrained(gpt2.folder()).save_pretrained(tmp_path)
    model.config.task_specific_params = {"text-generation": {"do_sample": True, "max_length": 50}}
    model.save_pretrained(tmp_path)
    said = {"eos_token_id": [0, 5], "penalty_alpha": 0.6, "top_k": 4, "max_length": 9,
            "prompt_lookup_num_tokens": 3, "repetition_penalty": 1.2}  # fmt: skip
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    task = generation.load_text_generation(tmp_path, OPTIONS)
    [row] = rows(task, "A")
    settings = row.data.arguments.settings
    assert settings == {
        "do_sample": True, "eos_token_id": [0, 5], "max_new_tokens": 49, "min_new_tokens": 0,
        "num_beams": 1, "num_return_sequences": 1, "pad_token_id": 0, "repetition_penalty": 1.2,
        "top_k": 4,
    }  # fmt: skip
    [[tokens]] = task.run([row], UNWATCHED)
    assert not {0, 5} & set(tokens)
    # A prompt that fills the configuration's length gets the usual one.
    assert rows(task, "fox " * 60)[0].data.arguments.new_tokens == 256


def test_characters_that_postgres_cannot_keep_are_replaced(task: TextGeneration) -> None:
    nul = task.tokenizer("\0")["input_ids"]
    prepared = task.prepare("A", parse_parameters(GENERATE, {}))
    output = task.finish(prepared, [[nul]], parse_parameters(GENERATE, {}))
    assert output == {"generated_text": "A\N{REPLACEMENT CHARACTER}"}


def test_a_prompt_that_nobody_waits_for_leaves_the_others_as_they_are(
    task: TextGeneration,
) -> None:
    batch = rows(task, *gpt2.CONTINUATIONS)
    calls = itertools.count()
    generated = task.run(batch, lambda: [next(calls) >= 2, *[False] * (len(batch) - 1)])
    new = [task.tokenizer.decode(tokens, skip_special_tokens=True) for [tokens] in generated]
    assert new[1:] == list(gpt2.CONTINUATIONS.values())[1:]
    assert new[0] not in gpt2.CONTINUATIONS.values()
