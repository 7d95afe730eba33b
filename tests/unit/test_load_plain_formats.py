"""Formats that are plain text with a form: front matter, reStructuredText, XML, files of settings,
logs, subtitles, chosen fields of JSON."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from shared.formats import FORMATS
from shared.kinds.ingest import JsonOptions, LoadOptions, Splitter, SplitterType
from tests.unit.documents import read, refusal
from workers.ingest.formats.texts.code import code_separators
from workers.ingest.load import split

PASSAGE = tuple[str, dict[str, object]]


def passages(data: str, name: str, options: LoadOptions | None = None) -> list[PASSAGE]:
    loaded = read(data.encode(), name, options=options)
    return [(passage.text, dict(passage.metadata)) for passage in loaded.passages]


def metadata(data: str, name: str) -> dict[str, object]:
    own = dict(read(data.encode(), name).metadata)
    del own["media_type"], own["encoding"]
    return own


def headed(data: str, name: str) -> list[tuple[object, str]]:
    loaded = read(data.encode(), name)
    pieces = split(loaded, Splitter(type=SplitterType.HTML))
    return [(piece.metadata.get("heading"), piece.text) for piece in pieces]


# Front matter


@pytest.mark.parametrize(
    ("front", "own"),
    [
        ("---\ntitle: 문서\ndate: 2024-03-01\n---\n", {"title": "문서", "date": "2024-03-01"}),
        (
            "---\nTitle: A\ndraft: true\nweight: 3\n---\n",
            {"title": "A", "draft": True, "weight": 3},
        ),
        ("---\ntags: [a, b]\nn: [1, x]\n---\n", {"tags": ["a", "b"], "n": ["1", "x"]}),
        ("---\nmenu: {main: {weight: 2}}\n---\n", {"menu": '{"main": {"weight": 2}}'}),
        ("---\nat: 2024-03-01T10:00:00Z\n...\n", {"at": "2024-03-01T10:00:00+00:00"}),
        ("---\nempty:\nnone: []\nx: .inf\n---\n", {"x": "inf"}),
        ("+++\ntitle = 'x'\n# toml comment\n[a]\nb = 1\n+++\n", {"title": "x", "a": '{"b": 1}'}),
        ('{\n"title": "x", "n": 1.5\n}\n', {"title": "x", "n": 1.5}),
        (
            "---\nmedia_type: x/y\nencoding: z\n---\n",
            {"media_type (2)": "x/y", "encoding (2)": "z"},
        ),
        ("---\nn: 99999999999999999999\n---\n", {"n": "99999999999999999999"}),
        (
            "---\nbase: &b {a: 1, c: x}\none: *b\ntwo:\n  <<: *b\n  a: 2\n---\n",
            {
                "base": '{"a": 1, "c": "x"}',
                "one": '{"a": 1, "c": "x"}',
                "two": '{"a": 2, "c": "x"}',
            },
        ),
        (
            "---\ncountry: no\nat: 10:30\ncode: 007\nzip: 01234\nhex: 0x1F\nbig: 1_000\n---\n",
            {
                "country": "no",
                "at": "10:30",
                "code": "007",
                "zip": "01234",
                "hex": "0x1F",
                "big": "1_000",
            },
        ),
        (
            "---\non: True\nn: -5\nf: 1e3\nv: 1.5\ng: ~\n---\n",
            {"on": True, "n": -5, "f": 1000.0, "v": 1.5},
        ),
        ("---\ndate: 2024-02-30\n---\n", {"date": "2024-02-30"}),
        ("---\n---\n", {}),
    ],
)
def test_front_matter_is_metadata(front: str, own: dict[str, object]) -> None:
    assert metadata(front + "\n# Real\n\nbody", "a.md") == own
    assert read((front + "\n# Real\n\nbody").encode(), "a.md").text == "# Real\n\nbody"


@pytest.mark.parametrize(
    "front",
    [
        "---\n- a\n- b\n---\n",
        "---\na: [1\n---\n",
        "---\na: &x [*x]\n---\n",
        "---\na: &a [x, x, x]\n"
        + "".join(f"{n}: &{n} [{', '.join(['*' + chr(ord(n) - 1)] * 9)}]\n" for n in "bcdefghijk")
        + "---\n",
        "---\na: &a {x: 1}\n"
        + "".join(
            f"{n}: &{n}\n  <<: [{', '.join(['*' + chr(ord(n) - 1)] * 9)}]\n" for n in "bcdefghijk"
        )
        + "---\n",
        "---\na: !!python/object/apply:os.system ['x']\n---\n",
        "+++\nno toml\n+++\n",
        "---\n\nA rule, and text.\n\n---\n",
        "---\nonly: front matter\n",
        "---\n" + "a: b\n" * 20_000 + "---\n",
    ],
)
def test_what_is_no_front_matter_stays_text(front: str) -> None:
    text = front + "\n# Real"
    assert metadata(text, "a.md") == {}
    assert read(text.encode(), "a.md").text == text


# reStructuredText

RST = """\
==========
User guide
==========

:Author: Mina Kim
:Date: 2024-03-01

Welcome to *the* ``guide``. See :ref:`other`.

Install
=======

Run this::

    pip install x
      --quiet

.. a comment

.. contents:: In this guide

.. note:: Mind the gap.

.. code-block:: python

   print("hi")

Linux
-----

* one, wrapped
  here

  1. inner
  2. second
* two

term
    What it is.

+------+-------+
| City | Fee   |
+======+=======+
| 서울 | 1,000 |
|      +-------+
|      | 2,000 |
+------+-------+

.. automodule:: sluice.jobs
   :members:

.. include:: /etc/passwd

.. raw:: html

   <b>raw</b>

Footnote [1]_.

.. [1] The note.
"""


def test_restructured_text_is_rendered() -> None:
    loaded = read(RST.encode(), "a.rst")
    text = loaded.text
    assert loaded.metadata["title"] == "User guide"
    assert loaded.metadata["author"] == "Mina Kim"
    assert loaded.metadata["date"] == "2024-03-01"
    assert "Welcome to the guide. See :ref:`other`." in text
    assert "pip install x\n  --quiet" in text
    assert 'print("hi")' in text
    assert "Mind the gap." in text
    assert "- one, wrapped here\n  1. inner\n  2. second\n- two" in text
    assert "term\nWhat it is." in text
    assert "City | Fee\n서울 | 1,000\n서울 | 2,000" in text
    assert "automodule:: sluice.jobs" in text
    assert "[1] The note." in text
    assert "a comment" not in text
    assert "In this guide" not in text
    assert "root:" not in text


def test_restructured_text_is_split_at_its_headings() -> None:
    headings = [heading for heading, _ in headed(RST, "a.rst")]
    assert headings == ["User guide", "User guide > Install", "User guide > Install > Linux"]
    assert [heading for heading, _ in headed("A\n=\n\nx\n\nB\n=\n\ny\n", "a.rst")] == ["A", "B"]


def test_restructured_text_that_has_no_text_or_too_long_lines() -> None:
    fields = ":a: b\n:c: d\n"
    assert read(fields.encode(), "a.rst").text == fields
    for data in (b"a " * 6000, b"a\n" * 11_000):
        assert "Put blank lines into it" in refusal(data, "a.rst")
    assert "many attributes" not in refusal(b"<a", "a.xml")


# XML


def test_records_of_xml_are_passages() -> None:
    data = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaa">]>
      <shop name="north"><item id="1"><name>Lamp</name><price cur="won">12</price><!-- no --></item>
      <item id="2"><name><![CDATA[Fan & co]]></name><tags><t>a</t><t>b</t></tags></item></shop>"""
    assert passages(data, "a.xml") == [
        ("@name: north", {}),
        ("@id: 1\nname: Lamp\nprice.@cur: won\nprice: 12", {"item": 1}),
        ("@id: 2\nname: Fan & co\ntags.t: a\ntags.t: b", {"item": 2}),
    ]


def test_a_feed_has_its_records_in_one_element() -> None:
    feed = """<rss version="2"><channel><title>News</title>
      <item><title>One</title><link>https://a/1</link></item>
      <item><title>Two</title><link>https://a/2</link></item></channel></rss>"""
    own = passages(feed, "a.xml")
    assert ("title: One\nlink: https://a/1", {"item": 2}) in own


def test_running_text_of_xml_is_in_paragraphs() -> None:
    data = """<article xmlns="urn:x"><title>A <i>title</i></title><sec><p>One <b>bold</b> word,
      and more.</p><p>Two.</p><list><li>a</li><li>b</li></list></sec></article>"""
    (only,) = passages(data, "a.xml")
    assert only[0] == "A title\n\nOne bold word, and more.\n\nTwo.\n\na\n\nb"
    assert metadata(data, "a.xml") == {"title": "A title"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ('<config version="1"><db host="x" port="1"/><log level="info"/></config>',
         "@version: 1\ndb.@host: x\ndb.@port: 1\nlog.@level: info"),
        ("<note><to>Tove</to><body>Reminder!</body></note>", "to: Tove\nbody: Reminder!"),
        ('<a:r xmlns:a="urn:a" a:k="v"><a:x><a:y>1</a:y></a:x><b xmlns="urn:b">2</b></a:r>',
         "@k: v\nx.y: 1\nb: 2"),
        ("<doc><title>T</title><p>One.</p><p>Two.</p></doc>", "T\n\nOne.\n\nTwo."),
    ],
)  # fmt: skip
def test_values_of_xml_keep_their_names(data: str, expected: str) -> None:
    (only,) = passages(data, "a.xml")
    assert only[0] == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("<d>H<sub>2</sub>O and <b>b</b>, <i>i</i>.</d>", "H2O and b, i."),
        ("<d>Intro<list><li>a</li><li>b</li></list>end</d>", "Intro a b end"),
        ("<d>one<br/>two</d>", "one two"),
        ("<d>x <row><c>1</c><c>2</c></row></d>", "x 1 2"),
    ],
)
def test_words_of_xml_are_never_glued(data: str, expected: str) -> None:
    assert passages(data, "a.xml") == [(expected, {})]


def test_what_a_document_of_xml_says_of_itself() -> None:
    feed = """<rss xml:lang="ko"><channel><title>News</title><item><title>One</title></item>
      <item><title>Two</title></item></channel></rss>"""
    assert metadata(feed, "a.xml") == {"title": "News", "language": "ko"}


@pytest.mark.parametrize("encoding", ["euc-kr", "utf-16", "utf-8"])
def test_xml_in_the_encoding_that_it_declares(encoding: str) -> None:
    data = f'<?xml version="1.0" encoding="{encoding}"?><a><b>도서관의 새 예산</b></a>'
    assert read(data.encode(encoding), "a.xml").text == "도서관의 새 예산"


def test_entities_of_xml_are_never_expanded() -> None:
    entities = '<!ENTITY a "aaaa"><!ENTITY f SYSTEM "/etc/passwd">'
    data = f"<!DOCTYPE x [{entities}]><x>b &a; &f;</x>"
    assert read(data.encode(), "a.xml").text == "b &a; &f;"
    lol = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 9}">' for n in range(9))
    bomb = f'<!DOCTYPE x [<!ENTITY l0 "lol">{lol}]><x>&l9;</x>'
    assert "amplification" in refusal(bomb.encode(), "a.xml")
    assert "not well-formed" in refusal(b"<a><b></a>", "a.xml")
    assert "200 deep" in refusal(b"<a>" * 300 + b"x" + b"</a>" * 300, "a.xml")


def test_a_page_that_is_xml_is_read_as_html() -> None:
    page = '<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><p>a</p><p>b</p></html>'
    assert read(page.encode(), "upload").text == "a\n\nb"


# Files of settings


def test_settings_stay_as_they_are_and_have_sections() -> None:
    yaml = "# all\nserver:\n  port: 80 # http\n'data base':\n- x: 1\n---\nserver: z\n"
    assert passages(yaml, "a.yaml") == [(yaml, {})]
    assert [heading for heading, _ in headed(yaml, "a.yml")] == [
        None, "server", "data base", "server",
    ]  # fmt: skip
    toml = "a = 1\n[server]\nx = '''\n[no]\n'''\n[server.tls]\ny = 2\n[[list]]\nz = 3\n[a.b.c]\n"
    assert [heading for heading, _ in headed(toml + "d = 4\n", "a.toml")] == [
        None, "server", "server > server.tls", "list", "a.b.c",
    ]  # fmt: skip
    ini = "; top\n[one]\na=1\n[two] ; c\nb=2\n"
    assert headed(ini, "a.ini") == [
        (None, "; top"),
        ("one", "[one]\na=1"),
        ("two", "[two] ; c\nb=2"),
    ]


def test_escapes_of_properties_are_read() -> None:
    data = "# \\uc548\\ub155\nname=\\uD83D\\uDE00 \\\\u0041\n"
    assert passages(data, "a.properties") == [("# 안녕\nname=😀 \\\\u0041\n", {})]


# Logs


def test_entries_of_logs_stay_together_with_what_follows_them() -> None:
    entry = "2024-03-01 10:00:{0:02},123 ERROR [x] failed {0}\nTraceback (most recent):\n  at f()\n"
    log = "started\n" + "".join(entry.format(n) for n in range(40)).replace("ERROR", "INFO", 20)
    own = passages(log, "a.log")
    assert "".join(text for text, _ in own) == log
    assert all(text.startswith(("2024", "started")) for text, _ in own)
    assert all(text.endswith("at f()\n") for text, _ in own)
    assert own[0][1] == {"line": 2, "date": "2024-03-01T10:00:00.123", "level": "info"}
    assert own[-1][1]["level"] == "error"
    lines = log.split("\n")
    assert all(lines[int(str(o["line"])) - 1].startswith(str(o["date"])[:4]) for _, o in own)


@pytest.mark.parametrize(
    "line",
    [
        '127.0.0.1 - - [01/Mar/2024:10:00:00 +0900] "GET / HTTP/1.1" 200 1',
        "Mar  1 10:00:00 host sshd[1]: Accepted",
        "[Fri Mar 01 10:00:00.123456 2024] [core:notice] x",
        "[2024-03-01T10:00:00Z] warning: x",
        "INFO:2024-03-01 10:00:00:x",
        "[   12.345678] usb 1-1: new device",
        "1709251200.123 x",
        "10:00:00 x",
        "3월  1 10:00:00 host x",
        "24/03/01 10:00:00 INFO x",
        "03-01 10:00:00.123  12 34 E tag: x",
        "I0301 10:00:00.123456 1 x.cc:1] x",
        "<13>Mar  1 10:00:00 host x",
        "2024-13-01 10:00:00 x",
    ],
)
def test_times_of_logs(line: str) -> None:
    own = passages(f"{line}\n  and more\n" * 100, "a.log")
    assert len(own) > 1
    assert [o["line"] for _, o in own] == sorted({o["line"] for _, o in own})  # type: ignore[type-var]
    assert all(text.startswith(line) for text, _ in own)


@pytest.mark.parametrize(
    ("line", "date"),
    [
        ("2024-03-01 10:00:00,123 INFO x", "2024-03-01T10:00:00.123"),
        ("2024-03-01T10:00:00.123456789+09:00 x", "2024-03-01T10:00:00.123456789+09:00"),
        ("2024-03-01T10:00:00+0900 host x", "2024-03-01T10:00:00+09:00"),
        ("<34>1 2024-03-01T10:00:00.003Z host app - x", "2024-03-01T10:00:00.003Z"),
        ("2024/03/01 10:00:00 [error] 1#1: x", "2024-03-01T10:00:00"),
        ("2024-03-01 10:00 x", "2024-03-01T10:00:00"),
        ("2024-03-01 배포", "2024-03-01"),
        ("20240301 10:00:00 x", "2024-03-01T10:00:00"),
        ("2024-03-01 10:00:00.5+09 x", "2024-03-01T10:00:00.5+09:00"),
        ("Fri Mar  1 10:00:00 KST 2024 x", "2024-03-01T10:00:00"),
        ("[2024-03-01 10:00:00] [경고] x", "2024-03-01T10:00:00"),
        ("[오류] 2024-03-01 10:00:00 x", "2024-03-01T10:00:00"),
        ("[ERROR] 2024-03-01 10:00:00 x", "2024-03-01T10:00:00"),
        ("INFO  | 2024-03-01 10:00:00 | x", "2024-03-01T10:00:00"),
        ("2024년 3월 1일 10:00:00 x", "2024-03-01T10:00:00"),
        ("2024. 3. 1. 오후 2:00:00 x", "2024-03-01T14:00:00"),
        ("2024-03-01 오전 12:05:00 x", "2024-03-01T00:05:00"),
        ("2024-03-01 02:00:00 PM x", "2024-03-01T14:00:00"),
        (
            '1.2.3.4 - - [01/Mar/2024:10:00:00 +0900] "GET / HTTP/1.1" 200 1',
            "2024-03-01T10:00:00+09:00",
        ),
        ("01-Mar-2024 10:00:00.123 SEVERE [main] x", "2024-03-01T10:00:00.123"),
        ("[Fri Mar 01 10:00:00.5 2024] [core:error] x", "2024-03-01T10:00:00.5"),
        ("Mar 01, 2024 10:00:00 AM org.x", "2024-03-01T10:00:00"),
        ('{"level": "error", "time": "2024-03-01T10:00:00Z"}', "2024-03-01T10:00:00Z"),
        ("level=info time=2024-03-01T10:00:00Z x", "2024-03-01T10:00:00Z"),
        ("I, [2024-03-01T10:00:00.1 #1]  INFO -- : x", "2024-03-01T10:00:00.1"),
    ],
)
def test_the_date_of_an_entry_is_one_that_filters_compare(line: str, date: str) -> None:
    (only,) = passages(f"{line}\n  at f()\n", "a.log")
    assert only[1]["date"] == date


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("E0301 10:00:00.1 1 x.cc:1] x", "error"),
        ("[2024-03-01 10:00:00] [경고] 디스크", "warning"),
        ('{"ts": "2024-03-01", "level": "fatal"}', "critical"),
        ("2024-03-01 10:00:00 INFO no error", "info"),
    ],
)
def test_levels_of_entries(line: str, level: str) -> None:
    assert passages(f"{line}\n", "a.log")[0][1]["level"] == level


@pytest.mark.parametrize(
    "line",
    ["  at foo(Bar.java:1)", "Caused by: x", "Traceback (most recent call last):", "1.2.3.4"],
)
def test_what_follows_an_entry_begins_none(line: str) -> None:
    log = f"2024-03-01 10:00:00 x\n{line}\n" * 60
    assert all(text.startswith("2024") for text, _ in passages(log, "a.log"))


def test_a_log_without_times_is_one_passage_without_colors() -> None:
    assert passages("\x1b[31mred\x1b[0m text\nmore", "a.log") == [("red text\nmore", {})]


# Subtitles


def test_subtitles_are_sentences_with_their_time() -> None:
    srt = (
        "1\n00:00:01,000 --> 00:00:02,500\nWe open\nat <i>nine</i>.\n\n"
        "2\n00:00:02,600 --> 00:00:04,000 X1:0 Y1:0\n- Really?\n- {\\an8}Yes &amp; no.\n\n"
        "3\n01:00:00,000 --> 01:00:01,000\n한 시간 뒤.\n"
    )
    assert passages(srt, "a.srt") == [
        ("We open at nine.\n- Really?\n- Yes & no.", {"start_s": 1.0, "end_s": 4.0}),
        ("한 시간 뒤.", {"start_s": 3600.0, "end_s": 3601.0}),
    ]
    vtt = (
        "WEBVTT - x\n\nNOTE a comment\n\nSTYLE\n::cue { color: red }\n\nintro\n"
        "00:01.000 --> 00:02.000 align:start\n<v.loud Mina>Hello <00:01.500><c>there</c>.\n\n"
        "00:02.000 --> 00:03.000\nBye.\n"
    )
    assert passages(vtt, "a.vtt") == [("Mina: Hello there. Bye.", {"start_s": 1.0, "end_s": 3.0})]


def test_many_cues_become_passages_that_end_with_sentences() -> None:
    cue = "{0}\n00:{1:02}:{2:02},000 --> 00:{1:02}:{2:02},900\nSentence {0} goes\non and ends.\n\n"
    srt = "".join(cue.format(n, n // 60, n % 60) for n in range(1, 300))
    own = passages(srt, "a.srt")
    assert len(own) < 60
    assert all(text.endswith("ends.") for text, _ in own)
    for text, o in own:
        first = int(text.split()[1])
        assert o["start_s"] == float(first)
        assert o["end_s"] == pytest.approx(first + text.count("ends.") - 0.1)


@pytest.mark.parametrize(
    ("data", "text", "start_s", "end_s"),
    [
        ("1\r\n0:0:1,5 --> 0:0:2\r\na\r\n2\r\n0:0:3.0-->0:0:4\r\nb\r\n", "a b", 1.5, 4.0),
        ("\ufeff00:00:01,000 --> 00:00:02,000\na\n\n00:00:03,000 --> 00:00:04,000\nb\n",
         "a b", 1.0, 4.0),
        ("1\n00:00:01,000 --> 00:00:02,000\na\n\nstill a\n\n2\n00:00:03,000 --> 00:00:04,000\nb",
         "a still a b", 1.0, 4.0),
        ("1\n00:00:01,000 --> 00:00:05,000\na\n\n2\n00:00:03,000 --> 00:00:04,000\nb\n",
         "a b", 1.0, 5.0),
        ("1\n00:00:01,000 --> 00:00:02,000\n42\n\n2\n00:00:03,000 --> 00:00:04,000\nb\n",
         "42 b", 1.0, 4.0),
        ("1\n00:00:05,000 --> 00:00:02,000\n5 < 6 <b>> 4</b>\\Nb {\\an8}\n",
         "5 < 6 > 4 b", 5.0, 5.0),
    ],
)  # fmt: skip
def test_untidy_cues_lose_nothing(data: str, text: str, start_s: float, end_s: float) -> None:
    assert passages(data, "a.srt") == [(text, {"start_s": start_s, "end_s": end_s})]


def test_the_language_of_webvtt_is_noted() -> None:
    vtt = "WEBVTT - x\nKind: captions\nLanguage: ko\n\n00:01.000 --> 00:02.000\n안녕\n\nNOTE no\n"
    assert metadata(vtt, "a.vtt") == {"language": "ko"}
    assert [text for text, _ in passages(vtt, "a.vtt")] == ["안녕"]


def test_untidy_subtitles() -> None:
    assert "no cues" in refusal(b"just text", "a.srt")
    twice = "00:01.000 --> 00:02.000\nsame\n\n00:02.000 --> 00:03.000\nsame\n"
    assert passages(twice, "a.vtt") == [("same", {"start_s": 1.0, "end_s": 3.0})]


ASS = """\ufeff[Script Info]
; made by hand
Title: 안내 방송
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname
Style: Default,Arial

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 1,0:01:00.50,0:01:02.25,Default,Mina,0,0,0,,Yes, {\\i1}nine{\\i0}, and{a note} {no end
Dialogue: 0,0:00:01.00,0:00:02.50,Default,,0,0,0,,{\\an8\\fad(1,2)}문은\\N아홉 시에\\h엽니다.
Comment: 0,0:00:03.00,0:00:04.00,Default,,0,0,0,,not shown
Dialogue: 0,0:00:05.00,0:00:06.00,Default,,0,0,0,,{\\p1}m 0 0 l 100 0{\\p0}
Dialogue: 0,0:00:02.50,0:00:03.00,Default,,0,0,0,karaoke,문은 아홉 시에 엽니다.
"""


def test_substation_alpha_is_sorted_by_time_without_drawings_and_comments() -> None:
    assert passages(ASS, "a.ass") == [
        ("문은 아홉 시에 엽니다.", {"start_s": 1.0, "end_s": 3.0}),
        ("Mina: Yes, nine, and {no end", {"start_s": 60.5, "end_s": 62.25}),
    ]
    assert metadata(ASS, "a.ass")["title"] == "안내 방송"
    ssa = (
        "[Events]\nFormat: Marked, Start, End, Style, Name, MarginL, MarginV, Effect, Text\n"
        "Dialogue: Marked=0,1:00:00.00,1:00:01.00,Default,NTP,0000,0000,,Bye.\n"
    )
    assert passages(ssa, "a.ssa") == [("NTP: Bye.", {"start_s": 3600.0, "end_s": 3601.0})]
    assert passages(ssa, "upload")[0][1].keys() == set()
    assert "Dialogue: 0,0:00:01.00" in refusal(b"[Script Info]\nTitle: x\n", "a.ass")
    assert "Dialogue" in refusal(b"Dialogue: 0,soon,later,Default,,0,0,0,,x", "a.ass")


# Fields of JSON


def chosen(content: list[str] | None, metadata_: list[str] | None = None) -> LoadOptions:
    return LoadOptions(json=JsonOptions(content_fields=content, metadata_fields=metadata_))


ITEMS = (
    '[{"id": 1, "doc": {"title": "One", "body": "Text."}, "tags": ["x", "y"], "a.b": 5, "n": null},'
    ' {"id": 2, "doc": {"body": "More."}, "tags": []}]'
)


@pytest.mark.parametrize(
    ("content", "own", "expected"),
    [
        (["doc.title", "doc.body"], ["id"],
         [("One\n\nText.", {"item": 1, "id": 1}), ("More.", {"item": 2, "id": 2})]),
        (["/doc/body"], ["tags[1]", "doc.title"],
         [("Text.", {"item": 1, "tags[1]": "x", "doc.title": "One"}), ("More.", {"item": 2})]),
        (["a.b", "tags"], None, [("5\n\nx, y", {"item": 1})]),
        (["doc"], None, [("title: One\nbody: Text.", {"item": 1}), ("body: More.", {"item": 2})]),
        (None, ["doc", "n", "a.b"],
         [("id: 1\ntags: x, y",
           {"item": 1, "doc": '{"title": "One", "body": "Text."}', "a.b": 5}),
          ("id: 2", {"item": 2, "doc": '{"body": "More."}'})]),
    ],
)  # fmt: skip
def test_fields_of_json_are_chosen_by_paths(
    content: list[str] | None, own: list[str] | None, expected: list[PASSAGE]
) -> None:
    if own == ["doc", "n", "a.b"]:
        message = refusal(ITEMS.encode(), "a.json", options=chosen(content, own))
        assert "'n', which nothing in the document has" in message
        own = ["doc", "a.b"]
        expected = [(f"{expected[0][0]}", expected[0][1]), expected[1]]
    assert passages(ITEMS, "a.json", chosen(content, own)) == expected


NESTED = (
    '[{"a.b": {"c.d": 5}, "by": [{"name": "Kim", "of": ["x"]}, {"name": "Lee"}],'
    ' "m": [[1, 2], [3]], "parts": [{"body": "One.\\nTwo."}, {"body": "Three."}]}]'
)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("a.b.c.d", "5"),
        ("/a.b/c.d", "5"),
        ("$.by[2].name", "Lee"),
        (".by[2].name", "Lee"),
        ("by.name", "Kim, Lee"),
        ("by[].name", "Kim, Lee"),
        ("by[*].name", "Kim, Lee"),
        ("by.of", "x"),
        ("by.1.name", "Kim"),
        ("/by/1/name", "Lee"),
        ("m[1][2]", "2"),
        ("m[1]", "1, 2"),
        ("parts.body", "One.\nTwo.\n\nThree."),
    ],
)
def test_paths_reach_every_field(path: str, text: str) -> None:
    (only,) = passages(NESTED, "a.json", chosen([path]))
    assert only[0] == text


@pytest.mark.parametrize(
    "path", ["by[0].name", "by[3]", "by.nope", "a.b.c", "m[1][2][3]", "[", "$"]
)
def test_paths_that_lead_nowhere_are_named(path: str) -> None:
    assert repr(path) in refusal(NESTED.encode(), "a.json", options=chosen([path]))


NAMES = st.text("ab.[1]/$ 가", min_size=1, max_size=4)
VALUES: st.SearchStrategy[object] = st.recursive(
    st.integers(0, 99) | st.sampled_from(["x", "y z", True]),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.dictionaries(NAMES, inner, min_size=1, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@example({"a": {"$.": 0, "$": {"1": 0}}})
@given(st.dictionaries(st.text("ab가", min_size=1, max_size=3), VALUES, min_size=1, max_size=4))
def test_what_a_text_of_json_shows_can_be_chosen(value: dict[str, object]) -> None:
    for line in passages(json.dumps(value), "a.json")[0][0].split("\n"):
        path, _, shown = line.rpartition(": ")
        (only,) = passages(json.dumps(value), "a.json", chosen([path]))
        assert shown in only[0]


def test_elements_without_a_text_are_named_in_a_warning() -> None:
    lines = '{"t": "a", "k": 1}\n{"k": 2}\n{"t": "", "k": 3}\n{"k": 4}\n{"k": 5}\n{"t": "b"}\n'
    loaded = read(lines.encode(), "a.jsonl", options=chosen(["t"], ["k"]))
    assert [passage.metadata for passage in loaded.passages] == [{"line": 1, "k": 1}, {"line": 6}]
    (warning,) = loaded.warnings
    assert "line 2, 3, 4 and 1 more left out" in warning
    assert read(lines.encode(), "a.jsonl", options=chosen(["t", "k"])).warnings == ()


def test_numbers_that_are_too_exact_stay_as_they_are_written() -> None:
    data = '{"text": "t", "p": 0.12345678901234567890, "z": 1e-400, "e": 1E5, "d": 0.1, "n": 1e999}'
    assert passages(data, "a.json") == [
        ("t", {"p": "0.12345678901234567890", "z": "1e-400", "e": 1e5, "d": 0.1, "n": "1e999"})
    ]


def test_fields_of_lines_are_chosen_too_and_missing_ones_are_named() -> None:
    lines = '{"q": "a", "r": "b"}\n{"q": "c"}\n'
    assert passages(lines, "a.jsonl", chosen(["r", "q"])) == [
        ("b\n\na", {"line": 1}), ("c", {"line": 2}),
    ]  # fmt: skip
    message = refusal(lines.encode(), "a.jsonl", options=chosen(["question"]))
    assert "'question', which nothing in the document has. Its fields are 'q', 'r'" in message


# Source code


@pytest.mark.parametrize("suffix", FORMATS["source code"].suffixes)
def test_every_language_has_a_name_and_is_split_within_its_size(suffix: str) -> None:
    """Separators of LangChain may be expressions, or missing."""
    code = "".join(
        f"// {n}\nclass A{n} {{\n  def f{n}(x) {{\n    return x + {n};\n  }}\n}}\n\n"
        for n in range(20)
    )
    loaded = read(code.encode(), f"a{suffix}")
    language = loaded.metadata["programming_language"]
    assert isinstance(language, str)
    assert all(isinstance(sign, str) for sign in code_separators(language))
    pieces = list(split(loaded, Splitter(type=SplitterType.CODE, chunk_size=60, chunk_overlap=0)))
    assert all(len(piece.text) <= 60 for piece in pieces)
    assert all(f"f{n}(x)" in "".join(piece.text for piece in pieces) for n in range(20))
