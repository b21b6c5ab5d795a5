"""Clients that are slow, many, or speak no HTTP are cut off, and nobody else notices them."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from conftest_serve import Running, application, listen

from luthier.errors import CallError, MachineError
from luthier.reporting import Silent
from luthier.serve import ending, listening
from luthier.serve.doors import Limits

ASK: dict[str, Any] = {"model": "base", "messages": [{"role": "user", "content": "150 Pierce Rd"}], "temperature": 0, "max_tokens": 4}
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LIMITS = replace(Limits(), header_s=0.6, body_s=0.6, write_s=0.6, connections=40)


@pytest.fixture(scope="module")
def hurried(tiny_model: Path, adapters: Path) -> Iterator[Running]:
    """A server with deadlines of less than a second."""
    app = application(tiny_model, adapters, slots=4, queue=64)
    app.limits = LIMITS
    found, thread = listen(app, adapters)
    found.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what a client does not read is soon too much
    yield found
    found.server.should_exit = True
    thread.join(timeout=30)


def connect(running: Running) -> socket.socket:
    host, port = running.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def said(one: socket.socket) -> bytes:
    """All that the server says until it closes the connection."""
    pieces = []
    try:
        while piece := one.recv(1 << 16):
            pieces.append(piece)
    except ConnectionResetError:
        pass
    return b"".join(pieces)


def first_answer(one: socket.socket) -> bytes:
    """One answer, by its own length."""
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer.partition(b"\r\n\r\n")[2]) < int(answer.lower().partition(b"content-length: ")[2].split()[0]):
        piece = one.recv(1 << 16)
        assert piece, answer
        answer += piece
    return answer


def trickle(one: socket.socket, data: bytes, every_s: float) -> None:
    """A byte at a time, until the server has had enough."""
    try:
        for place in range(len(data)):
            one.sendall(data[place : place + 1])
            time.sleep(every_s)
    except OSError:
        pass


def error_of(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["code"]


def open_connections(running: Running) -> int:
    return len(running.server.server_state.connections)


@pytest.mark.parametrize(
    ("begin", "rest", "expected"),
    [
        (b"", b"", (408, "request_too_slow")),
        (b"", HEAD, (408, "request_too_slow")),
        (HEAD + b"Content-Length: 900\r\n\r\n", b" " * 900, (408, "body_too_slow")),
    ],
    ids=["says nothing", "slow headers", "slow body"],
)
def test_slow_clients_are_cut_off_at_their_deadline_beside_others(hurried: Running, begin: bytes, rest: bytes, expected: tuple[int, str]) -> None:
    slow = [connect(hurried) for _ in range(12)]
    senders = [threading.Thread(target=trickle, args=(one, rest, 0.05)) for one in slow]
    for one, sender in zip(slow, senders, strict=True):
        one.sendall(begin)
        sender.start()
    with hurried.client() as client:
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
    answers = [said(one) for one in slow]
    for one in slow:
        one.close()
    for sender in senders:
        sender.join()
    assert {error_of(answer) for answer in answers} == {expected}


def test_a_client_that_does_not_read_its_stream_is_cut_off_and_frees_its_slot(hurried: Running) -> None:
    answering: Any = hurried.app.app.state.server.answering  # type: ignore[attr-defined]
    # Enough for the buffers of both ends: log-probabilities make the answer long.
    stream = {**ASK, "max_tokens": 60, "n": 2, "stream": True, "logprobs": True, "top_logprobs": 20, "logit_bias": {"2": -100, "0": -100}}
    body = json.dumps(stream).encode()
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    host, port = hurried.url.removeprefix("http://").split(":")
    one.connect((host, int(port)))
    one.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    with hurried.client() as client:
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
        latest = time.monotonic() + 30
        while answering.in_flight and time.monotonic() < latest:
            time.sleep(0.05)
        assert answering.in_flight == 0
        while open_connections(hurried) > 1 and time.monotonic() < latest:
            time.sleep(0.05)
    assert open_connections(hurried) <= 1
    one.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /health\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100, 400),
        (b"NO HTTP AT ALL\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 120 + b"\r\n", 431),
        (b"GET /health?" + b"x" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nnot a chunk\r\n\r\n", 400),
        (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (HEAD + b"Content-Length: minus\r\n\r\n", 400),
        (HEAD + b"Content-Length: 2000000\r\n\r\n" + b" " * 70_000, 413),
        (HEAD + b"Expect: nothing\r\nContent-Length: 2\r\n\r\n{}", 400),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-1\r\nConnection: close\r\n\r\n", 200),
        (b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 200),
    ],
    ids=["HTTP/0.9", "TLS", "no HTTP", "no host", "large header", "many headers", "long path", "no chunk", "two lengths", "no length", "large body",
         "expect", "range", "websocket"],
)  # fmt: skip
def test_bad_http_is_answered_in_openais_shape(hurried: Running, sent: bytes, status: int) -> None:
    one = connect(hurried)
    one.sendall(sent)
    answer = first_answer(one)
    one.close()
    assert int(answer.split()[1]) == status, answer
    if status >= 400:
        assert error_of(answer)[0] == status


def test_requests_behind_each_other_are_answered_in_turn(hurried: Running) -> None:
    one = connect(hurried)
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    one.sendall(request + b"\r\n" + request + b"\r\n" + request + b"Connection: close\r\n\r\n")
    assert said(one).count(b"HTTP/1.1 200") == 3
    one.close()


def test_more_connections_than_there_may_be_are_refused_and_room_comes_back(hurried: Running) -> None:
    latest = time.monotonic() + 20
    while open_connections(hurried) and time.monotonic() < latest:
        time.sleep(0.05)
    flood = [connect(hurried) for _ in range(60)]
    answers = [said(one) for one in flood]
    for one in flood:
        one.close()
    assert sorted({error_of(answer) for answer in answers}) == [(408, "request_too_slow"), (503, "overloaded")]
    assert len([answer for answer in answers if error_of(answer)[0] == 503]) == 20
    assert all(b"retry-after: 1" in answer for answer in answers if error_of(answer)[0] == 503)
    with hurried.client() as client:
        assert client.get("/health").status_code == 200


def test_a_body_that_breaks_off_is_no_fault_of_the_server(hurried: Running, caplog: pytest.LogCaptureFixture) -> None:
    one = connect(hurried)
    one.sendall(HEAD + b"Content-Length: 900\r\n\r\n{")
    one.close()
    with hurried.client() as client:
        latest = time.monotonic() + 10
        while '"499"' not in (text := client.get("/metrics").text) and time.monotonic() < latest:
            time.sleep(0.05)
    assert 'status="499"' in text
    assert 'status="500"' not in text
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    home = tmp_path_factory.mktemp("tls")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(home / "key.pem"), "-out", str(home / "cert.pem")]
    subprocess.run(made, check=True, capture_output=True)
    return home / "cert.pem", home / "key.pem"


def test_https_with_a_certificate_and_its_key(tiny_model: Path, adapters: Path, certificate: tuple[Path, Path]) -> None:
    app, open_socket = application(tiny_model, adapters), listening.listen("127.0.0.1", 0)
    server = listening.server(app, listening.tls(*certificate))
    thread = threading.Thread(target=server.run, args=([open_socket],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = open_socket.getsockname()[1]
    with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=ssl.create_default_context(cafile=str(certificate[0]))) as client:
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
    server.should_exit = True
    thread.join(timeout=30)


def test_a_bad_key_and_a_port_in_use_are_told_before_anything_listens(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    good, key = certificate
    other, missing = tmp_path / "other.pem", tmp_path / "missing.pem"
    other.write_text("no key")
    for cert, own in [(good, other), (other, key), (good, missing), (key, good)]:
        with pytest.raises(CallError, match="cannot be used for TLS"):
            listening.tls(cert, own)
    with pytest.raises(CallError, match="go together"):
        listening.tls(good, None)
    assert listening.tls(None, None) is None
    taken = listening.listen("127.0.0.1", 0)
    taken.listen()
    with pytest.raises(MachineError, match="cannot listen"):
        listening.listen("127.0.0.1", taken.getsockname()[1])
    taken.close()


def test_a_second_signal_ends_a_server_that_is_still_answering(tiny_model: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "ONE_WISH_SECONDS", 0.2)
    app, open_socket = application(tiny_model, adapters), listening.listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{open_socket.getsockname()[1]}"
    answering: Any = app.app.state.server.answering  # type: ignore[attr-defined]
    taken = threading.Event()
    monkeypatch.setattr(answering, "submit", lambda jobs: taken.set())  # an answer that never comes
    first_s: list[float] = []

    def ask() -> None:
        with contextlib.suppress(httpx.TransportError):
            httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=60)

    def end() -> None:
        assert taken.wait(20)
        first_s.append(time.monotonic())
        for pause in (0.05, 0.5, 0):  # the second within a moment is the same wish, the third is not
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(pause)

    threads = [threading.Thread(target=work) for work in (ask, end)]
    open_socket.listen()
    for thread in threads:
        thread.start()
    listening.answer(app, open_socket)
    took = time.monotonic() - first_s[0]
    for thread in threads:
        thread.join(10)
    answering.stop(10)
    assert 0.4 < took < 10  # the drain takes 30 s


def test_a_signal_that_comes_before_the_server_runs_is_not_lost(tiny_model: Path, adapters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, too_late = uvicorn.Server.run, threading.Event()

    def run(server: uvicorn.Server, sockets: Any = None) -> None:
        def give_up() -> None:
            too_late.set()
            server.should_exit = True

        watch = threading.Timer(20, give_up)
        watch.start()
        signal.raise_signal(signal.SIGTERM)
        plain(server, sockets)
        watch.cancel()

    monkeypatch.setattr(uvicorn.Server, "run", run)
    listening.answer(application(tiny_model, adapters), listening.listen("127.0.0.1", 0))
    assert not too_late.is_set()


def test_the_address_is_said_once_it_can_be_asked(tiny_model: Path, adapters: Path) -> None:
    open_socket = listening.listen("127.0.0.1", 0)
    port, reached = open_socket.getsockname()[1], []

    class Asks(Silent):
        def say(self, line: str) -> None:
            reached.append(socket.create_connection(("127.0.0.1", port), timeout=5))
            signal.raise_signal(signal.SIGTERM)

    listening.answer(application(tiny_model, adapters), open_socket, announced=["serving on"], reporter=Asks())
    assert len(reached) == 1
    reached[0].close()


def test_a_port_that_another_took_meanwhile_is_named(tiny_model: Path, adapters: Path) -> None:
    ours, theirs = listening.listen("127.0.0.1", 0), socket.socket()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        theirs.bind(ours.getsockname())
        theirs.listen()
        with pytest.raises(MachineError, match=rf"127\.0\.0\.1:{ours.getsockname()[1]}: cannot listen there"):
            listening.answer(application(tiny_model, adapters), ours)
