"""Templates of stored prompts: what is one, what its variables make of it, and what differs."""

import difflib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import prompts
from shared.errors import InvalidInput
from shared.prompts import (
    DIFF_LIMIT_LINES,
    RENDERED_LIMIT_CHARS,
    Variable,
    VersionedPrompt,
    content_of,
    difference,
    fill,
    parse,
    reference_of,
    render,
)

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def version(template: str, number: int = 1, **variables: Variable) -> VersionedPrompt:
    return VersionedPrompt(
        name="greeting",
        version=number,
        content=content_of(template, "", variables),
        current=1,
        latest=number,
        created_at=NOW,
    )


def test_variables_are_those_of_the_template_in_its_order() -> None:
    parsed = parse('{who}, {{"a": {count}}} {who} {_x9}')
    assert parsed.names == ("who", "count", "_x9")
    assert fill(parsed, {"who": "{Ada}", "count": "3", "_x9": ""}) == '{Ada}, {"a": 3} {Ada} '


@pytest.mark.parametrize(
    "template",
    ["{", "}", "a { b", "{}", "{0}", "{a.b}", "{a[0]}", "{a:>9}", "{a!r}", "{a b}", "{ a }", "{é}",
     "{" + "a" * 65 + "}", " ".join(f"{{v{n}}}" for n in range(101))],
)  # fmt: skip
def test_what_is_no_template_is_refused_with_what_to_do(template: str) -> None:
    with pytest.raises(InvalidInput, match=r"\{\{ and \}\}|may have 100"):
        parse(template)


@given(st.text(), st.text(alphabet="{}ab", max_size=20), st.text(max_size=20))
def test_values_are_text_whatever_is_in_them(question: str, value: str, context: str) -> None:
    """Filled in two rounds, as `rag` does it, or in one: it is the same."""
    stored = version("{{x}} {tone} {context}|{question}", tone=Variable(default="kind"))
    left = ("context", "question")
    later = render(stored, {"tone": value}, left=left)
    last = {"context": context, "question": question}
    assert fill(parse(later), last) == fill(parse(stored.content.template), {"tone": value, **last})


def test_defaults_stand_for_what_is_not_given() -> None:
    stored = version(
        "{a} {b} {c} {d}",
        b=Variable(default=2.5),
        c=Variable(default=True),
        d=Variable(default=""),
    )
    assert render(stored, {"a": 1}) == "1 2.5 true "
    assert render(stored, {"a": "x", "b": "y", "c": False}) == "x y false "


def test_what_is_missing_and_what_is_unknown_is_named() -> None:
    stored = version("{who} {tone}", who=Variable(description="whom to greet"))
    with pytest.raises(InvalidInput, match=r"greeting@1 needs who \(whom to greet\), tone"):
        render(stored, {})
    with pytest.raises(InvalidInput, match=r"no variable 'hwo'; its variables are: who, tone"):
        render(stored, {"hwo": "x", "tone": "y"})
    with pytest.raises(InvalidInput, match=r"has no \{context\}"):
        render(stored, {"who": "x", "tone": "y"}, left=("context", "question"))
    with pytest.raises(InvalidInput, match="`rag` fills it"):
        render(version("{context} {question}"), {"context": "x"}, left=("context", "question"))
    with pytest.raises(InvalidInput, match="empty"):
        render(version("{who}"), {"who": "  "})
    with pytest.raises(InvalidInput, match="does not have; its variables are: who"):
        content_of("{who}", "", {"whom": Variable()})


def test_no_template_fills_the_memory() -> None:
    """A value may be long and stand in many places: its length is known before the text is."""
    template = "{a}" * 30_000
    with pytest.raises(InvalidInput, match=f"longer than {RENDERED_LIMIT_CHARS:,}"):
        render(version(template), {"a": "x" * 100_000})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", ("a", None)), ("a.b-c_D@12", ("a.b-c_D", 12)), ("a@0", None), ("a@", None),
     ("a@01", None), ("@1", None), ("a b", None), ("a@1@2", None), ("a@9999999999", None),
     ("-a", None), ("a" * 64, None), ("a\n", None), ("a@١", None)],
)  # fmt: skip
def test_references(text: str, expected: tuple[str, int | None] | None) -> None:
    reference = reference_of(text)
    assert (reference and (reference.name, reference.version)) == expected


LINES = st.lists(st.sampled_from(["a", "b", "c", "", "@@ -1 +1 @@"]), max_size=30)


@given(LINES, LINES)
def test_a_difference_is_what_difflib_says(old: list[str], new: list[str]) -> None:
    before, after = "\n".join([*old, "."]), "\n".join([*new, "."])
    shown = difference(version(before), version(after, 2))
    expected = difflib.unified_diff(
        before.splitlines(), after.splitlines(), "greeting@1", "greeting@2", lineterm=""
    )
    assert patched(before.splitlines(), shown) == after.splitlines()
    assert bool(shown) == bool(list(expected))


def test_long_differences_are_told_in_one_piece_and_at_once() -> None:
    size = 20 * DIFF_LIMIT_LINES
    old = [f"{n % 7} old" for n in range(size)]
    new = [f"{n % 11}" for n in range(size)]
    head, tail = ["head"] * 9, ["tail"] * 9
    before, after = head + old + tail, head + new + tail
    shown = difference(version("\n".join(before)), version("\n".join(after), 2))
    assert patched(before, shown) == after
    assert shown.count("@@ ") == 1
    assert shown.count("\n head") == 3


def test_ends_of_lines_alone() -> None:
    assert "ends of lines" in difference(version("a\nb"), version("a\r\nb", 2))


def patched(before: list[str], diff: str) -> list[str]:
    """The lines after a unified diff, by the numbers of its hunks."""
    result, at = [], 0
    for line in diff.splitlines()[2:]:
        if line.startswith("@@"):
            first, _, length = line.split()[1][1:].partition(",")
            start = int(first) - (1 if length != "0" else 0)
            result += before[at:start]
            at = start
        elif line.startswith("+"):
            result.append(line[1:])
        else:
            assert before[at] == line[1:]
            at += 1
            if line.startswith(" "):
                result.append(line[1:])
    return result + before[at:]


def test_the_rule_for_names_is_that_of_references() -> None:
    assert prompts.PROMPT_NAME.strip("^$") in prompts._REFERENCE.pattern
