"""A Chroma that does not answer, or answers in drops: an error after the settings' time."""

import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from shared.config import Settings
from shared.errors import Permanent, Unavailable
from workers.retrieval.stores.chroma import Chroma

IDENTITY = b'{"user_id": "", "tenant": "default_tenant", "databases": ["default_database"]}'


def answer(length: int) -> bytes:
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
        b"content-length: " + str(length).encode() + b"\r\n\r\n"
    )


def say_nothing(connection: socket.socket, ended: threading.Event) -> None:
    ended.wait()
    connection.close()


def drip(connection: socket.socket, ended: threading.Event) -> None:
    """A body that comes for ever, a blank at a time."""
    with connection:
        connection.recv(65536)
        connection.sendall(answer(10**9))
        while not ended.wait(0.005):
            try:
                connection.sendall(b" ")
            except OSError:
                return


def stop_after_the_greeting(connection: socket.socket, ended: threading.Event) -> None:
    """Answers who it is, so that the client is made, and nothing from then on."""
    with connection:
        connection.recv(65536)
        connection.sendall(answer(len(IDENTITY)) + IDENTITY)
        ended.wait()


def answering(status: int) -> Callable[[socket.socket, threading.Event], None]:
    """A proxy before Chroma."""

    def behave(connection: socket.socket, ended: threading.Event) -> None:
        del ended
        with connection:
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 %d No\r\ncontent-length: 7\r\nconnection: close\r\n\r\nno, no." % status
            )

    return behave


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    ended = threading.Event()
    threads: list[threading.Thread] = []
    sockets: list[socket.socket] = []

    def start(behave: Callable[[socket.socket, threading.Event], None]) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                thread = threading.Thread(target=behave, args=(connection, ended))
                threads.append(thread)
                thread.start()

        threads.append(threading.Thread(target=accept))
        threads[-1].start()
        return f"chroma://127.0.0.1:{server.getsockname()[1]}"

    yield start
    ended.set()
    for open_socket in sockets:
        open_socket.shutdown(socket.SHUT_RDWR)
        open_socket.close()
    for thread in list(threads):
        thread.join()


@pytest.mark.parametrize("behave", [say_nothing, drip, stop_after_the_greeting])
@pytest.mark.parametrize("call", ["make", "delete", "id_page", "drop"])
def test_no_call_waits_for_ever(
    serve: Callable[..., str], behave: Callable[[socket.socket, threading.Event], None], call: str
) -> None:
    url = serve(behave)
    store = Chroma(Settings(_env_file=None, request_timeout_s=0.2), url)
    calls: dict[str, Callable[[], object]] = {
        "make": lambda: store.make("documents", "cosine"),
        "delete": lambda: store.delete("documents", ["a"]),
        "id_page": lambda: store.id_page("documents", limit=10, offset=0),
        "drop": lambda: store.drop("documents"),
    }

    with pytest.raises(Unavailable, match="SLUICE_VECTORS_URL"):
        calls[call]()


def test_what_a_proxy_refuses_is_told_with_its_status(serve: Callable[..., str]) -> None:
    kinds: dict[int, type[Exception]] = {401: Permanent, 413: Permanent, 502: Unavailable}
    for status, kind in kinds.items():
        url = serve(answering(status)).replace("://", "://me:s3cret@")
        store = Chroma(Settings(_env_file=None), url)
        with pytest.raises(kind, match="SLUICE_VECTORS_URL") as raised:
            store.make("documents", "cosine")
        assert f"{status}" in str(raised.value)
        assert "no, no." in str(raised.value)
        assert "s3cret" not in str(raised.value)
