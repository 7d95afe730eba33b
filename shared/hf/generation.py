"""Tasks that write texts: summarization, translation, text generation.

Parameters of generation are those of transformers' `GenerationConfig`; `None` leaves what the
model's own configuration says.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.bounds import Count, FullLine, Line, Natural
from shared.errors import InvalidInput
from shared.hf.task import (
    CallArguments,
    Checkpoints,
    HfTask,
    HubCall,
    Only,
    ParameterValues,
    TaskParameters,
    TextInput,
    TextOutput,
    as_a_list,
    check_single,
    in_a_list,
)

Truncation = Literal["do_not_truncate", "longest_first", "only_first", "only_second"]


class GenerationParameters(TaskParameters):
    """What a caller may ask of `generate`; `max_new_tokens` goes before `max_length`. After
    `max_time` seconds of generating, the text ends where it is."""

    max_length: Annotated[int, Field(ge=1, le=32_768)] | None = None
    min_length: Annotated[int, Field(ge=0, le=32_768)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1, le=32_768)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0, le=32_768)] | None = None
    num_beams: Annotated[int, Field(ge=1, le=64)] | None = None
    do_sample: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_k: Count | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    epsilon_cutoff: Annotated[float, Field(ge=0, lt=1)] | None = None
    eta_cutoff: Annotated[float, Field(ge=0, lt=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] | None = None
    no_repeat_ngram_size: Count | None = None
    early_stopping: bool | Literal["never"] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_time: Annotated[float, Field(ge=0, le=86_400)] | None = None
    num_beam_groups: Annotated[int | None, Only(1)] = None
    penalty_alpha: Annotated[float | None, Only(0)] = None
    use_cache: bool | None = None


class Seq2SeqParameters(GenerationParameters):
    """`truncation: do_not_truncate` makes a text that is too long an error."""

    clean_up_tokenization_spaces: bool | None = None
    truncation: Truncation | None = None
    generate_parameters: GenerationParameters | None = None


class TranslationParameters(Seq2SeqParameters):
    src_lang: Line | None = None
    tgt_lang: Line | None = None


class TextGenerationParameters(GenerationParameters):
    """With those of text-generation-inference: what clients of it send without being asked to is
    taken, as is `stop_sequences` for `stop`; what only that server can do is refused."""

    return_full_text: bool = True
    stop: Annotated[list[FullLine], Field(fail_fast=True, max_length=16)] = Field(default=[])
    truncate: Natural | None = None
    watermark: Annotated[bool | None, Only(False)] = None
    details: Annotated[bool | None, Only(False)] = None
    decoder_input_details: Annotated[bool | None, Only(False)] = None
    stream: Annotated[bool | None, Only(False)] = None
    best_of: Annotated[int | None, Only(1)] = None
    top_n_tokens: Annotated[int | None, Only(0)] = None
    frequency_penalty: Annotated[float | None, Only(0)] = None
    grammar: Annotated[Any, Only()] = None
    adapter_id: Annotated[Any, Only()] = None
    num_return_sequences: Annotated[int, Field(ge=1, le=64)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _stop_by_its_other_name(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "stop_sequences" not in values:
            return values
        others = {name: value for name, value in values.items() if name != "stop_sequences"}
        if values.get("stop"):
            raise ValueError("give stop or stop_sequences, not both")
        return others | {"stop": values["stop_sequences"] or []}


# Which models of an encoder and a decoder write what

_SEQ2SEQ = "ForConditionalGeneration"
_TASKS = ("summarization", "translation")
_TRANSLATORS = frozenset({"MBart", "M2M100", "NllbMoe", "FSMT", "Marian"})
_SUMMARIZERS = frozenset(
    {"Bart", "Pegasus", "PegasusX", "BigBirdPegasus", "LED", "ProphetNet", "Mvp"}
)
_BOTH = frozenset({"T5", "MT5", "LongT5", "UMT5", "SwitchTransformers", "T5Gemma"})
"""What the families of `...ForConditionalGeneration` are trained for, where nothing else tells."""


def _rank(task: str) -> Callable[[str, Mapping[str, Any]], int | None]:
    usual = _BOTH | (_SUMMARIZERS if task == "summarization" else _TRANSLATORS)

    def rank(architecture: str, config: Mapping[str, Any]) -> int | None:
        if not architecture.endswith(_SEQ2SEQ):
            return 0
        family = architecture.removesuffix(_SEQ2SEQ)
        if family not in _BOTH | _SUMMARIZERS | _TRANSLATORS:
            return None
        described = config.get("task_specific_params")
        names = [str(name) for name in described] if isinstance(described, dict) else []
        of_tasks = [name for name in names if name.startswith(_TASKS)]
        for n, name in enumerate(of_tasks):
            if name.startswith(task):
                return n
        # A text-to-text model may do more than its parameters name.
        is_usual = family in usual and (not of_tasks or family in _BOTH)
        return len(of_tasks) if is_usual else None

    return rank


def _generation_apart(value: Any, parameters: ParameterValues) -> CallArguments:
    """The API has a field of its own for the parameters of generation."""
    of_generation = GenerationParameters.model_fields.keys()
    others = {name: value for name, value in parameters.items() if name not in of_generation}
    inner = {name: value for name, value in parameters.items() if name in of_generation}
    inner |= others.pop("generate_parameters", {})
    return (value,), {**others, "generate_parameters": inner} if inner else others


def _with_both_languages(value: Any, parameters: ParameterValues) -> CallArguments:
    if ("src_lang" in parameters) != ("tgt_lang" in parameters):
        raise InvalidInput("The hub takes src_lang and tgt_lang together; give both or neither.")
    return _generation_apart(value, parameters)


def _generated(answer: Any, _value: Any, _parameters: ParameterValues) -> Any:
    """A list, of which several were asked for where there are several."""
    return answer[0] if isinstance(answer, list) and len(answer) == 1 else answer


SUMMARIZATION = HfTask(
    name="summarization",
    default_model="facebook/bart-large-cnn",
    input=TextInput(),
    parameters=Seq2SeqParameters,
    output=TextOutput(field="summary_text"),
    load="workers.hf.tasks.generation:load_summarization",
    checkpoints=Checkpoints(
        architectures=[_SEQ2SEQ, "T5WithLMHeadModel", "EncoderDecoderModel"],
        rank=_rank("summarization"),
    ),
    hub=HubCall(keys=frozenset({"summary_text"}), arguments=_generation_apart, settle=check_single),
    example={
        "inputs": "The tower is 324 metres tall, about the same height as an 81-storey building.",
        "parameters": {"max_length": 60},
    },
    example_output={"summary_text": "The tower is as tall as an 81-storey building."},
    takes="a text",
    returns='`[{"summary_text"}]`',
    alone=in_a_list,
)

TRANSLATION = HfTask(
    name="translation",
    default_model="Helsinki-NLP/opus-mt-ru-en",
    input=TextInput(),
    parameters=TranslationParameters,
    output=TextOutput(field="translation_text"),
    load="workers.hf.tasks.generation:load_translation",
    checkpoints=Checkpoints(
        architectures=[_SEQ2SEQ, "T5WithLMHeadModel", "EncoderDecoderModel", "MarianMTModel"],
        rank=_rank("translation"),
    ),
    hub=HubCall(
        keys=frozenset({"translation_text"}), arguments=_with_both_languages, settle=check_single
    ),
    example={"inputs": "Мы открываемся в девять."},
    example_output={"translation_text": "We open at nine."},
    takes="a text",
    returns='`[{"translation_text"}]`',
    alone=in_a_list,
    signs=frozenset({"src_lang", "tgt_lang"}),
)

TEXT_GENERATION = HfTask(
    name="text-generation",
    default_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    input=TextInput(),
    parameters=TextGenerationParameters,
    output=TextOutput(field="generated_text"),
    load="workers.hf.tasks.generation:load_text_generation",
    checkpoints=Checkpoints(architectures=["ForCausalLM", "LMHeadModel"]),
    hub=HubCall(keys=frozenset({"generated_text"}), arguments=None, settle=_generated),
    example={"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20}},
    example_output={"generated_text": "Once upon a time there was a queue."},
    takes="a text",
    returns='`[{"generated_text"}]`',
    alone=as_a_list,
)
