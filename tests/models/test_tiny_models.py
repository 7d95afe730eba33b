"""The tiny model that other tests rely on: exact in every precision, whatever stands in front."""

import random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tests.tiny_lessons import (
    GROUNDED,
    TOOL_ANSWER,
    TOOL_CALL,
    TOOL_QUESTION,
    TOOL_RESULT,
    Conversation,
    answered,
    call_text,
    calling,
    filler,
    grounded,
    user,
)
from tests.tiny_models import Answerer, one_thread

LOADING: dict[str, dict[str, Any]] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "nf4": {
        "dtype": torch.bfloat16,
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    },
}
CALCULATOR = {
    "type": "function",
    "function": {
        "name": "calculator",
        "description": "Evaluate an arithmetic expression such as (2 + 3) * 4.",
        "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
    },
}


def cases(questions: dict[str, str]) -> list[tuple[Conversation, str]]:
    chance = random.Random(7)
    lessons: list[tuple[Conversation, str]] = []
    for number, (question, answer) in enumerate(questions.items()):
        system = {"role": "system", "content": filler(chance) + filler(chance)}
        before = [system, user("Good morning!"), answered(filler(chance))]
        lessons += [(([*before[: number % 4], user(question)], []), answer)]
    for question, answer in GROUNDED.items():
        lessons += [((grounded(question, [filler(chance), filler(chance)]), []), answer)]
    result = {"role": "tool", "content": TOOL_RESULT}
    turn = [user(TOOL_QUESTION), calling(TOOL_CALL), result]
    return [
        *lessons,
        ((turn[:1], [CALCULATOR]), call_text(TOOL_CALL)),
        ((turn, [CALCULATOR]), TOOL_ANSWER),
    ]


@pytest.mark.parametrize("precision", LOADING)
def test_every_answer_is_exact(answerer: Answerer, precision: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(answerer.path)
    model: Any = AutoModelForCausalLM.from_pretrained(answerer.path, **LOADING[precision])
    wrong = []
    for (messages, tools), answer in cases(answerer.questions):
        prompt: Any = tokenizer.apply_chat_template(
            messages,
            tools=[*tools] or None,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        with one_thread():
            ids = model.generate(**prompt, max_new_tokens=150, do_sample=False)[0]
        text = tokenizer.decode(ids[prompt["input_ids"].shape[1] :], skip_special_tokens=True)
        if text != answer or ids[-1] != tokenizer.eos_token_id:
            wrong.append((messages, text))
    assert wrong == []


def test_some_answers_are_long_enough_to_be_interrupted(answerer: Answerer) -> None:
    tokenizer = AutoTokenizer.from_pretrained(answerer.path)
    lengths = [len(tokenizer(text)["input_ids"]) for text in answerer.questions.values()]
    assert sum(60 <= length <= 150 for length in lengths) >= 2
    assert min(lengths) < 5
