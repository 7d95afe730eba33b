"""What an error of the database means, by its SQLSTATE: one table for workers and API.

The class of an exception says little: psycopg's OperationalError is a server that is away as well
as a statement that took too long, two transactions in each other's way, and a full disk.
"""

from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class Meaning(StrEnum):
    AWAY = "away"
    """The server does not answer, or takes no connections: an outage, no fault of the work."""
    BUSY = "busy"
    """It passes if tried again: too slow, in each other's way, no room left. Attempts count."""
    VALUE = "value"
    """A value that the database cannot store, however often it is tried."""
    CONFLICT = "conflict"
    """A row that contradicts others: a double, or one that refers to what is gone."""
    SCHEMA = "schema"
    """The tables are of another version."""
    FAULT = "fault"
    """Anything else: a fault of the program or of the server."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A meaning, and in words what happened and what to do, without the SQL and its parameters."""

    meaning: Meaning
    message: str
    sqlstate: str | None = None

    @property
    def is_contention(self) -> bool:
        """Somebody else had the rows; soon nobody will."""
        return self.sqlstate is not None and self.sqlstate.startswith(("40", "55P03"))


AWAY = "The database (SLUICE_DATABASE_URL) does not answer."
SLOW = (
    "The database took longer than it may for one statement "
    "(SLUICE_DATABASE_STATEMENT_TIMEOUT_S). Ask for less at once, or raise it."
)
CONTENDED = "Two changes of the same rows were in each other's way."
SCHEMA = "The database lacks tables of this version; run `sluice migrate`."

# The longest prefix counts: whole codes before their classes.
_TABLE: dict[str, tuple[Meaning, str]] = {
    "08": (Meaning.AWAY, AWAY),
    "57P01": (Meaning.AWAY, AWAY),  # admin_shutdown
    "57P02": (Meaning.AWAY, AWAY),  # crash_shutdown
    "57P03": (Meaning.AWAY, AWAY),  # cannot_connect_now
    "53300": (
        Meaning.AWAY,
        "The database (SLUICE_DATABASE_URL) takes no more connections. Raise its max_connections, "
        "or lower SLUICE_DATABASE_POOL_CONNECTIONS.",
    ),
    "57014": (Meaning.BUSY, SLOW),  # query_canceled
    "40": (Meaning.BUSY, CONTENDED),  # deadlocks, serialization
    "55P03": (Meaning.BUSY, CONTENDED),  # lock_not_available
    "53100": (
        Meaning.BUSY,
        "The disk of the database is full. Free space there, or lower SLUICE_RETENTION_DAYS.",
    ),
    "53200": (
        Meaning.BUSY,
        "The database ran out of memory. Give it more, or ask for less at once.",
    ),
    "53": (Meaning.BUSY, "The database ran out of a resource."),
    "58": (Meaning.BUSY, "The database's system failed; look at its log."),
    "25006": (Meaning.BUSY, "The database is read-only, as a standby is. Is another one primary?"),
    "25P03": (Meaning.BUSY, "The database ended a transaction that had been idle for too long."),
    "54": (
        Meaning.VALUE,
        "A value is too long, or nests too deep, for the database. Names and references "
        "have to be short (1 kB), JSON flat.",
    ),
    "22012": (Meaning.FAULT, "The database failed."),  # a division by zero is ours
    "22": (Meaning.VALUE, "The database cannot store a value. Correct the input."),
    "23505": (Meaning.CONFLICT, "There is one already, made at the same moment."),
    "23503": (Meaning.CONFLICT, "It refers to something that has been removed meanwhile."),
    "23": (Meaning.CONFLICT, "The database refuses a row that contradicts its rules."),
    "42P01": (Meaning.SCHEMA, SCHEMA),  # undefined_table
    "42703": (Meaning.SCHEMA, SCHEMA),  # undefined_column
}
_UNREADABLE = ("timestamp too", "date too", "can't parse", "interval too")
"""How psycopg begins to say that a stored value is beyond Python's types."""


def trouble_of(error: BaseException) -> Trouble | None:
    """What an error means; None where it is not the database's."""
    if isinstance(error, PoolTimeout):
        message = (
            "All connections to the database are in use (SLUICE_DATABASE_POOL_CONNECTIONS), and "
            "none became free in time."
        )
        return Trouble(meaning=Meaning.BUSY, message=message)
    if not isinstance(error, DBAPIError):
        return None
    sqlstate = getattr(error.orig, "sqlstate", None)
    detail = first_line(error)
    if error.connection_invalidated:
        return Trouble(meaning=Meaning.AWAY, message=AWAY, sqlstate=sqlstate)
    if sqlstate is None:
        return _without_code(error, detail)
    for length in (5, 2):
        if (row := _TABLE.get(sqlstate[:length])) is not None:
            meaning, message = row
            full_message = message if meaning is Meaning.AWAY else f"{message} ({detail})"
            return Trouble(meaning=meaning, message=full_message, sqlstate=sqlstate)
    message = f"The database failed: {detail}"
    return Trouble(meaning=Meaning.FAULT, message=message, sqlstate=sqlstate)


def is_outage(error: BaseException) -> bool:
    trouble = trouble_of(error)
    return trouble is not None and trouble.meaning is Meaning.AWAY


def first_line(error: BaseException) -> str:
    """The first line of what the driver says: the rest is SQL, or parameters with what users
    sent."""
    reason = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(reason).strip().splitlines()
    return lines[0] if lines else type(reason).__name__


def _without_code(error: DBAPIError, detail: str) -> Trouble:
    """Errors of the driver itself, or of a connection that never came about."""
    if isinstance(error, OperationalError | InterfaceError):
        return Trouble(meaning=Meaning.AWAY, message=AWAY)
    if detail.startswith(_UNREADABLE):
        message = f"The database holds a value that cannot be read: {detail}"
        return Trouble(meaning=Meaning.FAULT, message=message)
    if type(error.orig).__name__ == "DataError":
        message = f"The database cannot store a value. Correct the input. ({detail})"
        return Trouble(meaning=Meaning.VALUE, message=message)
    return Trouble(meaning=Meaning.FAULT, message=f"The database failed: {detail}")
