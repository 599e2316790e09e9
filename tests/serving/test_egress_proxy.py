"""Real requests through the egress proxy to a real web server."""

import asyncio
import contextlib
import http.server
import socket
import threading
from urllib.parse import urlsplit

import httpx
import pytest
from running_server import MATCH, error_of

from streamingvlm.errors import ConfigError
from streamingvlm.serving.access_policy import HostPolicy
from streamingvlm.serving.egress_proxy import EgressProxy
from streamingvlm.serving.server_config import AllowedSources

PUBLIC = "93.184.215.14"


class Site(http.server.BaseHTTPRequestHandler):
    """Gives the bundled match, and redirects to wherever it is asked to."""

    protocol_version = "HTTP/1.1"
    asked: list

    def do_GET(self):
        self.asked.append((self.path, dict(self.headers)))
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if self.path == "/list.m3u8":
            entries = "".join(f"#EXTINF:4,\n{url}\n" for url in self.server.segments)
            self.answer(
                f"#EXTM3U\n#EXT-X-TARGETDURATION:4\n{entries}#EXT-X-ENDLIST\n".encode(), "application/x-mpegURL"
            )
        else:
            self.answer(MATCH.read_bytes(), "video/mp4")

    def answer(self, body, kind):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    handler = type("Asked", (Site,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads, server.segments = True, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.asked, server.port = handler.asked, server.server_port
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class Names:
    """A resolver whose answers a test decides, one after the other."""

    def __init__(self, **answers):
        self.answers = {name.replace("_", "."): list(addresses) for name, addresses in answers.items()}
        self.asked = []

    def __call__(self, host, port):
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(-2, "Name or service not known")
        answers = self.answers[host]
        return [answers[0] if len(answers) == 1 else answers.pop(0)]


@contextlib.contextmanager
def gateway(names, *hosts):
    """Run a proxy in a thread of its own; gives its URL."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    way = EgressProxy(HostPolicy(AllowedSources(hosts=hosts), names))
    asyncio.run_coroutine_threadsafe(way.__aenter__(), loop).result(30)
    try:
        yield way.url
    finally:
        asyncio.run_coroutine_threadsafe(way.__aexit__(None, None, None), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def get(proxy, url, **options):
    with httpx.Client(proxy=proxy, timeout=30, trust_env=False) as client:
        return client.get(url, **options)


def test_an_allowed_host_is_reached_at_the_address_that_was_checked(site):
    names = Names(camera_example=["127.0.0.1"])
    with gateway(names, "camera.example") as proxy:
        response = get(proxy, f"http://camera.example:{site.port}/match.mp4", headers={"Range": "bytes=100-"})
        assert response.content == MATCH.read_bytes()[100:]
    path, headers = site.asked[0]
    assert path == "/match.mp4"
    assert headers["Host"] == f"camera.example:{site.port}"
    assert not [name for name in headers if name.lower().startswith("proxy")]
    assert names.asked == ["camera.example"]


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://[::1]:{port}/",
        "http://other.example:{port}/",
        "http://169.254.169.254/",
        "http://2130706433:{port}/",
    ],
)
def test_other_hosts_are_not_reached_even_by_a_redirect(site, target):
    target = target.format(port=site.port)
    names = Names(camera_example=["127.0.0.1"], other_example=["127.0.0.1"], localhost=["127.0.0.1"])
    with gateway(names, "camera.example", "*") as proxy:
        assert get(proxy, target).status_code in (400, 403)
        assert site.asked == []
        first = f"http://camera.example:{site.port}/to/{target}"
        assert get(proxy, first, follow_redirects=True).status_code in (400, 403)
        assert len(site.asked) == 1


def test_a_name_is_checked_at_every_connection(site):
    names = Names(fickle_example=[PUBLIC, "127.0.0.1"])
    addresses = HostPolicy(AllowedSources(hosts=("*",)), names)
    addresses.check_url(f"http://fickle.example:{site.port}/")
    with gateway(names, "*") as proxy:
        assert get(proxy, f"http://fickle.example:{site.port}/").status_code == 403
    assert site.asked == []


def test_the_proxy_requires_its_password(site):
    with gateway(Names(camera_example=["127.0.0.1"]), "camera.example") as proxy:
        parts = urlsplit(proxy)
        for user in ("", "gateway:wrong@"):
            stranger = f"http://{user}127.0.0.1:{parts.port}"
            assert get(stranger, f"http://camera.example:{site.port}/").status_code == 407
    assert site.asked == []


def test_tls_goes_through_to_allowed_hosts_alone(site):
    with gateway(Names(camera_example=["127.0.0.1"], private_example=["10.0.0.1"]), "camera.example", "*") as proxy:
        parts = urlsplit(proxy)
        for host, status in (("camera.example", b"200"), ("private.example", b"403"), ("127.0.0.1", b"403")):
            with socket.create_connection(("127.0.0.1", parts.port)) as raw:
                import base64

                password = base64.b64encode(f"{parts.username}:{parts.password}".encode()).decode()
                raw.sendall(
                    f"CONNECT {host}:{site.port} HTTP/1.1\r\nProxy-Authorization: Basic {password}\r\n\r\n".encode()
                )
                answer = raw.recv(4096)
                assert answer.split()[1] == status
                if status == b"200":
                    raw.sendall(b"GET /match.mp4 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    assert raw.makefile("rb").read().endswith(MATCH.read_bytes()[-1000:])


@pytest.mark.parametrize("head", [b"", b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01" * 50 + b"\r\n\r\n", b"x" * 70_000])
def test_an_invalid_request_closes_the_connection(head):
    with gateway(Names(), "*") as proxy, socket.create_connection(("127.0.0.1", urlsplit(proxy).port)) as raw:
        try:
            raw.sendall(head)
            raw.shutdown(socket.SHUT_WR)
            answer = raw.makefile("rb").read()
        except ConnectionError:
            answer = b""
    assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 502"))


def test_no_proxy_is_refused(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ConfigError, match="no_proxy"):
        asyncio.run(EgressProxy(HostPolicy(AllowedSources())).__aenter__())


@pytest.fixture
def watching(serving, monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)

    def start(names, *hosts):
        from streamingvlm.config import LiveConfig

        live = LiveConfig(retry_for_s=0.1, open_timeout_s=20)
        return serving(allowed=AllowedSources(hosts=hosts), resolve_name=names, live=live)

    return start


def test_a_session_watches_an_allowed_address(watching, site):
    with watching(Names(camera_example=["127.0.0.1"]), "camera.example") as server:
        url = f"http://user:secret@camera.example:{site.port}/match.mp4"
        session = server.open(source={"url": url}, lag="wait")
        assert server.wait_for(session, 3)["source"] == f"http://***@camera.example:{site.port}/match.mp4"
        server.http.delete(f"/v1/sessions/{session}")
        lines, _ = server.lines(session)
        assert [line["start_s"] for line in lines] == list(range(len(lines)))
    assert all(headers["Host"] == f"camera.example:{site.port}" for _, headers in site.asked)


def test_a_session_follows_a_redirect_to_an_allowed_host(watching, site):
    names = Names(camera_example=["127.0.0.1"], other_example=["127.0.0.1"])
    with watching(names, "camera.example", "other.example") as server:
        url = f"http://camera.example:{site.port}/to/http://other.example:{site.port}/match.mp4"
        server.wait_for(server.open(source={"url": url}, lag="wait"), 1)


@pytest.mark.parametrize("path", ["to/http://127.0.0.1:{port}/match.mp4", "to/http://private.example:{port}/match.mp4"])
def test_a_session_does_not_follow_a_redirect_to_a_private_address(watching, site, path):
    names = Names(camera_example=["127.0.0.1"], private_example=["127.0.0.1"])
    with watching(names, "camera.example", "*") as server:
        url = f"http://camera.example:{site.port}/{path.format(port=site.port)}"
        response = server.http.post("/v1/sessions", json={"source": {"url": url}})
        assert response.status_code == 400
        assert "cannot be opened" in error_of(response)
    assert all(path.startswith("/to/") for path, _ in site.asked)


def test_a_playlist_reaches_allowed_hosts_only(watching, site):
    names = Names(camera_example=["127.0.0.1"], private_example=["127.0.0.1"])
    with watching(names, "camera.example", "*") as server:
        site.segments = [f"http://private.example:{site.port}/segment.mp4"]
        response = server.http.post(
            "/v1/sessions", json={"source": {"url": f"http://camera.example:{site.port}/list.m3u8"}}
        )
        assert response.status_code == 400
        assert {path for path, _ in site.asked} == {"/list.m3u8"}


def test_an_address_that_is_not_allowed_is_refused_at_once(watching, site):
    with watching(Names(private_example=["10.0.0.1"]), "*.example") as server:
        for host in ("private.example", "127.0.0.1", "elsewhere.test"):
            response = server.http.post("/v1/sessions", json={"source": {"url": f"http://{host}:{site.port}/"}})
            assert response.status_code == 403
            assert host in error_of(response)
    assert site.asked == []
