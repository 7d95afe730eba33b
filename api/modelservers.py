"""What the servers behind `ollama/...` and `openai/...` offer, asked over plain HTTP.

The API has no model library in it; these are three GET and POST calls.
"""

import httpx

from shared.config import Settings
from shared.errors import NotFound, Unavailable

ASK_S = 2.0
"""A listing does not wait longer for a server that is not there."""


async def ollama_models(settings: Settings) -> list[str]:
    answer = await _asked(settings, f"{settings.ollama_url.rstrip('/')}/api/tags")
    found = answer.get("models") or []
    return sorted(f"ollama/{model['name'].removesuffix(':latest')}" for model in found)


async def openai_models(settings: Settings) -> list[str]:
    if settings.openai_base_url is None:
        return []
    answer = await _asked(settings, f"{settings.openai_base_url.rstrip('/')}/models", key=True)
    return sorted(f"openai/{model['id']}" for model in answer.get("data") or [])


async def ollama_details(settings: Settings, reference: str) -> dict[str, object]:
    """Raises NotFound where the server has no such model, Unavailable where there is no server."""
    url = f"{settings.ollama_url.rstrip('/')}/api/show"
    try:
        async with _client() as client:
            answer = await client.post(url, json={"model": reference.removeprefix("ollama/")})
    except httpx.HTTPError as error:
        raise Unavailable(
            f"Ollama at {settings.ollama_url} (SLUICE_OLLAMA_URL) does not answer: {error}. Start "
            "it with `ollama serve`."
        ) from error
    if answer.status_code == 404:
        raise NotFound(
            f"Ollama has no model {reference.removeprefix('ollama/')!r}; get it with "
            f"`sluice models pull {reference}`."
        )
    if answer.status_code != 200:
        raise Unavailable(f"Ollama answered {answer.status_code}: {answer.text[:200]}")
    told = answer.json()
    kept = ("details", "parameters", "template", "system", "capabilities", "modelfile")
    return {name: told[name] for name in kept if name in told}


async def _asked(
    settings: Settings, url: str, *, key: bool = False
) -> dict[str, list[dict[str, str]]]:
    headers = {}
    if key and settings.openai_api_key is not None:
        headers["Authorization"] = f"Bearer {settings.openai_api_key.get_secret_value()}"
    try:
        async with _client() as client:
            answer = await client.get(url, headers=headers)
        found = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=ASK_S, trust_env=False)
