"""`sluice hf`: what is printed for each task."""

from typing import Any

import pytest

from cli.commands.hf import NamedInputs, show_output
from cli.main import run
from shared.kinds.hf import TASKS, Task
from tests.integration.cli_process import document
from tests.integration.hf_cli import api as api
from tests.integration.hf_cli import state as state

Captured = pytest.CaptureFixture[str]

# What each task prints in a pipe.
PRINTED: list[tuple[Task, list[str], str]] = [
    (Task("summarization"), ["report.txt"], "Ann is here\n"),
    (Task("summarization"), ["a b c d", "report.txt"], "a b c\nAnn is here\n"),
    (Task("summarization"), ["--lines", "report.txt"], "Ann is here\nBob went to\n"),
    (Task("translation"), ["안녕 a"], "안녕 A\n"),
    (Task("text-generation"), ["go on"], "go on again again\n"),
    (
        Task("text-generation"),
        ["go", "-p", "num_return_sequences=2", "-p", "return_full_text=false"],
        " again again\n again again\n",
    ),
    (
        Task("question-answering"),
        ["Where?", "--context", "report.txt"],
        "Rome (1.00, from character 34)\n",
    ),
    (
        Task("question-answering"),
        ["Where?", "--context", "It is Rome", "-p", "top_k=2"],
        "1.0000\t6\t10\tRome\n0.5000\t3\t5\tis\n",
    ),
    (
        Task("question-answering"),
        ["Where?", "Who?", "--context", "Rome"],
        "Where?\t1.0000\t0\t4\tRome\nWho?\t1.0000\t0\t4\tRome\n",
    ),
    (Task("sentence-similarity"), ["a b", "a b", "c"], "1.0000\ta b\n0.0000\tc\n"),
    (
        Task("sentence-similarity"),
        ["good and here", "--sentence", "good", "--lines", "--sentence", "report.txt"],
        "0.3333\tgood\n0.6000\tAnn is here and good\n0.0000\tBob went to Rome\n",
    ),
    (Task("text-ranking"), ["a b", "b", "c"], "1.0000\t0\tb\n0.0000\t1\tc\n"),
    (Task("text-classification"), ["good"], "0.7500\tPOSITIVE\n0.2500\tNEGATIVE\n"),
    (
        Task("text-classification"),
        ["good", "bad", "-p", "top_k=1"],
        "good\t0.7500\tPOSITIVE\nbad\t0.7500\tNEGATIVE\n",
    ),
    (
        Task("zero-shot-classification"),
        ["on birds", "--labels", 'cars, birds,"cats, dogs"'],
        "1.0000\tbirds\n0.0000\tcars\n0.0000\tcats, dogs\n",
    ),
    (
        Task("token-classification"),
        ["report.txt"],
        "PER\t0.5000\t0\t3\tAnn\nPER\t0.5000\t22\t25\tBob\nPER\t0.5000\t34\t38\tRome\n",
    ),
    (Task("token-classification"), ["by Ann", "-p", "aggregation_strategy=none"],
     "PER\t0.5000\t3\t6\tAnn\n"),
    (
        Task("fill-mask"),
        ["a [MASK]", "-p", 'targets=["tree"]'],
        "1\t1.0000\ttree\ta tree\n",
    ),
    (
        Task("feature-extraction"),
        ["banana", "tree"],
        "banana\t5\t3.0000, 0.0000, 0.0000, 0.0000, …\n"
        "tree\t5\t0.0000, 2.0000, 0.0000, 0.0000, …\n",
    ),
    (Task("automatic-speech-recognition"), ["call.flac"], "100 bytes\n"),
    (
        Task("automatic-speech-recognition"),
        ["call.flac", "-p", "return_timestamps=true"],
        "100 bytes\n   0.00 s            100 bytes\n",
    ),
    (Task("image-classification"), ["call.flac"], "0.5000\t100 bytes\n0.2500\tcat\n"),
]  # fmt: skip


def test_every_task_is_printed() -> None:
    assert {task for task, _, _ in PRINTED} == set(Task)


@pytest.mark.parametrize(("task", "args", "printed"), PRINTED)
def test_output_for_a_person(task: Task, args: list[str], printed: str, capsys: Captured) -> None:
    assert run(["hf", task, *args]) == 0
    assert capsys.readouterr() == (printed, "")


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize("output", [{"new": 1}, [{"new": 1}], None, 3])
def test_an_output_of_an_unknown_shape_is_shown_as_json(
    task: Task, output: Any, capsys: Captured
) -> None:
    show_output(TASKS[task], NamedInputs(inputs="a", names=["a"]), output)
    assert document(capsys) == output
