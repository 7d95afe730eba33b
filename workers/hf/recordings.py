"""The step `ingest.transcribe`: what is said in a recording that a job ingests.

It loads and runs models as all tasks do (`workers/hf/steps.py`), one recording at a time, whose
parts share batches. A step that takes longer than SLUICE_HF_STEP_S keeps what it has and goes on in
another. What was heard is handed to a load step, which makes a document of it
(`workers/ingest/steps.py`).

The sweeper imports this for what becomes of a step that failed; so what loads models is imported
where it runs.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from shared import files
from shared.bounds import to_json
from shared.database.transaction import Transaction
from shared.documents import ingest_items
from shared.documents.ingest_items import Outcome
from shared.errors import DocumentError, InvalidInput, NotFound
from shared.hf.speech import SPEECH_RECOGNITION
from shared.kinds.hf import parse_parameters
from shared.kinds.ingest import SpeechOptions, speech_model
from workers.attempts.context import Context, Done, Handler, store_large
from workers.ingest.formats.loader import Utterance
from workers.ingest.sources import IngestRequest, read_item, source_name
from workers.ingest.steps import absorb_load, finish, load_step, transcribe_step

TASK: Final = SPEECH_RECOGNITION.name


def transcribe(context: Context) -> Done:
    claim, process = context.claim, context.process
    [ordinal] = claim.payload["ordinals"]
    with process.ledger.read() as session:
        options = IngestRequest.of_job(session, claim.job_id)
        todo = ingest_items.still_open(session, claim.job_id, [ordinal])
        uploads = files.of_sources(session, [item.source for item in todo])
    if not todo:
        return Done()
    [item] = todo
    name = source_name(item.source, uploads)
    own = options.of_source(item.source)
    try:
        raw = read_item(process, own, item, name, uploads)
        return _run(context, name, raw.data, own.options.speech or SpeechOptions())
    except (DocumentError, NotFound) as error:
        message = error.message

        def fail(transaction: Transaction) -> None:
            ingest_items.settle(transaction, claim.job_id, [ordinal], Outcome.FAILED, message)

        return Done(record=fail)


def _run(context: Context, name: str, data: bytes, speech: SpeechOptions) -> Done:
    """The load step, or a step like this one for what is left. Raises DocumentError."""
    from workers.hf.steps import Budget, batches, run_rows
    from workers.hf.task import models_of

    claim, settings = context.claim, context.process.settings
    [ordinal] = claim.payload["ordinals"]
    deadline = time.monotonic() + settings.hf_step_s
    parameters = parse_parameters(TASK, {"return_timestamps": True, "language": speech.language})
    model = models_of(context.process).ready(
        speech_model(speech, settings), TASK, check=context.check
    )
    try:
        prepared = model.prepare(data, parameters)
    except InvalidInput as error:
        message = error.message.replace("parameters.language", "speech.language")
        message = message.replace("parameters.return_timestamps: ", "")
        raise DocumentError(f"{name}: {message}") from error
    outputs: dict[int, Any] = {int(k): v for k, v in claim.payload.get("rows", {}).items()}
    left = [k for k in range(len(prepared.rows)) if k not in outputs]
    budget = Budget(settings.hf_batch_tokens)

    def watch() -> Sequence[bool]:
        context.check()
        return ()

    for batch in batches([prepared.rows[k] for k in left], budget, model.row_limit):
        context.check()
        places = [left[n] for n in batch]
        ran = run_rows(model, [prepared.rows[k] for k in places], watch, budget)
        for k, output in zip(places, ran, strict=True):
            if isinstance(output, Exception):
                raise output
            outputs[k] = output
        if len(outputs) < len(prepared.rows) and time.monotonic() > deadline:
            rows = {str(k): output for k, output in sorted(outputs.items())}
            return Done(children=[transcribe_step(ordinal, rows=rows)])
    in_order = [outputs[k] for k in range(len(prepared.rows))]
    utterances = list(_utterances(model.finish(prepared, in_order, parameters)))
    path = store_large(context, to_json(utterances).encode())
    transcript: dict[str, Any] = {"path": path} if path else {"utterances": utterances}
    return Done(
        children=[load_step([ordinal], transcript=transcript)], warnings=list(prepared.warnings)
    )


def _utterances(answer: dict[str, Any]) -> Iterator[Utterance]:
    """Of the task's output: segments of Whisper, words of models with a CTC head."""
    for chunk in answer["chunks"]:
        start_s, end_s = chunk["timestamp"]
        text = " ".join(chunk["text"].split())
        if text:
            yield Utterance(start_s=round(start_s, 3), end_s=round(end_s, 3), text=text)


TRANSCRIBE = Handler(run=transcribe, absorb=absorb_load, finish=finish)
