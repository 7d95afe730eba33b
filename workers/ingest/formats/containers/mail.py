"""Mail -> its text, with fields of its header as metadata; attachments are documents of their own.

EML (RFC 5322, RFC 2045) is read by the email package of the standard library, MSG (Outlook,
MS-OXMSG) by python-oxmsg (MIT). The text begins with the subject, sender, receivers and date, so
that searches find a mail by them. If a body exists in several forms, the plain text is read unless
it is blank. Images shown in a body are not attachments; an attached mail is one.
"""

import email
import email.policy
import re
import struct
import zlib
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from email.headerregistry import AddressHeader, DateHeader
from email.message import EmailMessage
from email.utils import parsedate_to_datetime
from typing import Any, Final

from shared.bounds import Metadata, cut
from shared.errors import DocumentError
from shared.formats import FORMATS
from workers.ingest.formats.container import (
    Budget,
    Member,
    clean_name,
    encoding_of_names,
)
from workers.ingest.formats.loader import DocumentKey, DocumentParts, Loader, RawDocument
from workers.ingest.formats.office.rtf import RTF
from workers.ingest.formats.texts.html import HTML
from workers.ingest.formats.texts.text import TEXT

_HEADER_CHARS: Final = 2000
"""The length at which header fields are cut for metadata; some mails have thousands of receivers.
"""
_PARSED_CHARS: Final = 4000
"""How much of a header field about a part is parsed: the email package needs 0.1 s for each 1,000
characters."""
_SHOWN_CHARS: Final = 20_000
"""How much of a header field becomes text."""
_NO_NAME: Final = "attachment"
_SURROGATE: Final = re.compile("[\udc80-\udcff]")
_SHOWN_TYPES: Final = ("image/",)
_SUFFIXES: Final = {
    media_type: format_.suffixes[0]
    for format_ in FORMATS.values()
    for media_type in format_.media_types
}


# EML


def load_eml(document: RawDocument) -> DocumentParts:
    message = _message(document)
    headers = {
        "subject": _header(message, "subject"),
        "from": _header(message, "from"),
        "to": _header(message, "to"),
        "cc": _header(message, "cc"),
    }
    body = "\n\n".join(filter(None, (_body(part, document) for part in _bodies(message))))
    return _parts(headers, _date(message), body)


def eml_members(document: RawDocument, budget: Budget) -> Iterator[Member]:
    message = _message(document)
    bodies = {id(part) for part in _bodies(message)}
    for part in _leaves(message):
        budget.count()
        if id(part) in bodies or _is_text(part) or _is_shown(part):
            continue
        if part.get_content_type() == "message/rfc822":
            yield _attached_mail(part, document, budget)
            continue
        data = _payload(part)
        budget.spend(len(data))
        yield _member(part.get_filename(), part.get_content_type(), data, document, budget)


class _Policy(email.policy.EmailPolicy):
    """Parses no more of a header field than genuine ones have."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        return super().header_fetch_parse(name, value[:_PARSED_CHARS])


def _message(document: RawDocument) -> EmailMessage:
    message = email.message_from_bytes(document.content, policy=_Policy())
    assert isinstance(message, EmailMessage)
    if not message.keys():
        raise DocumentError(
            f"{document.name}: has no headers, and so is no mail. If it is a text, give it a name "
            "that ends with .txt."
        )
    return message


def _leaves(message: EmailMessage) -> Iterator[EmailMessage]:
    """The parts without parts of their own, in order; an attached mail is one part."""
    waiting = [message]
    while waiting:
        part = waiting.pop()
        if part.is_multipart() and part.get_content_type() != "message/rfc822":
            waiting += reversed(_inner(part))
        else:
            yield part


def _inner(part: EmailMessage) -> list[EmailMessage]:
    payload = part.get_payload()
    if not isinstance(payload, list):
        return []
    return [inner for inner in payload if isinstance(inner, EmailMessage)]


def _bodies(message: EmailMessage) -> list[EmailMessage]:
    """The parts that are the text of the mail itself."""
    bodies: list[EmailMessage] = []
    waiting = [message]
    while waiting:
        part = waiting.pop()
        type_ = part.get_content_type()
        if type_ == "multipart/alternative":
            waiting += _alternative(_inner(part))
        elif type_ == "multipart/related":
            waiting += _inner(part)[:1]
        elif part.is_multipart() and type_ != "message/rfc822":
            waiting += reversed(_inner(part))
        elif _is_text(part):
            bodies.append(part)
    return bodies


def _alternative(parts: Sequence[EmailMessage]) -> Sequence[EmailMessage]:
    """The plain text if it is not blank, else the last form, which is the richest (RFC 2046)."""
    for part in parts:
        if part.get_content_type() == "text/plain" and _payload(part).strip():
            return [part]
    return parts[-1:]


def _payload(part: EmailMessage) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _is_text(part: EmailMessage) -> bool:
    """Whether a part is text of the mail itself. The email package also returns a multipart part
    whose boundary is missing as text."""
    type_ = part.get_content_type()
    is_text = type_ in ("text/plain", "text/html") or type_.startswith("multipart/")
    is_attachment = part.get_content_disposition() == "attachment" or bool(part.get_filename())
    return is_text and not is_attachment and not part.is_multipart()


def _is_shown(part: EmailMessage) -> bool:
    """Whether a body shows the part; in a saved web page (RFC 2557), all its parts."""
    is_image = part.get_content_type().startswith(_SHOWN_TYPES)
    is_used = (is_image and "content-id" in part) or "content-location" in part
    return is_used and part.get_content_disposition() != "attachment"


def _body(part: EmailMessage, document: RawDocument) -> str:
    is_html = part.get_content_type() == "text/html"
    return _rendered(_payload(part), part.get_content_charset(), is_html, document)


def _rendered(data: bytes | str, charset: str | None, is_html: bool, document: RawDocument) -> str:
    return _read_by(HTML if is_html else TEXT, data, charset, document)


def _read_by(loader: Loader, data: bytes | str, charset: str | None, document: RawDocument) -> str:
    if not data.strip():
        return ""
    body = replace(document, data=data, charset=charset)
    assert loader.load is not None
    return "\n\n".join(text for text, _ in loader.load(body).passages).strip()


def _attached_mail(part: EmailMessage, document: RawDocument, budget: Budget) -> Member:
    inner = _inner(part)[:1]
    data = b"".join(message.as_bytes(policy=email.policy.compat32) for message in inner)
    budget.spend(len(data))
    subject = "".join(_header(message, "subject") for message in inner)
    name = part.get_filename() or f"{subject[:100] or 'mail'}.eml".replace("/", "-")
    return _member(name, "message/rfc822", data, document, budget)


def _header(message: EmailMessage, name: str) -> str:
    """The decoded field. Where a program did not encode it (RFC 2047), its bytes may have any
    encoding."""
    written = next((v for key, v in message.raw_items() if key.lower() == name), "")
    text = _mended(str(written)[:_SHOWN_CHARS])
    try:
        value = email.policy.default.header_factory(name, " ".join(text.split()))
        if isinstance(value, AddressHeader) and value.addresses:
            text = ", ".join(str(address) for address in value.addresses)
        else:
            text = str(value)
    except (ValueError, IndexError, AttributeError, TypeError, LookupError):
        pass  # the package fails on some malformed fields; they stay as they are
    return " ".join(text.split())


def _mended(text: str) -> str:
    """Decode bytes that the email package has turned into surrogates."""
    if _SURROGATE.search(text) is None:
        return text
    data = text.encode("utf-8", "surrogateescape")
    return data.decode(encoding_of_names([data]) or "utf-8", "replace")


def _date(message: EmailMessage) -> str:
    try:
        value = message.get("date")
        moment = value.datetime if isinstance(value, DateHeader) else None
        if moment is None and value:
            moment = parsedate_to_datetime(str(value))
    except (ValueError, IndexError, TypeError, AttributeError, OverflowError):
        return ""
    return moment.isoformat() if moment else ""


# MSG


def load_msg(document: RawDocument) -> DocumentParts:
    message = _outlook_message(document)
    headers = {
        "subject": message.subject,
        "from": message.sender or "",
        "to": "",
        "cc": "",
    }
    sent = message.message_headers
    lowered = {name.lower(): value for name, value in sent.items()}
    receivers = ", ".join(_receiver(one) for one in message.recipients)
    headers["to"] = lowered.get("to") or receivers
    headers["cc"] = lowered.get("cc") or ""
    body = (message.body or "").strip()
    if not body and (html := _outlook_html(message)):
        body = _rendered(html, None, True, document)
    if not body and (rtf := message.properties.binary_prop_value(_RTF_BODY)):
        body = _read_by(RTF, _unpacked_rtf(rtf, document), None, document)
    moment = message.sent_date
    return _parts(
        {name: " ".join(value.split()) for name, value in headers.items()},
        moment.isoformat() if isinstance(moment, datetime) else "",
        body,
    )


def msg_members(document: RawDocument, budget: Budget) -> Iterator[Member]:
    for attachment in _outlook_message(document).attachments:
        budget.count()
        properties = attachment.properties
        media_type = properties.str_prop_value(_MEDIA_TYPE) or ""
        if properties.str_prop_value(_CONTENT_ID) and media_type.startswith(_SHOWN_TYPES):
            continue
        data = attachment.file_bytes
        name = attachment.file_name or properties.str_prop_value(_SHORT_NAME)
        if data is None:
            shown, _ = clean_name(name or properties.str_prop_value(_DISPLAY_NAME) or _NO_NAME)
            yield Member(
                name=shown,
                error="is a link or an Outlook item within the mail. Save it as a file of its own.",
            )
            continue
        budget.spend(len(data))
        yield _member(name, media_type, data, document, budget)


# Property ids of MS-OXPROPS.
_RTF_BODY: Final = 0x1009
_HTML_BODY: Final = 0x1013
_SHORT_NAME: Final = 0x3704
_DISPLAY_NAME: Final = 0x3001
_CONTENT_ID: Final = 0x3712
_MEDIA_TYPE: Final = 0x370E


def _outlook_message(document: RawDocument) -> Any:
    from oxmsg import Message

    return Message.load(document.content)


def _outlook_html(message: Any) -> bytes | str | None:
    """As bytes if stored so: the page itself then declares its encoding."""
    html: bytes | str | None = message.properties.binary_prop_value(_HTML_BODY) or message.html_body
    return html


_RTF_HEADER: Final = struct.Struct("<IIII")
_RTF_PACKED: Final = 0x75465A4C
_RTF_PLAIN: Final = 0x414C454D
_RTF_WINDOW: Final = 4096
# The initial dictionary of the compression (MS-OXRTFCP 2.1.2.1).
_RTF_BEFORE: Final = (
    b"{\\rtf1\\ansi\\mac\\deff0\\deftab720{\\fonttbl;}"
    b"{\\f0\\fnil \\froman \\fswiss \\fmodern \\fscript \\fdecor "
    b"MS Sans SerifSymbolArialTimes New RomanCourier"
    b"{\\colortbl\\red0\\green0\\blue0\r\n\\par \\pard\\plain\\f0\\fs20\\b\\i\\u\\tab\\tx"
)


def _unpacked_rtf(data: bytes, document: RawDocument) -> bytes:
    """Decompress the RTF of a body (MS-OXRTFCP 2.2). Raises DocumentError."""
    if len(data) < _RTF_HEADER.size:
        raise DocumentError(f"{document.name}: its text is cut off. Save it again.")
    _, size, kind, _ = _RTF_HEADER.unpack_from(data)
    packed = data[_RTF_HEADER.size :]
    if kind == _RTF_PLAIN:
        return packed[:size]
    if kind != _RTF_PACKED:
        raise DocumentError(
            f"{document.name}: its text is packed in an unknown way. Save it again."
        )
    out, begin, at = bytearray(_RTF_BEFORE), len(_RTF_BEFORE), 0
    while at < len(packed) and len(out) - begin < size:
        flags = packed[at]
        at += 1
        for bit in range(8):
            if not flags >> bit & 1:
                out += packed[at : at + 1]
                at += 1
            elif at + 2 <= len(packed):
                reference = packed[at] << 8 | packed[at + 1]
                at += 2
                # An offset in a ring buffer, relative to the write position; the write position
                # itself is the end.
                back = (len(out) - (reference >> 4)) % _RTF_WINDOW
                if back == 0 or back > len(out):
                    return bytes(out[begin:])
                for _ in range((reference & 0xF) + 2):
                    out.append(out[-back])
    return bytes(out[begin : begin + size])


def _receiver(recipient: Any) -> str:
    name, address = recipient.name or "", recipient.email_address or ""
    return f"{name} <{address}>" if name and address and name != address else name or address


# Both


def _parts(headers: Mapping[str, str], date: str, body: str) -> DocumentParts:
    lines = [f"{name.capitalize()}: {value}" for name, value in headers.items() if value]
    if date:
        lines.append(f"Date: {date}")
    noted: Metadata = {
        DocumentKey.TITLE: headers["subject"],
        DocumentKey.AUTHOR: headers["from"],
        DocumentKey.DATE: date,
        "to": headers["to"],
        "cc": headers["cc"],
    }
    metadata = {key: cut(value, _HEADER_CHARS) for key, value in noted.items() if value}
    return DocumentParts(
        passages=[("\n\n".join(filter(None, ("\n".join(lines), body))), {})], metadata=metadata
    )


def _member(
    name: str | None, media_type: str, data: bytes, document: RawDocument, budget: Budget
) -> Member:
    written = _mended(name) if name else _NO_NAME + _SUFFIXES.get(media_type, "")
    # Attachments have no folder.
    shown = clean_name(written.replace("\\", "/").rpartition("/")[2])[0]
    shown = _distinct(shown, document, budget)
    return budget.too_large(shown, len(data)) or Member(
        name=shown, data=data, content_type=media_type or None
    )


def _distinct(name: str, document: RawDocument, budget: Budget) -> str:
    """The name, with a number if another attachment of the mail has it: that is common."""
    stem, dot, suffix = name.rpartition(".")
    copy, unique = 2, name
    while not budget.is_new(f"{document.name}/{unique}"):
        unique = f"{stem} ({copy}).{suffix}" if dot and stem else f"{name} ({copy})"
        copy += 1
    return unique


_EXAMPLE: Final = (
    b"From: Kim <kim@example.org>\r\nTo: lee@example.org\r\nSubject: =?utf-8?q?Hours?=\r\n"
    b"Date: Mon, 2 Nov 2026 09:00:00 +0900\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
    b"We open at nine.\r\n"
)

EML = Loader(
    load=load_eml,
    members=eml_members,
    example=_EXAMPLE,
    example_text="Subject: Hours\nFrom: Kim <kim@example.org>\nTo: lee@example.org\n"
    "Date: 2026-11-02T09:00:00+09:00\n\nWe open at nine.",
)

_MSG_EXAMPLE: Final = (
    "eNq7cF7wwcKNUg8Z0IAdAzPDv/+cDGxIYoxAzATjCED4IPzv////ICEWIP4/CoYU8GQIYPBl0GPwY8hnKGFIZSAVeA"
    "D1lTIUMRQzkAeyGTIZchnIBxD9DkCXVzAkAlkFDDlAth7QVUUM6UToDweqVgCqLgDSeUBWIjAUFICsTCAGmcPLwMVA"
    "CZBnkALnISE43xzM50HI84D4HHC+PJivAOU7MFhC8uCBOqnYrLuM8sCcB+KrMVAHgPIuOmaDio+C4Q+CgGk/H5zmXY"
    "EpvgSYaypJSj9iDKyMMLMYSdB3AKo4HgiLgSVIEpAsAeZYQ2CeMwCKGQChIYMjlHbDaY4WAxPYfiZo3UOs/QIMhO03"
    "BuZVYu1nJsF+kNe5CNrvTJL/WUiwHxRWbETZ70a0/awk2A8KKzkC9huCbTYg2n42EuwHhZUKkv0FwFQPqQGKgG7IBN"
    "LFQNEyML8YyM8H5gyIuzCBAdR+GCDGflBYNTBQD5BqP7bynxnK/jtaJI4oAAAR/Tnq"
)

MSG = Loader(
    load=load_msg,
    members=msg_members,
    example=zlib.decompress(b64decode(_MSG_EXAMPLE)),
    example_text='Subject: Hours\nFrom: "kim" <kim@example.org>\nDate: 2026-11-02T00:00:00+00:00'
    "\n\nWe open at nine.",
)
