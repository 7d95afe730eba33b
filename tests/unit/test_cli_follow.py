"""Parsing of Server-Sent Events."""

from sluice import Event
from sluice.events import EventParser


def events(*chunks: bytes) -> list[Event]:
    parser = EventParser()
    return [event for chunk in chunks for event in parser.feed(chunk)]


def test_events_may_arrive_in_any_pieces() -> None:
    stream = 'id: 1-0\nevent: token\ndata: {"text": "여권"}\n\n: ping\n\nevent: end\ndata: {}\n\n'
    whole = events(stream.encode())
    assert [(event.id, event.event, event.data) for event in whole] == [
        ("1-0", "token", {"text": "여권"}),
        ("1-0", "end", {}),
    ]
    assert events(*(bytes([byte]) for byte in stream.encode())) == whole


def test_carriage_returns_and_several_data_lines() -> None:
    [event] = events(b'event:state\r\ndata: {"a":\r\ndata: 1}\r\n\r\n')
    assert (event.event, event.data) == ("state", {"a": 1})


def test_line_separators_inside_the_data_do_not_split_it() -> None:
    [event] = events('event: token\ndata: {"text": "a\u2028b\u0085c"}\n\n'.encode())
    assert event.data == {"text": "a\u2028b\u0085c"}


def test_an_unfinished_event_is_none() -> None:
    assert events(b'event: end\ndata: {"id"') == []


def test_data_that_is_no_object_is_kept() -> None:
    [event] = events(b"event: token\ndata: hello\n\n")
    assert event.data == {"value": "hello"}
