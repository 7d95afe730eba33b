"""Descriptions of models: what is read, and which line is wrong."""

import math

import pytest

from shared.config import Settings
from shared.errors import InvalidInput
from shared.modelfiles.modelfile import (
    Description,
    definition_of,
    description_of,
    parameters_of,
    read_modelfile,
    values_of,
    write_modelfile,
)

WHOLE = '''
# For the helpdesk.
FROM llama3.2:3b

system """
You answer for the helpdesk.
# This is no comment, and "this" no end.
"""
TEMPLATE "{{ .System }}
{{ .Prompt }}"
PARAMETER temperature 0.2
PARAMETER num_ctx 4096
PARAMETER stop "<|end|> "
parameter stop END
PARAMETER penalize_newline false
'''


def test_a_whole_description() -> None:
    assert read_modelfile(WHOLE) == Description(
        from_="llama3.2:3b",
        system='\nYou answer for the helpdesk.\n# This is no comment, and "this" no end.\n',
        template="{{ .System }}\n{{ .Prompt }}",
        parameters={
            "temperature": 0.2,
            "num_ctx": 4096,
            "stop": ["<|end|> ", "END"],
            "penalize_newline": False,
        },
    )


def test_a_short_one() -> None:
    description = read_modelfile("FROM llama3.2\nSYSTEM You are 상냥한 helper.\r\n")
    assert description == Description(from_="llama3.2", system="You are 상냥한 helper.")
    assert read_modelfile('SYSTEM """One line."""').system == "One line."
    assert read_modelfile('SYSTEM ""').system == ""


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("FROM a\nFORM b", 2, "'FORM' is no instruction"),
        ("FROM a\n\nYou are nice.", 3, "triple quotes"),
        ("FROM a\nFROM b", 2, "FROM was given before"),
        ("FROM", 1, "FROM needs a value"),
        ("FROM ./model.gguf", 1, "names a file"),
        ("FROM a\nPARAMETER temperature", 2, "a name and a value"),
        ("PARAMETER top_k 1\nPARAMETER top_k 2", 2, "top_k was given before"),
        ('PARAMETER stop "a', 1, "not closed"),
        ('# one\nSYSTEM """\nnever\nclosed', 2, "not closed"),
        ('SYSTEM """\na\n""" b\n"""', 4, "text follows"),
        ("RENDERER x", 1, "RENDERER is not supported"),
        ("FROM a\nMESSAGE user", 2, "a role and a text"),
        ("message tool hi", 1, "system, user or assistant"),
        ("FROM a\nADAPTER", 2, "ADAPTER needs a value"),
    ],
)
def test_the_wrong_line_is_named(text: str, line: int, says: str) -> None:
    with pytest.raises(InvalidInput, match=f"line {line}: .*{says}"):
        read_modelfile(text)


def test_parameters_of_the_command_line() -> None:
    pairs = [("temperature", "0.2"), ("stop", "1"), ("stop", "x"), ("mirostat", "0"), ("a", "b c")]
    assert values_of(pairs) == {
        "temperature": 0.2, "stop": ["1", "x"], "mirostat": 0, "a": "b c",
    }  # fmt: skip


NAMED = """
FROM hf/owner/model
ADAPTER owner/lora
SYSTEM You answer for the helpdesk.
PARAMETER num_predict 64
PARAMETER repeat_penalty 1.1
PARAMETER num_gpu 1
PARAMETER stop \"\"\"
\"\"\"
MESSAGE system In Korean.
MESSAGE user When do you open?
MESSAGE assistant \"\"\"At nine.
Or ten.\"\"\"
LICENSE MIT
LICENSE "Apache 2.0"
"""
LIMIT_TOKENS = Settings(_env_file=None).max_tokens_limit


def test_a_description_becomes_a_named_model_and_can_be_written_again() -> None:
    made = definition_of("helpdesk:latest", read_modelfile(NAMED), None, LIMIT_TOKENS)
    assert (made.name, made.base) == ("helpdesk", "hf/owner/model+owner/lora")
    assert made.parameters == {"max_tokens": 64, "repetition_penalty": 1.1, "stop": ["\n"]}
    assert [message.content for message in made.preset.messages] == [
        "In Korean.", "When do you open?", "At nine.\nOr ten.",
    ]  # fmt: skip
    assert made.licenses == ("MIT", "Apache 2.0")
    written = write_modelfile(description_of(made))
    assert definition_of("helpdesk", read_modelfile(written), None, LIMIT_TOKENS) == made


def test_a_model_made_of_a_named_one_goes_on_with_its_preset() -> None:
    base = definition_of("helpdesk", read_modelfile(NAMED), None, LIMIT_TOKENS)
    text = "FROM helpdesk\nPARAMETER temperature 0.5\nSYSTEM Be brief."
    made = definition_of("team/short:v2", read_modelfile(text), base, LIMIT_TOKENS)
    assert made.base == base.base
    assert made.preset.system == "Be brief."
    assert made.preset.messages == base.preset.messages
    assert made.parameters == {**base.parameters, "temperature": 0.5}


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("FROM a\nPARAMETER min_p 0.5", 2, "min_p is not supported.* 0, which turns it off"),
        ("FROM a\nPARAMETER no_such 1", 2, "no_such is no option"),
        ("FROM a\nPARAMETER temperature 9", 2, "less than or equal to 2"),
        ("FROM a\nPARAMETER num_predict 1e9", 2, "SLUICE_MAX_TOKENS_LIMIT"),
        ("FROM a\nTEMPLATE {{ if .Prompt }}", 2, "without its {{ end }}"),
        ("FROM a\nADAPTER b", 2, "runs on another server"),
        ("\nFROM extractive", 2, "generates text"),
        ("FROM two words", 1, "is no model"),
        ("FROM a\nSYSTEM " + "x" * 100_001, 2, "at most 100000"),
    ],
)
def test_what_cannot_be_made_is_named_with_its_line(text: str, line: int, says: str) -> None:
    with pytest.raises(InvalidInput, match=f"line {line}: .*{says}"):
        definition_of("mine", read_modelfile(text), None, LIMIT_TOKENS)


@pytest.mark.parametrize(
    "name", ["", "hf/x", "ollama", "rag/handbook", "a b", "a/b/c/d", "x" * 300]
)
def test_a_name_is_not_what_stands_for_something_else(name: str) -> None:
    with pytest.raises(InvalidInput, match="is no name for a model of your own"):
        definition_of(name, Description(from_="a"), None, LIMIT_TOKENS)


def test_options_of_ollama_are_ours_or_are_refused_by_name() -> None:
    options = {
        "num_predict": -1, "seed": 7, "top_k": 40.0, "stop": "END", "num_ctx": 4096, "min_p": 0.0,
        "num_thread": 8, "temperature": None, "presence_penalty": 1.5, "frequency_penalty": 1.0,
    }  # fmt: skip
    assert parameters_of(options) == {
        "seed": 7, "top_k": 40, "stop": ["END"], "window_tokens": 4096, "presence_penalty": 1.5,
        "frequency_penalty": 1.0,
    }  # fmt: skip
    for name, value in {
        "typical_p": 0.7, "top_p": "high", "num_predict": 0, "x": 1, "num_ctx": math.inf,
        "seed": math.nan,
    }.items():  # fmt: skip
        with pytest.raises(InvalidInput, match=rf"^options\.{name} "):
            parameters_of({name: value})


def test_only_what_ends_a_line_in_files_ends_one() -> None:
    description = read_modelfile("FROM tiny\r\nSYSTEM one\x0ctwo\u2028three\rPARAMETER seed 5")
    assert description.system == "one\x0ctwo\u2028three"
    assert description.parameters == {"seed": 5}


@pytest.mark.parametrize("value", ["1e400", "nan", "inf", "1" * 5000, "１０２４", "1_000"])
def test_numbers_are_written_as_numbers(value: str) -> None:
    description = read_modelfile(f"FROM hf/a/b\nPARAMETER num_ctx {value}")
    with pytest.raises(InvalidInput, match="line 2: PARAMETER num_ctx "):
        definition_of("mine", description, None, LIMIT_TOKENS)


@pytest.mark.parametrize("adapter", ["./mine", "~/mine", "lora.gguf"])
def test_an_adapter_that_workers_cannot_load_is_refused(adapter: str) -> None:
    description = read_modelfile(f"FROM hf/a/b\nADAPTER {adapter}")
    with pytest.raises(InvalidInput, match=r"line 2: ADAPTER .* that workers can load"):
        definition_of("mine", description, None, LIMIT_TOKENS)
