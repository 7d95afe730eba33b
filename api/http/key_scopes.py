"""What an API key may do: the scopes that requests need by their paths, and jobs by their kinds.

A key has all scopes unless SLUICE_API_KEY_SCOPES names it. Every key may read; of what changes
something, requests are looked at here before their bodies are read, jobs where they are made, for
all APIs that are spoken.
"""

import re
from typing import Final
from uuid import UUID

from sqlalchemy.orm import Session

from shared.config import HttpSettings
from shared.errors import Forbidden
from shared.jobs import jobs
from shared.kinds.registry import KINDS
from shared.vocabulary import KeyScope

READING: Final = ("GET", "HEAD", "OPTIONS")
_NONE: Final[frozenset[KeyScope]] = frozenset()
_ASK: Final = frozenset({KeyScope.ASK})
_WRITE: Final = frozenset({KeyScope.WRITE})
_ADMIN: Final = frozenset({KeyScope.ADMIN})

RULES: Final[tuple[tuple[str, str, frozenset[KeyScope]], ...]] = (
    # The kind of the job decides.
    ("*", r"/v1/(jobs|schedules)(/.*)?", _NONE),
    ("*", r"/mcp/?", _NONE),
    # These read.
    ("POST", r"/v1/prompts/[^/]*/render", _NONE),
    ("POST", r"/ollama/api/show", _NONE),
    # Uploads are inputs of jobs, or documents.
    ("POST", r"(/v1|/openai/v1)/files", _ASK | _WRITE),
    ("POST", r"/openai/v1/vector_stores/[^/]*/search", _ASK),
    ("*", r"(/v1|/openai/v1)/files/.*", _WRITE),
    ("*", r"/openai/v1/vector_stores(/.*)?", _WRITE),
    ("*", r"/v1/(collections|documents)(/.*)?", _WRITE),
    ("*", r"/v1/(batches|conversations)(/.*)?", _ASK),
    ("*", r"/v1/(models|prompts|queues)(/.*)?", _ADMIN),
    ("POST", r"/ollama/api/(chat|generate|embed|embeddings)", _ASK),
    ("*", r"/ollama/api/.*", _ADMIN),
    ("*", r"/(openai/v1|tei|models|pipeline)(/.*)?", _ASK),
)
"""Methods and paths, the first that fits, and the scopes of which any is enough. What fits none
needs the scope `admin`."""


def rule_of(method: str, path: str) -> frozenset[KeyScope] | None:
    """The scopes of which any lets a request through; None where no rule has the path."""
    if method in READING:
        return _NONE
    for of_method, pattern, scopes in RULES:
        if of_method in ("*", method) and re.fullmatch(pattern, path):
            return scopes
    return None


def require(settings: HttpSettings, key_name: str, needed: frozenset[KeyScope]) -> None:
    """Raises Forbidden where the key has none of the scopes."""
    own = settings.api_key_scopes.get(key_name)
    if own is None or not needed or KeyScope.ADMIN in own or own & needed:
        return
    raise Forbidden(
        f"The key {key_name!r} may not do this: it has the scope {_listed(own)}, and this needs "
        f"{_listed(needed, ' or ')}. SLUICE_API_KEY_SCOPES on the server says what a key may do."
    )


def require_for_request(settings: HttpSettings, key_name: str, method: str, path: str) -> None:
    """Raises Forbidden."""
    if key_name in settings.api_key_scopes:
        rule = rule_of(method, path)
        require(settings, key_name, _ADMIN if rule is None else rule)


def require_for_kind(settings: HttpSettings, key_name: str, kind: str) -> None:
    """To submit a job of the kind, or to change one. Raises Forbidden."""
    if key_name in settings.api_key_scopes:
        require(settings, key_name, frozenset({KINDS[kind].scope}))


def require_for_job(session: Session, settings: HttpSettings, key_name: str, job_id: UUID) -> None:
    """To cancel, redrive or erase a job. Raises Forbidden, NotFound."""
    if key_name in settings.api_key_scopes:
        require_for_kind(settings, key_name, jobs.without_contents(session, job_id).kind)


def _listed(scopes: frozenset[KeyScope], joint: str = ", ") -> str:
    return joint.join(f"`{scope}`" for scope in KeyScope if scope in scopes)
