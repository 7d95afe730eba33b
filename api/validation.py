"""What pydantic found wrong with a request, in words that name the field and the remedy."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError

from api.compat.dialect import refusal
from api.requests import PRINTABLE, SHA256
from shared.bounds import cut, shown
from shared.payloads import COLLECTION_NAME, Kind
from shared.prefixes import ID_PREFIX

SHOWN = 3
ERRORS_LIMIT = 100
"""How many entries `errors` has at most; a last one says how many more there were."""
PART_CHARS, FIELD_CHARS, MESSAGE_CHARS = 64, 200, 500
# What pydantic says of these does not tell the user what to do.
REMEDIES = {
    "timezone_aware": "give a time zone, as in 2026-11-24T12:00:00Z",
    "extra_forbidden": "there is no such field; check its name",
    "missing": "is required",
    "union_tag_not_found": "is required",
}
PATTERNS = {
    COLLECTION_NAME: "use 3 to 63 letters (a-z), digits, '.', '_' and '-', a letter or digit first "
    "and last",
    SHA256: "give a SHA-256 as 64 hexadecimal digits",
    ID_PREFIX: "give the first 4 to 32 hexadecimal digits of an id, with or without its hyphens",
    PRINTABLE: "use printable ASCII characters without spaces",
}
PLACES = {"body", "query", "path", "header"}
# Members of unions show in pydantic's places, but not in the document that the user sent.
QUOTED = re.compile(r"'(\w+)'")
KIND_TAGS = set(Kind)
ITEM_TAGS = {*Kind, "file", "text"}


def invalid(request: Request, error: RequestValidationError) -> Response:
    """422 with entries for the first fields; 415 where the whole body is of another type."""
    found = error.errors()
    if any(tuple(entry["loc"]) in {("body",), ("body", "file")} for entry in found[:ERRORS_LIMIT]):
        other = _other_content_type(request)
        if other is not None:
            return other
    entries = [{"field": _field(e), "message": _message(e)} for e in found[:ERRORS_LIMIT]]
    lines = [f"{entry['field']}: {entry['message']}" for entry in entries[:SHOWN]]
    more = f"; and {len(found) - SHOWN:,} more" if len(found) > SHOWN else ""
    if len(found) > ERRORS_LIMIT:
        rest = f"and {len(found) - ERRORS_LIMIT:,} more errors, which are not listed"
        entries.append({"field": "body", "message": rest})
    return refusal(request.url.path, 422, "; ".join(lines) + more, errors=entries)


def _other_content_type(request: Request) -> Response | None:
    """Of a body of another type, validation would only say that it is no object."""
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    wants_file = request.url.path == "/v1/files"
    wanted = "multipart/form-data" if wants_file else "application/json"
    is_json = given == "application/json" or given.endswith("+json")
    if (given == wanted) if wants_file else is_json:
        return None
    if request.headers.get("content-length", "0") == "0" and not given:
        return None
    detail = f"Send this body with Content-Type: {wanted}; it came with {given or 'none'}."
    return refusal(request.url.path, 415, detail, headers={"Accept": wanted})


def _field(entry: Mapping[str, Any]) -> str:
    parts: list[str] = []
    loc: Sequence[str | int] = entry["loc"]
    if entry["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        loc = [*loc, entry["ctx"]["discriminator"].strip("'")]
    for n, part in enumerate(loc):
        if n == 0 and part in PLACES:
            continue
        if (n == 1 and part in KIND_TAGS) or (isinstance(loc[n - 1], int) and part in ITEM_TAGS):
            continue
        parts.append(cut(str(part), PART_CHARS))
    return cut(".".join(parts), FIELD_CHARS) or "body"


def _message(entry: Mapping[str, Any]) -> str:
    context = entry.get("ctx", {})
    if entry["type"] == "union_tag_invalid":
        return (
            f"{shown(context['tag'])} is none of "
            f"{', '.join(QUOTED.findall(context['expected_tags']))}"
        )
    if entry["type"] == "string_pattern_mismatch" and context["pattern"] in PATTERNS:
        return PATTERNS[context["pattern"]]
    text = str(REMEDIES.get(entry["type"], entry["msg"]))
    return cut(text.removeprefix("Value error, "), MESSAGE_CHARS)
