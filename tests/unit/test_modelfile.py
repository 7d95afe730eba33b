"""Descriptions of models: what is read, and which line is wrong."""

import pytest

from cli.commands.models import Description, parameters_of, read_modelfile
from sluice import InvalidInput

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
        ("ADAPTER ./lora", 1, "ADAPTER is not supported"),
        ("FROM a\nLICENSE MIT", 2, "LICENSE is not supported"),
        ("message user hi", 1, "MESSAGE is not supported"),
    ],
)
def test_the_wrong_line_is_named(text: str, line: int, says: str) -> None:
    with pytest.raises(InvalidInput, match=f"line {line}: .*{says}"):
        read_modelfile(text)


def test_parameters_of_the_command_line() -> None:
    pairs = [("temperature", "0.2"), ("stop", "1"), ("stop", "x"), ("mirostat", "0"), ("a", "b c")]
    assert parameters_of(pairs) == {
        "temperature": 0.2, "stop": ["1", "x"], "mirostat": 0, "a": "b c",
    }  # fmt: skip
