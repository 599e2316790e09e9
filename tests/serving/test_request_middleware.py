"""Keys, origins, rates and sizes of requests; security headers of responses."""

import asyncio
import base64
import json
import re
import socket
import time

import httpx
import pytest
from running_server import KEY, OTHER_KEY, error_of
from websockets.exceptions import InvalidStatus

from streamingvlm.serving.logs import JsonFormatter
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.request_middleware import RequestMiddleware
from streamingvlm.serving.server_config import ServerConfig, ServerLimits


@pytest.fixture(scope="module")
def locked(serving):
    with serving(api_keys=(KEY, OTHER_KEY)) as server:
        yield server


def with_key(server, key):
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=60)


@pytest.mark.parametrize("key", [None, "x", KEY[:-1], KEY + "x", KEY.upper(), "ä" * 20])
@pytest.mark.parametrize(
    "path", ["/v1/sessions", "/v1/models", "/v1/settings", "/metrics", "/openapi.json", "/nothing"]
)
def test_without_the_key_requests_are_refused(locked, key, path):
    headers = {} if key is None else {"Authorization": f"Bearer {key}".encode()}
    response = httpx.get(locked.url + path, headers=headers)
    assert response.status_code == 401
    assert "key is missing or wrong" in error_of(response)


@pytest.mark.parametrize("path", ["/", "/health", "/ready", "/static/page.js", "/sample/match.txt"])
def test_the_page_and_health_need_no_key(locked, path):
    assert httpx.get(locked.url + path).status_code == 200


def test_a_path_below_a_public_folder_cannot_escape(locked):
    with socket.create_connection(("127.0.0.1", httpx.URL(locked.url).port)) as raw:
        raw.sendall(b"GET /static/../v1/sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert re.match(rb"HTTP/1.1 40[14]", raw.makefile("rb").read())


def test_a_session_belongs_to_the_key_that_made_it(locked):
    session = locked.open()
    with with_key(locked, OTHER_KEY) as other:
        assert other.get("/v1/sessions").json()["data"] == []
        for method, path in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/finish"),
            ("GET", "/commentary"),
            ("GET", "/frame"),
        ):
            response = other.request(method, f"/v1/sessions/{session}{path}")
            assert response.status_code == 404
            assert error_of(response) == error_of(other.get("/v1/sessions/ses_that_never_was"))
    assert [entry["id"] for entry in locked.http.get("/v1/sessions").json()["data"]] == [session]
    assert locked.http.delete(f"/v1/sessions/{session}").status_code == 204


def test_a_socket_accepts_the_key_as_header_or_subprotocol(locked):
    session = locked.open()
    path = f"/v1/sessions/{session}/commentary"
    offered = base64.urlsafe_b64encode(KEY.encode()).decode().rstrip("=")
    with locked.socket(path, additional_headers={"Authorization": f"Bearer {KEY}"}):
        pass
    with locked.socket(path, subprotocols=["streamingvlm", f"streamingvlm.key.{offered}"]) as opened:
        assert opened.subprotocol == "streamingvlm"
    for wrong in (
        {},
        {"subprotocols": ["streamingvlm", "streamingvlm.key.d3Jvbmc"]},
        {"subprotocols": ["streamingvlm.key.%"]},
    ):
        with pytest.raises(InvalidStatus, match="401"), locked.socket(path, **wrong):
            pass


def test_guessing_keys_is_rate_limited(serving):
    with serving(api_keys=(KEY,), limits={"requests_per_s": 0.1, "burst_requests": 5}) as server:
        statuses = [
            httpx.get(server.url + "/v1/models", headers={"Authorization": "Bearer guess"}).status_code
            for _ in range(8)
        ]
        assert statuses[0] == 401
        assert statuses[-1] == 429


def test_the_rate_limit_sets_retry_after(serving):
    with serving(limits={"requests_per_s": 0.5, "burst_requests": 5}) as server:
        responses = [server.http.get("/health") for _ in range(7)]
        assert [response.status_code for response in responses] == [200] * 5 + [429] * 2
        assert 1 <= int(responses[-1].headers["Retry-After"]) <= 2
        assert "slow down" in error_of(responses[-1])


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.7", "[::2]", ""]
)
def test_without_a_key_another_name_for_this_machine_is_refused(server, host):
    response = server.http.get("/v1/sessions", headers={"Host": host})
    assert response.status_code in (400, 403)
    if response.status_code == 403:
        assert "localhost" in error_of(response)


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "127.8.8.8", "[::1]:80"])
def test_without_a_key_this_machine_is_served(server, host):
    assert server.http.get("/v1/sessions", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost", "http://127.0.0.1:1"])
def test_pages_of_other_sites_are_refused(server, origin):
    session = server.open()
    response = server.http.post("/v1/sessions", json={}, headers={"Origin": origin})
    assert response.status_code == 403
    assert "other sites" in error_of(response)
    with pytest.raises(InvalidStatus, match="403"), server.socket(f"/v1/sessions/{session}/commentary", origin=origin):
        pass
    assert server.http.delete(f"/v1/sessions/{session}").status_code == 204


def test_its_own_page_is_served(server):
    response = server.http.post("/v1/sessions", json={}, headers={"Origin": server.url})
    assert response.status_code == 201


def test_no_response_has_cors_headers(server):
    for response in (
        server.http.get("/v1/models", headers={"Origin": "https://evil.example"}),
        server.http.options("/v1/sessions", headers={"Origin": "https://evil.example"}),
    ):
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert response.headers["cross-origin-resource-policy"] == "same-origin"


def test_the_page_allows_its_own_files_only(server):
    policy = server.http.get("/").headers["content-security-policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == "'self'"
    assert "unsafe" not in policy
    page = server.http.get("/").text
    assert not re.search(r"https?://(?!camera\.example)", page.replace("http://www.w3.org", ""))
    assert not re.search(r"<script>|<style>| style=| on\w+=", page)


def test_the_api_may_not_be_framed_or_sniffed(server):
    headers = server.http.get("/v1/models").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path, most",
    [("/v1/sessions", "max_body_bytes"), ("/v1/chat/completions", "max_clip_bytes"), ("frames", "max_frame_bytes")],
)
@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_a_body_beyond_its_limit_is_refused(serving, path, most, announced):
    with serving(limits={most: 5000}) as server:
        if path == "frames":
            path = f"/v1/sessions/{server.open()}/frames"
        body = b" " * 6000
        response = server.http.post(path, content=body if announced else iter([body[:3000], body[3000:]]))
        assert response.status_code == 413
        assert error_of(response) == "the request is larger than 5000 bytes; send less at a time"
        assert server.http.get("/health").status_code == 200


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "chunked"])
def test_an_error_reaches_a_client_that_reads_only_after_sending(serving, announced):
    piece, num_pieces = b" " * 50_000, 40
    length = b"Content-Length: %d" % (len(piece) * num_pieces) if announced else b"Transfer-Encoding: chunked"
    frame = (lambda data: data) if announced else (lambda data: b"%x\r\n%b\r\n" % (len(data), data))
    with (
        serving(limits={"max_body_bytes": 5000}) as server,
        socket.create_connection(("127.0.0.1", httpx.URL(server.url).port), timeout=30) as raw,
    ):
        raw.sendall(b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\n" + length + b"\r\n\r\n")
        for _ in range(num_pieces):
            raw.sendall(frame(piece))
            time.sleep(0.01)
        raw.sendall(b"" if announced else b"0\r\n\r\n")
        answer = raw.makefile("rb").read()
    assert b"413" in answer.split(b"\r\n")[0]
    assert b"send less at a time" in answer


def test_a_body_has_a_timeout(serving):
    with serving(limits={"request_s": 0.3}) as server:
        with socket.create_connection(("127.0.0.1", httpx.URL(server.url).port)) as raw:
            raw.sendall(
                b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nConnection: close\r\n\r\n{"
            )
            raw.settimeout(30)
            answer = raw.makefile("rb").read()
        assert b"408" in answer.split(b"\r\n")[0]
        assert b"not complete within 0.3 s" in answer


@pytest.mark.parametrize(
    "body, told",
    [
        (b"{", "JSON"),
        (b"[]", "the body is not one JSON object"),
        (b'{"query": 3}', "query"),
        (b'{"query": "\\ud800"}', "query"),
        (b'{"colour": "red"}', "colour"),
        (b'{"source": {"push": true, "file": "a"}}', "give one of"),
        (b'{"source": {}}', "give one of"),
        (b'{"lag": "hurry"}', "lag"),
        (b'{"sampling": {"temperature": -1}}', "sampling.temperature"),
        (b'{"cache": {"vision_window_s": NaN}}', "vision_window_s"),
        (b'{"cache": {"vision_window_s": 17}}', "more than this server gives"),
        (b'{"sampling": {"max_new_tokens": 21}}', "more than this server gives"),
        (b"[" * 50_000, "the body is not one JSON object"),
        (b"\xff\xfe", ""),
        (b'{"query": "' + b"x" * 9000 + b'"}', "query"),
    ],
)
def test_an_invalid_request_is_reported_in_one_line(server, body, told):
    response = server.http.post("/v1/sessions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400, response.text
    assert told in error_of(response)


@pytest.mark.parametrize("path", ["/nothing", "/v1/sessions/ses_none", "/static/none.js", "/static/%2e%2e/app.py"])
def test_an_unknown_path_is_reported_in_one_line(server, path):
    response = server.http.get(path)
    assert response.status_code == 404
    assert error_of(response)


def test_a_wrong_method_is_reported_in_one_line(server):
    response = server.http.put("/v1/sessions")
    assert response.status_code == 405
    assert error_of(response)


def test_a_client_that_does_not_read_is_disconnected():
    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    taken = []

    async def full_after_three(message):
        taken.append(message)
        await asyncio.sleep(0 if len(taken) < 4 else 3600)

    scope = {"type": "http", "method": "GET", "path": "/health", "headers": [(b"host", b"localhost")]}
    gate = RequestMiddleware(endless, ServerConfig(limits=ServerLimits(send_s=0.1)), Metrics())
    asyncio.run(asyncio.wait_for(gate(scope, None, full_after_three), 30))
    assert len(taken) == 4


def test_metrics_count_rejected_requests(serving):
    with serving(api_keys=(KEY,)) as server:
        httpx.get(server.url + "/v1/models")
        metrics = server.http.get("/metrics").text
        assert 'streamingvlm_requests_rejected_total{status="401"} 1.0' in metrics
        assert "process_resident_memory_bytes" in metrics


def test_logs_are_one_object_a_line(serving, caplog):
    with serving() as server, caplog.at_level("INFO"):
        server.http.get("/v1/models", params={"secret": "1"})
        deadline_s = time.monotonic() + 10
        while not (requests := [record for record in caplog.records if record.getMessage() == "request"]):
            assert time.monotonic() < deadline_s
    entry = json.loads(JsonFormatter().format(requests[-1]))
    assert (entry["method"], entry["path"], entry["status"], entry["client"]) == ("GET", "/v1/models", 200, "127.0.0.1")
    assert "secret" not in JsonFormatter().format(requests[-1])
