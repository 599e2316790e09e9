"""What every request passes first: rate, site, key, size and time, and the headers that every answer bears."""

import asyncio
import contextlib
import logging
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamingvlm.serving.config import Limits, ServerConfig
from streamingvlm.serving.keys import KeyRing, is_own_page, names_this_machine, presented_key
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.rates import AddressRates
from streamingvlm.serving.refusals import Refusal, error_body

log = logging.getLogger(__name__)

OPEN_PATHS = ("/", "/health", "/ready", "/favicon.ico")
OPEN_FOLDERS = ("/static/", "/sample/")
"""The page asks for the key itself; nothing in these is anybody's own."""

_LINGER_S = 5.0
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}


class Gate:
    """Stands before the application and turns away what it shall not see."""

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: Metrics):
        self._app, self._config, self._metrics = app, config, metrics
        self._keys = KeyRing(config.api_keys)
        self._rates = AddressRates(config.limits.requests_per_s, config.limits.burst_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Serve a request, or refuse it in one line."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        answer = _Answer(scope, receive, send, self._config.limits.send_s)
        try:
            scope.setdefault("state", {})["owner"] = self._admit(scope)
            if scope["type"] == "http":
                receive = _bounded(receive, _body_limit(scope, self._config.limits), self._config.limits.request_s)
                _check_announced_length(scope, self._config.limits)
            await self._app(scope, receive, answer.send)
        except Refusal as refusal:
            self._metrics.refused.labels(str(refusal.status_code)).inc()
            await _refuse(scope, receive, answer.send, refusal)
        except _NotTakenError:
            log.info("a client does not take its answer", extra={"path": scope["path"]})
        finally:
            self._metrics.requests.labels(scope.get("method", "WEBSOCKET"), str(answer.status)).inc()
            answer.log()

    def _admit(self, scope: Scope) -> str:
        """Let in and return whose request it is. Raises Refusal."""
        headers = Headers(scope=scope)
        bucket = self._rates.of((scope.get("client") or ("unknown",))[0])
        if retry_after_s := bucket.take():
            raise Refusal(429, "too many requests from this address; slow down", retry_after_s=retry_after_s)
        if self._keys.is_open and not names_this_machine(headers.get("host", "")):
            raise Refusal(403, "without a key this server answers to localhost alone; start it with one")
        if scope.get("method") not in _SAFE_METHODS and not is_own_page(headers):
            raise Refusal(403, "pages of other sites may not use this server; send the request from its own page")
        owner = self._keys.owner(presented_key(headers, scope.get("subprotocols", [])))
        if owner is None and not _is_open(scope["path"]):
            raise Refusal(401, "the key is missing or wrong; send it as the header Authorization: Bearer KEY")
        return owner or ""


def _is_open(path: str) -> bool:
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def _body_limit(scope: Scope, limits: Limits) -> int:
    path = scope["path"]
    if path == "/v1/chat/completions":
        return limits.max_clip_bytes
    return limits.max_frame_bytes if path.endswith("/frames") else limits.max_body_bytes


def _check_announced_length(scope: Scope, limits: Limits):
    announced, most = Headers(scope=scope).get("content-length", "0"), _body_limit(scope, limits)
    if announced.isascii() and announced.isdigit() and int(announced) > most:
        raise _too_large(most)


def _too_large(most: int) -> Refusal:
    return Refusal(413, f"the request is larger than {most} bytes; send less at a time")


def _bounded(receive: Receive, max_bytes: int, within_s: float) -> Receive:
    """Receive a body of at most so many bytes, all of it within a time; afterwards wait for ever."""
    num_bytes, is_whole = 0, False
    deadline_s = time.monotonic() + within_s

    async def bounded() -> Message:
        nonlocal num_bytes, is_whole
        if is_whole:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline_s - time.monotonic()))
        except TimeoutError:
            raise Refusal(408, f"the request was not whole within {within_s:g} s; send it again") from None
        num_bytes += len(message.get("body", b""))
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        is_whole = not message.get("more_body", False)
        return message

    return bounded


async def _refuse(scope: Scope, receive: Receive, send: Send, refusal: Refusal):
    """Answer with the refusal; a WebSocket is answered before it opens, as any request."""
    body = error_body(refusal.status_code, refusal.detail)
    await JSONResponse(body, refusal.status_code, refusal.headers)(scope, receive, send)


class _NotTakenError(Exception):
    """A client has left a piece of its answer lying for too long."""


class _Answer:
    """One answer on its way out: given its headers, sent piece by piece in time, and logged when it is done."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, send_s: float):
        self._scope, self._receive, self._send, self._send_s = scope, receive, send, send_s
        self._started_s = time.monotonic()
        self.status = 0

    async def send(self, message: Message):
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if self.status == 413:
                headers["connection"] = "close"
        elif message["type"] == "websocket.accept":
            self.status = 101
        elif self.status == 413 and not message.get("more_body", False):
            await self._send_in_time({**message, "more_body": True})
            await self._pass_by()
            message = {"type": message["type"], "body": b""}
        await self._send_in_time(message)

    async def _send_in_time(self, message: Message):
        try:
            await asyncio.wait_for(self._send(message), self._send_s)
        except TimeoutError:
            raise _NotTakenError from None

    async def _pass_by(self):
        """Read what is left of the request, for a while, and let it go.

        A connection closed while its client still sends is reset, and what the client had not read yet of the answer
        is lost with it (RFC 9112, section 9.6).
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await self._receive()).get("more_body", False):
                    pass

    def log(self):
        path = urlsplit(self._scope["path"]).path
        level = logging.DEBUG if path in OPEN_PATHS or path.endswith("/frames") else logging.INFO
        log.log(
            level,
            "request",
            extra={
                "method": self._scope.get("method", "WEBSOCKET"),
                "path": path,
                "status": self.status,
                "duration_ms": round((time.monotonic() - self._started_s) * 1000, 1),
                "client": (self._scope.get("client") or ("unknown",))[0],
                "owner": self._scope.get("state", {}).get("owner", ""),
            },
        )
