"""What an API key may do: the scopes that requests need by their paths, and jobs by their kinds.

A key has all scopes unless SLUICE_API_KEY_SCOPES names it. Every key may read. Requests that change
something are checked before their bodies are read, and jobs when they are submitted, in all
dialects.
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
_READ: Final = frozenset({KeyScope.READ})
_ASK: Final = frozenset({KeyScope.ASK})
_WRITE: Final = frozenset({KeyScope.WRITE})
_ADMIN: Final = frozenset({KeyScope.ADMIN})

RULES: Final[tuple[tuple[str, str, frozenset[KeyScope]], ...]] = (
    # The scope depends on the kind of the job.
    ("*", r"/v1/(jobs|schedules)(/.*)?", _NONE),
    ("*", r"/mcp/?", _NONE),
    # These only read.
    ("POST", r"/v1/prompts/[^/]*/render", _NONE),
    ("POST", r"/ollama/api/show", _NONE),
    # Uploads may be inputs of jobs, or documents.
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
"""Method, path, and the scopes of which one is needed. The first rule that matches counts; without
one, the scope `admin` is needed."""


def rule_of(method: str, path: str) -> frozenset[KeyScope] | None:
    """The scopes of which a request needs one; None if no rule matches."""
    if method in READING:
        return _NONE
    for rule_method, pattern, scopes in RULES:
        if rule_method in ("*", method) and re.fullmatch(pattern, path):
            return scopes
    return None


def require(settings: HttpSettings, key_name: str, needed: frozenset[KeyScope]) -> None:
    """Raises Forbidden if the key has none of the scopes."""
    scopes = settings.api_key_scopes.get(key_name)
    if scopes is None or not needed or KeyScope.ADMIN in scopes or scopes & needed:
        return
    raise Forbidden(
        f"The key {key_name!r} may not do this: it has the scope {_in_words(scopes)}, and this "
        f"needs {_in_words(needed, ' or ')}. SLUICE_API_KEY_SCOPES on the server says what a key "
        "may do."
    )


def require_for_request(settings: HttpSettings, key_name: str, method: str, path: str) -> None:
    """Raises Forbidden."""
    if key_name in settings.api_key_scopes:
        rule = rule_of(method, path)
        require(settings, key_name, _ADMIN if rule is None else rule)


def require_for_kind(settings: HttpSettings, key_name: str, kind: str) -> None:
    """Raises Forbidden if the key may not submit or change jobs of the kind."""
    if key_name in settings.api_key_scopes:
        require(settings, key_name, frozenset({KINDS[kind].scope}) - _READ)


def require_for_job(session: Session, settings: HttpSettings, key_name: str, job_id: UUID) -> None:
    """Raises Forbidden if the key may not cancel, redrive or erase the job; NotFound."""
    if key_name in settings.api_key_scopes:
        require_for_kind(settings, key_name, jobs.without_contents(session, job_id).kind)


def _in_words(scopes: frozenset[KeyScope], joint: str = ", ") -> str:
    return joint.join(f"`{scope}`" for scope in KeyScope if scope in scopes)
