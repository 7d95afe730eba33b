"""What a step has to do of one job, and how far it is."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from shared.kinds.hf import HfInput, Task, TaskParameters, parse_parameters, single_inputs
from workers.attempts.context import Context
from workers.hf.task import LocalTask, Prepared

MISSING: Any = object()


@dataclass(kw_only=True)
class Part:
    """One input under way: its rows, and the outputs of those that are through."""

    prepared: Prepared
    outputs: list[Any]

    @property
    def is_through(self) -> bool:
        return all(output is not MISSING for output in self.outputs)


@dataclass(kw_only=True, eq=False)
class Work:
    """The inputs of one job. `before` are outputs that earlier steps of the job recorded.

    What a step leaves undone goes on in the next one: `rest()` is that step's payload, with the
    outputs of single rows of inputs that are not through.
    """

    context: Context
    task: Task
    inputs: Sequence[Any]
    many: bool
    parameters: TaskParameters
    before: dict[int, Any] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)
    parts: dict[int, Part] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    warnings_before: list[str] = field(default_factory=list)
    rows_before: dict[int, dict[int, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context, task: Task, job_input: HfInput) -> Self:
        """Raises InvalidInput for inputs and parameters that are not of the task."""
        inputs, many = single_inputs(task, job_input.inputs)
        rows = context.claim.payload.get("rows", {})
        return cls(
            context=context,
            task=task,
            inputs=inputs,
            many=many,
            parameters=parse_parameters(task, job_input.parameters),
            rows_before={int(n): {int(k): v for k, v in part.items()} for n, part in rows.items()},
        )

    def place(self, n: int) -> str:
        return f"inputs.{n}" if self.many else "inputs"

    def left(self) -> Iterable[int]:
        """The inputs that no step has begun or finished, in order."""
        return (
            n
            for n in range(len(self.inputs))
            if n not in self.before and n not in self.outputs and n not in self.parts
        )

    def begin(self, n: int, prepared: Prepared) -> Part:
        """Take up an input, with the outputs of its rows that an earlier step has kept."""
        kept = self.rows_before.get(n, {})
        outputs = [kept.get(k, MISSING) for k in range(len(prepared.rows))]
        self.parts[n] = Part(prepared=prepared, outputs=outputs)
        self.warnings += [f"{self.place(n)} {warning}" for warning in prepared.warnings]
        return self.parts[n]

    def finish(self, n: int, task: LocalTask) -> None:
        part = self.parts.pop(n)
        self.outputs[n] = task.finish(part.prepared, part.outputs, self.parameters)

    @property
    def done(self) -> int:
        return len(self.before) + len(self.outputs)

    @property
    def is_complete(self) -> bool:
        return self.done == len(self.inputs)

    @property
    def has_moved(self) -> bool:
        """Whether this step has anything to show for itself."""
        return bool(self.outputs) or any(
            output is not MISSING
            for n, part in self.parts.items()
            for k, output in enumerate(part.outputs)
            if k not in self.rows_before.get(n, {})
        )

    def rest(self) -> dict[str, Any]:
        rows = {n: dict(part) for n, part in self.rows_before.items() if n not in self.outputs}
        for n, part in self.parts.items():
            kept = {k: v for k, v in enumerate(part.outputs) if v is not MISSING}
            rows[n] = kept
        return {"rows": {str(n): {str(k): v for k, v in part.items()} for n, part in rows.items()}}

    def answer(self, task: LocalTask) -> Any:
        """What the API answers: a list for a list, else the only output as the task gives it."""
        outputs = self.before | self.outputs
        if self.many:
            return [outputs[n] for n in range(len(self.inputs))]
        return task.alone(outputs[0])


def as_json(value: Any) -> bytes:
    """Raises ValueError for numbers that JSON has not (a model that overflows gives NaN)."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
