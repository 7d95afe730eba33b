"""Mail: what is read of headers and bodies, and which parts are documents of their own."""

import contextlib
from email.message import EmailMessage
from email.policy import SMTP
from typing import Any

import pytest

from shared.config import IngestSettings
from shared.errors import DocumentError
from shared.kinds.ingest import LoadOptions
from tests.unit.compound_file import outlook_message
from tests.unit.documents import read, refusal
from workers.ingest.formats.container import Member
from workers.ingest.load import members

KOREAN = "회의는 아홉 시에 시작합니다."


def mail(**headers: str) -> EmailMessage:
    message = EmailMessage(policy=SMTP)
    for name, value in ({"Subject": "Hours", "From": "kim@example.org"} | headers).items():
        message[name.replace("_", "-")] = value
    return message


def attachments(data: bytes, name: str = "m.eml") -> list[Member]:
    return list(
        members(
            data,
            name=name,
            content_type=None,
            options=LoadOptions(),
            settings=IngestSettings.model_construct(),
        )
    )


def test_headers_are_metadata_and_text() -> None:
    message = mail(
        Subject="회의 안내",
        From="김철수 <kim@example.org>",
        To="이영희 <lee@example.org>, park@example.org",
        Cc="all@example.org",
        Date="Mon, 2 Nov 2026 09:00:00 +0900",
    )
    message.set_content(KOREAN)
    loaded = read(message.as_bytes(), "m.eml")
    assert loaded.text == (
        "Subject: 회의 안내\nFrom: 김철수 <kim@example.org>\n"
        "To: 이영희 <lee@example.org>, park@example.org\nCc: all@example.org\n"
        f"Date: 2026-11-02T09:00:00+09:00\n\n{KOREAN}"
    )
    assert loaded.metadata == {
        "media_type": "message/rfc822",
        "title": "회의 안내",
        "author": "김철수 <kim@example.org>",
        "date": "2026-11-02T09:00:00+09:00",
        "to": "이영희 <lee@example.org>, park@example.org",
        "cc": "all@example.org",
    }


@pytest.mark.parametrize("charset", ["euc-kr", "utf-8", "ks_c_5601-1987", "iso-8859-1", "unknown"])
def test_a_body_is_read_in_the_encoding_that_it_has(charset: str) -> None:
    encoded = KOREAN.encode("cp949" if charset != "utf-8" else "utf-8")
    data = b"Subject: x\nContent-Type: text/plain; charset=" + charset.encode() + b"\n\n" + encoded
    assert KOREAN in read(data, "m.eml").text


def test_a_header_that_is_not_encoded_is_read_as_what_it_is() -> None:
    data = "Subject: 회의 안내드립니다\nFrom: 김철수 <a@b.kr>\n\nbody".encode("cp949")
    loaded = read(data, "m.eml")
    assert loaded.metadata["title"] == "회의 안내드립니다"
    assert "김철수" in loaded.metadata["author"]


def test_of_two_forms_the_plain_one_is_read_unless_it_is_blank() -> None:
    for plain, expected in (("plain words", "plain words"), (" \n", "rich words")):
        message = mail()
        message.set_content(plain)
        message.add_alternative("<p>rich <b>words</b></p>", subtype="html")
        text = read(message.as_bytes(), "m.eml").text
        assert expected in text
        assert ("rich" in text) == (expected != plain)


def test_attachments_are_documents_and_shown_images_are_none() -> None:
    message = mail()
    message.set_content("see the files")
    message.add_alternative("<p>see <img src='cid:logo'></p>", subtype="html")
    rich = message.get_body(("html",))
    assert isinstance(rich, EmailMessage)
    rich.add_related(b"PNG", "image", "png", cid="<logo>")
    message.add_attachment("a,b\n1,2\n".encode("cp949"), "text", "csv", filename="표.csv")
    message.add_attachment("note", filename="../../note.txt")
    message.add_attachment("other note", filename="note.txt")
    message.add_attachment(b"%PDF-1.7", "application", "pdf")
    listed = attachments(message.as_bytes())
    assert [(m.name, m.error) for m in listed] == [
        ("m.eml!/표.csv", ""),
        ("m.eml!/note.txt", ""),
        ("m.eml!/note (2).txt", ""),
        (listed[3].name, ""),
    ]
    assert listed[0].data == b"a,b\n1,2\n"
    assert listed[3].data == b"%PDF-1.7"
    assert "see the files" in read(message.as_bytes(), "m.eml").text


def test_a_mail_within_a_mail_is_a_document_with_attachments_of_its_own() -> None:
    inner = mail(Subject="Re: plan/2026")
    inner.set_content(KOREAN)
    inner.add_attachment("deep", filename="deep.txt")
    outer = mail(Subject="Fwd")
    outer.set_content("see below")
    outer.add_attachment(inner)
    listed = attachments(outer.as_bytes())
    assert [m.name for m in listed] == [
        "m.eml!/Re: plan-2026.eml", "m.eml!/Re: plan-2026.eml!/deep.txt",
    ]  # fmt: skip
    assert KOREAN in read(listed[0].data, listed[0].name).text
    assert listed[1].data.strip() == b"deep"
    assert KOREAN not in read(outer.as_bytes(), "m.eml").text


@pytest.mark.parametrize(
    "data",
    [
        b"Subject: =?utf-8?B?broken?=\nFrom: <<>>,,@\nTo: :;\nDate: never\n\nbody",
        b"Subject:\nContent-Type: multipart/mixed\n\nbody",
        b"Subject: x\nContent-Type: multipart/mixed; boundary=B\n\n--B\n\nbody",
        b"Subject: x\nContent-Type: text/plain\nContent-Transfer-Encoding: base64\n\nYm9keQ",
        b"Subject: x\nContent-Type: ;;;===\nContent-Transfer-Encoding: none\n\nbody",
        b"Date: Mon, 99 Nov 2026 99:00:00 +9999\nSubject: x\n\nbody",
    ],
)
def test_broken_mails_are_read_as_far_as_they_go(data: bytes) -> None:
    assert "body" in read(data, "m.eml").text
    assert attachments(data) == []


def test_a_text_that_is_no_mail_says_so() -> None:
    assert "no mail" in refusal(b"\n\nplain text without a header", "m.eml")


def test_a_mail_is_known_by_how_it_begins() -> None:
    data = b"Received: from a by b; Mon, 2 Nov 2026 09:00:00 +0900\nSubject: Hours\n\nbody"
    assert read(data, "1234").metadata["title"] == "Hours"


def test_parts_may_nest_deep_and_costs_are_bounded() -> None:
    data = b"Subject: x\n"
    for n in range(100):
        data += b"Content-Type: multipart/mixed; boundary=B%d\n\n--B%d\n" % (n, n)
    data += b"Content-Type: text/plain\n\ndeep body"
    assert "deep body" in read(data, "m.eml").text


# Outlook


def outlook(**values: Any) -> bytes:
    return outlook_message(**{"subject": "회의 안내"} | values)


def test_an_outlook_message_is_read() -> None:
    data = outlook(
        body=f"{KOREAN}\r\n",
        sender="kim@example.org",
        to=[("이영희", "lee@example.org")],
        attachments=[
            {"name": "표.csv", "data": b"a,b\n1,2\n", "type": "text/csv"},
            {"name": "long.txt", "data": b"x" * 9000},
            {"name": "gone.txt", "data": None},
        ],
    )
    loaded = read(data, "m.msg")
    assert loaded.text == (
        'Subject: 회의 안내\nFrom: "kim" <kim@example.org>\nTo: 이영희 <lee@example.org>\n'
        f"Date: 2026-11-02T00:00:00+00:00\n\n{KOREAN}"
    )
    assert loaded.metadata["title"] == "회의 안내"
    assert read(data, "renamed.txt").text == loaded.text
    listed = attachments(data, "m.msg")
    assert [(m.name, len(m.data)) for m in listed] == [
        ("m.msg!/표.csv", 8), ("m.msg!/long.txt", 9000), ("m.msg!/gone.txt", 0),
    ]  # fmt: skip
    assert "Save it as a file" in listed[2].error


def test_an_outlook_message_of_html_alone_is_rendered() -> None:
    html = f"<html><body><p>{KOREAN}</p></body></html>".encode()
    assert read(outlook(html=html), "m.msg").text.endswith(KOREAN)


def test_an_outlook_message_of_rtf_alone_is_read() -> None:
    # The example of MS-OXRTFCP 4.1.1, and one whose references overlap what they write (4.1.2).
    packed = bytes.fromhex(
        "2d0000002b0000004c5a4675f1c5c7a703000a007263706731323542320af32068656c"
        "090020627705b06c647d0a800fa0"
    )
    crossing = bytes.fromhex("1a0000001c0000004c5a4675e2d44b51410004205758595a0d6e7d010eb0")
    assert read(outlook(rtf=packed), "m.msg").text.endswith("\n\nhello world")
    assert read(outlook(rtf=crossing), "m.msg").text.endswith("\n\nWXYZWXYZWXYZWXYZWXYZ")
    for cut in range(0, len(packed), 3):
        with contextlib.suppress(DocumentError):
            read(outlook(rtf=packed[:cut]), "m.msg")


def test_a_damaged_outlook_message_is_an_error_of_the_document() -> None:
    data = outlook(body=KOREAN)
    for cut in (600, 1500, len(data) - 600):
        with pytest.raises(DocumentError, match=r"^m\.msg: "):
            read(data[:cut], "m.msg")


def test_a_web_page_that_was_saved_as_one_file_is_read_without_what_it_shows() -> None:
    page = (
        b"From: <Saved by Blink>\r\nSubject: Hours\r\nMIME-Version: 1.0\r\n"
        b'Content-Type: multipart/related; type="text/html"; boundary="B"\r\n\r\n--B\r\n'
        b"Content-Type: text/html\r\nContent-Transfer-Encoding: quoted-printable\r\n"
        b"Content-Location: https://example.org/\r\n\r\n"
        b"<html><body><p>=EC=95=84=ED=99=89 We open.</p></body></html>\r\n--B\r\n"
        b"Content-Type: text/css\r\nContent-Location: https://example.org/a.css\r\n\r\n"
        b"p { color: red }\r\n--B--\r\n"
    )
    loaded = read(page, "page.mhtml")
    assert loaded.text.endswith("\n\n아홉 We open.")
    assert loaded.metadata["title"] == "Hours"
    assert "color" not in loaded.text
    assert attachments(page, "page.mhtml") == []
