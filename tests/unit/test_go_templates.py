"""Templates of Ollama: conversations as its own server writes them, and what is wrong with one."""

import pytest

from shared.errors import InvalidInput
from shared.modelfiles.go_templates import LIMIT_STEPS, parse

SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
HELLO = {"role": "user", "content": "Hello, how are you?"}
FINE = {"role": "assistant", "content": "I'm doing great. How can I help you today?"}
SHOW = {"role": "user", "content": "I'd like to show off how chat templating works!"}
TALK = [SYSTEM, HELLO, FINE, SHOW]

CHATML = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
TURNS = """{{ if .System }}<|system|>{{ .System }}
{{ end }}{{ if .Prompt }}<|user|>{{ .Prompt }}
{{ end }}<|assistant|>{{ .Response }}<|end|>
"""
GEMMA = """{{- $system := "" }}
{{- range .Messages }}
{{- if eq .Role "system" }}
{{- if not $system }}{{ $system = .Content }}
{{- else }}{{ $system = printf "%s\\n\\n%s" $system .Content }}
{{- end }}
{{- continue }}
{{- else if eq .Role "user" }}<start_of_turn>user
{{- if $system }}
{{ $system }}
{{- $system = "" }}
{{- end }}
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{- end }}
{{ .Content }}<end_of_turn>
{{ end }}<start_of_turn>model
"""


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        (
            CHATML,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\nHello, how are you?<|im_end|>\n"
            "<|im_start|>assistant\nI'm doing great. How can I help you today?<|im_end|>\n"
            "<|im_start|>user\nI'd like to show off how chat templating works!<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            TURNS,
            "<|system|>You are a helpful assistant.\n<|user|>Hello, how are you?\n"
            "<|assistant|>I'm doing great. How can I help you today?<|end|>\n"
            "<|user|>I'd like to show off how chat templating works!\n<|assistant|>",
        ),
        (
            GEMMA,
            "<start_of_turn>user\nYou are a helpful assistant.\nHello, how are you?<end_of_turn>\n"
            "<start_of_turn>model\nI'm doing great. How can I help you today?<end_of_turn>\n"
            "<start_of_turn>user\nI'd like to show off how chat templating works!<end_of_turn>\n"
            "<start_of_turn>model\n",
        ),
        ("{{ .Prompt }}", "Hello, how are you?I'm doing great. How can I help you today?"
         "I'd like to show off how chat templating works!"),
        ("a {{- /* b }} \n */ -}} c", "a" "cI'm doing great. How can I help you today?ac"),
    ],
)  # fmt: skip
def test_a_conversation_is_written_as_ollama_writes_it(template: str, prompt: str) -> None:
    assert parse(template).render(TALK) == prompt


def test_the_language() -> None:
    text = """{{ $n := len .Messages }}{{ range $i, $m := .Messages -}}
{{ if and (gt $i 0) (lt $i (slice $.Messages 1 | len)) }}[{{ $i }} of {{ $n }}]
{{- $m.Role | printf "%q" }}
{{- else }}({{ index $.Messages $i | json }}){{ break }}{{ end }}{{ else }}none{{ end }}"""
    assert parse(text).render([]) == "none"
    assert parse(text).render([HELLO]).startswith('({"Role":"user","Content":"Hello, how are you?"')
    several = parse(
        "{{ with .System }}<{{ . }}>{{ end }}{{ range .Messages }}{{ len .Role }}{{ end }}"
    )
    assert several.render(TALK) == "<You are a helpful assistant.>6494"


def test_tools_are_written_as_json() -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "weather", "description": "Of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }  # fmt: skip
    call = {"id": "1", "function": {"name": "weather", "arguments": {"city": "Seoul"}}}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    template = parse(
        "{{ range .Tools }}{{ .Function.Name }} {{ .Function }}{{ end }}{{ range .Messages }}"
        "{{ range .ToolCalls }}|{{ .Function.Name }}{{ .Function.Arguments }}{{ end }}{{ end }}"
    )
    assert template.has_tools
    assert template.render([HELLO, asked], [tool]) == (
        'weather {"name":"weather","description":"Of a city.","parameters":{"type":"object",'
        '"properties":{"city":{"type":"string"}}}}|weather{"city":"Seoul"}'
    )
    assert not parse("{{ .Prompt }}").has_tools


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("{{ if .Prompt }}x", 1, "without its {{ end }}"),
        ("a\n\n{{ end }}", 3, "where nothing is open"),
        ("a\n{{ loud .Prompt }}", 2, "calls 'loud'; there are and"),
        ("{{/* \n */}}{{ .Prompt", 2, "{{ without }}"),
        ("{{ break }}", 1, "outside of a range"),
        ("{{ }}", 1, "empty action"),
        ("{{ if }}x{{ end }}", 1, "lacks a value"),
        ("{{ (.Prompt }}", 1, "not closed"),
        ("{{ .Prompt .System }}", 1, "as a function"),
        ('{{ define "a" }}{{ end }}', 1, "define, which is not supported"),
        ("{{ ? }}", 1, "cannot be read"),
        ("{{ if .A }}" * 100 + "{{ end }}" * 100, 1, "nested too deeply"),
        ("{{ (" + "(" * 100 + ".A" + ")" * 101 + " }}", 1, "nested too deeply"),
    ],
)
def test_the_wrong_line_is_named(text: str, line: int, says: str) -> None:
    with pytest.raises(InvalidInput, match=f"line {line}: .*{says}"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{{ range 1000000000 }}x{{ end }}{{ .Response }}", "which is too much"),
        (f"{{{{ range {LIMIT_STEPS} }}}}x{{{{ end }}}}{{{{ .Messages }}}}", "more than"),
        ("{{ $x }}{{ .Messages }}", "no variable"),
        ("{{ index .Messages 7 }}", "index fails"),
        ("{{ range .System }}{{ end }}{{ .Messages }}", "no list"),
    ],
)
def test_what_fails_while_it_is_written_says_so(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse(text).render(TALK)
