"""Opaque cursors: where a list goes on. A cursor of one list does not fit another."""

import base64
import binascii
from uuid import UUID

from shared.errors import SluiceError


class BadCursor(SluiceError):
    """The cursor is not one of this list; pass a `next_cursor` unchanged, or none."""


def encode(of: str, position: str) -> str:
    return base64.urlsafe_b64encode(f"{of}:{position}".encode()).decode().rstrip("=")


def decode(of: str, cursor: str | None) -> str | None:
    """The position in the list `of`. Raises BadCursor."""
    if cursor is None:
        return None
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        name, _, position = base64.urlsafe_b64decode(padded.encode()).decode().partition(":")
    except (binascii.Error, UnicodeError) as error:
        raise BadCursor from error
    if name != of or not position or not position.isprintable():
        raise BadCursor
    return position


def decode_id(of: str, cursor: str | None) -> UUID | None:
    position = decode(of, cursor)
    try:
        return None if position is None else UUID(position)
    except ValueError as error:
        raise BadCursor from error
