"""Clients that break every rule beside an undisturbed session: nothing hangs, nothing leaks."""

import json
import random
import socket
import struct
import time
from urllib.parse import urlsplit

import httpx
import pytest
from running_server import KEY, OTHER_KEY, PATIENCE_S
from undisturbed_session import undisturbed
from websockets.exceptions import ConnectionClosed, InvalidStatus

LIMITS = {"max_sessions": 8, "max_frame_bytes": 100_000, "request_s": 2.0, "max_frame_pixels": 640 * 480}
RULES = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def server(serving, pitch, match_jpegs):
    """A server with an undisturbed session; afterwards it accepts sessions as before."""
    with serving(api_keys=(KEY, OTHER_KEY), limits=LIMITS) as running:
        with undisturbed(running, pitch, match_jpegs, OTHER_KEY):
            yield running
        assert running.http.get("/ready").status_code == 200
        assert running.http.post("/v1/sessions", json={}).status_code == 201


def raw(server) -> socket.socket:
    """A raw connection."""
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S)


def damaged(jpeg: bytes, chance: random.Random) -> bytes:
    """A damaged frame."""
    data = bytearray(struct.pack(">d", chance.choice([0.0, 1e300, -1.0, float("nan"), chance.random()])) + jpeg)
    for _ in range(chance.randrange(1, 30)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: chance.randrange(len(data))]) if chance.random() < 0.5 else bytes(data)


def test_malformed_and_oversized_frames(server, match_jpegs):
    chance = random.Random(7)
    session = server.open()
    for size in (0, 1, 7, 8, 9, 100_001, 300_000):
        response = server.http.post(f"/v1/sessions/{session}/frames", content=b"\xff\xd8" + bytes(size))
        assert response.status_code == (400 if size < 100_000 else 413)
    for _ in range(12):
        with server.socket(f"/v1/sessions/{session}/frames", additional_headers=RULES) as pusher:
            try:
                for _ in range(15):
                    text = chance.random() < 0.2
                    pusher.send('{"type": [}' if text else damaged(chance.choice(match_jpegs), chance))
                pusher.send(bytes(200_000))
                while True:
                    assert json.loads(pusher.recv(timeout=PATIENCE_S))["type"] == "error"
            except ConnectionClosed:
                continue


def test_wrong_keys_on_every_path(server):
    session = server.open()
    keys = ("", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", "Bearer " + "\xff" * 20, f"Bearer {KEY} {KEY}", "x" * 5000)
    with httpx.Client(base_url=server.url, timeout=PATIENCE_S) as stranger:
        for key in keys:
            for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/questions"), ("GET", "/commentary")):
                headers = {"Authorization": key.encode("latin-1")}
                response = stranger.request(method, f"/v1/sessions/{session}{path}", headers=headers)
                assert response.status_code in (401, 429, 431)
    for path in ("frames", "commentary"):
        with pytest.raises(InvalidStatus), server.socket(f"/v1/sessions/{session}/{path}"):
            pass
    mine = server.http.get(f"/v1/sessions/{session}")
    assert mine.json()["status"] == "live"


def test_connections_that_are_reset(server, match_jpegs):
    """In the middle of a request, of a body, of a handshake, of an answer, of a stream."""
    session = server.open()
    head = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    beginnings = [
        "GET /v1/sess",
        f"POST /v1/sessions HTTP/1.1\r\n{head}Content-Length: 1000\r\n\r\n{{",
        f"POST /v1/sessions/{session}/frames HTTP/1.1\r\n{head}Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        f"GET /v1/sessions/{session}/commentary HTTP/1.1\r\n{head}\r\n",
        f"GET /v1/sessions/{session}/commentary HTTP/1.1\r\n{head}{upgrade}Sec-WebSocket-Key: x\r\n\r\n",
        f"GET /v1/sessions/{session}/frames HTTP/1.1\r\n{head}{upgrade}"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n\x82\x7f",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]
    for _ in range(5):
        for beginning in beginnings:
            with raw(server) as connection:
                # Reset instead of closed: the server gets no FIN.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(beginning.encode("latin-1"))
                time.sleep(0.01)
    deadline_s = time.monotonic() + PATIENCE_S
    while server.http.get(f"/v1/sessions/{session}").json()["num_listeners"]:
        assert time.monotonic() < deadline_s, "a listener that left is still counted"
        time.sleep(0.1)


def test_slow_clients(server, match_jpegs):
    """Bodies byte by byte, and responses that are not read: other clients are not delayed."""
    session = server.open()
    head = f"Host: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    slow = [raw(server) for _ in range(10)]
    deaf = [raw(server) for _ in range(10)]
    for connection in slow:
        connection.sendall(f"POST /v1/sessions HTTP/1.1\r\n{head}Content-Length: 50\r\n\r\n".encode())
    for connection in deaf:
        connection.sendall(f"GET /v1/sessions/{session}/commentary HTTP/1.1\r\n{head}\r\n".encode())
    for _ in range(4):
        for connection in slow:
            connection.sendall(b"x")
        time.sleep(0.2)
    assert server.http.get("/v1/models").status_code == 200
    answers = [connection.recv(1000) for connection in slow]
    assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
    for connection in slow + deaf:
        connection.close()
