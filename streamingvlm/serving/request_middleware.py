"""ASGI middleware for every request: rate limit, origin, API key, size and time limits, and security headers."""

import asyncio
import contextlib
import logging
import math
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamingvlm.serving.api_errors import ApiError, error_body
from streamingvlm.serving.auth import ApiKeys, is_loopback_host, is_same_origin, presented_key
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.rate_limits import AddressRateLimiter
from streamingvlm.serving.server_config import ServerConfig, ServerLimits

log = logging.getLogger(__name__)

PUBLIC_PATHS = ("/", "/health", "/ready", "/favicon.ico")
PUBLIC_FOLDERS = ("/static/", "/sample/")
"""Served without a key: the page asks for the key itself, and none of this belongs to a user."""

_LINGER_S = 5.0
_MAX_JSON_VALUES = 50_000
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_KNOWN_METHODS = frozenset({*_SAFE_METHODS, "POST", "PATCH", "PUT", "DELETE", "WEBSOCKET"})
_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}


class RequestMiddleware:
    """Passes authorized requests to the application and refuses all others; sets ``scope["state"]["owner"]``."""

    def __init__(self, app: ASGIApp, config: ServerConfig, metrics: Metrics):
        self._app, self._config, self._metrics = app, config, metrics
        self._keys = ApiKeys(config.api_keys)
        rates = config.limits.requests_per_s, config.limits.burst_requests
        self._rates, self._refused_rates = AddressRateLimiter(*rates), AddressRateLimiter(*rates)

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        """Handle one request or WebSocket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        limits = self._config.limits
        response = _Response(scope, receive, send, limits.send_s)
        try:
            scope.setdefault("state", {})["owner"] = self._authorize(scope)
            if scope["type"] == "http":
                max_values = math.inf if _is_frame(scope) else _MAX_JSON_VALUES
                receive = _limit_body(receive, _max_body_bytes(scope, limits), max_values, limits.request_s)
                _check_content_length(scope, limits)
            await self._app(scope, receive, response.send)
        except ApiError as error:
            self._metrics.rejected.labels(str(error.status_code)).inc()
            await _reject(scope, receive, response.send, error)
        except _SendTimeoutError:
            log.info("a client does not read its response", extra={"path": scope["path"]})
        finally:
            self._metrics.requests.labels(_method_label(scope), str(response.status)).inc()
            response.log()

    def _authorize(self, scope: Scope) -> str:
        """Return the owner id of a request, "" on a public path without a key. Raises ApiError.

        Requests without a key take from a bucket of their own: they cannot use up that of a user behind one address.
        """
        address = (scope.get("client") or ("unknown",))[0]
        try:
            owner = self._owner(scope)
        except ApiError:
            _take(self._refused_rates, address)
            raise
        _take(self._rates if owner else self._refused_rates, address)
        return owner

    def _owner(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        if self._keys.is_empty and not is_loopback_host(headers.get("host", "")):
            raise ApiError(403, "without a key this server answers on localhost only; start it with a key")
        if scope.get("method") not in _SAFE_METHODS and not is_same_origin(headers):
            raise ApiError(403, "pages of other sites may not use this server; send the request from its own page")
        owner = self._keys.owner(presented_key(headers, scope.get("subprotocols", [])))
        if owner is None and not _is_public(scope["path"]):
            raise ApiError(401, "the API key is missing or wrong; send it in the header Authorization: Bearer KEY")
        return owner or ""


def _method_label(scope: Scope) -> str:
    """Return the method, or "other" for one that a client made up: each label is a series that stays in memory."""
    method = scope.get("method", "WEBSOCKET")
    return method if method in _KNOWN_METHODS else "other"


def _take(rates: AddressRateLimiter, address: str):
    if retry_after_s := rates.take(address):
        raise ApiError(429, "too many requests from this address; slow down", retry_after_s=retry_after_s)


def _is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS)


def _max_body_bytes(scope: Scope, limits: ServerLimits) -> int:
    path = scope["path"]
    if path == "/v1/chat/completions":
        return limits.max_clip_bytes
    return limits.max_frame_bytes if _is_frame(scope) else limits.max_body_bytes


def _is_frame(scope: Scope) -> bool:
    return scope["method"] == "POST" and scope["path"].endswith("/frames")


def _check_content_length(scope: Scope, limits: ServerLimits):
    length, most = Headers(scope=scope).get("content-length", "0"), _max_body_bytes(scope, limits)
    if length.isascii() and length.isdigit() and int(length) > most:
        raise _too_large(most)


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the request is larger than {most} bytes; send less at a time")


def _limit_body(receive: Receive, max_bytes: int, max_values: float, timeout_s: float) -> Receive:
    """Wrap ``receive``: raise ApiError for a body that is too large or not complete in time; no limit afterwards.

    max_values: of commas and opening brackets. JSON of many small values takes minutes to parse, in the event loop;
    base64 has none of these characters.
    """
    num_bytes, num_values, is_complete = 0, 0, False
    deadline_s = time.monotonic() + timeout_s

    async def limited() -> Message:
        nonlocal num_bytes, num_values, is_complete
        if is_complete:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, deadline_s - time.monotonic()))
        except TimeoutError:
            raise ApiError(408, f"the request was not complete within {timeout_s:g} s; send it again") from None
        body = message.get("body", b"")
        num_bytes, num_values = num_bytes + len(body), num_values + sum(map(body.count, (b",", b"[", b"{")))
        if num_bytes > max_bytes:
            raise _too_large(max_bytes)
        if num_values > max_values:
            raise ApiError(413, f"the request has more than {max_values:,} values; send fewer at a time")
        is_complete = not message.get("more_body", False)
        return message

    return limited


async def _reject(scope: Scope, receive: Receive, send: Send, error: ApiError):
    """Send the error; a WebSocket gets it as the HTTP response to its handshake."""
    body = error_body(error.status_code, error.detail)
    await JSONResponse(body, error.status_code, error.headers)(scope, receive, send)


class _SendTimeoutError(Exception):
    """The client did not read a piece of its response in time."""


class _Response:
    """Sends one response: adds the security headers, limits the time of each send, and logs the request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, timeout_s: float):
        self._scope, self._receive, self._send, self._timeout_s = scope, receive, send, timeout_s
        self._started_at_s = time.monotonic()
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
            await self._discard_body()
            message = {"type": message["type"], "body": b""}
        await self._send_in_time(message)

    async def _send_in_time(self, message: Message):
        try:
            await asyncio.wait_for(self._send(message), self._timeout_s)
        except TimeoutError:
            raise _SendTimeoutError from None

    async def _discard_body(self):
        """Read and discard the rest of the request, for a limited time.

        If the connection is closed while the client still sends, TCP resets it, and the client may lose the part of
        the response that it has not read yet (RFC 9112, section 9.6).
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await self._receive()).get("more_body", False):
                    pass

    def log(self):
        path = urlsplit(self._scope["path"]).path
        level = logging.DEBUG if path in PUBLIC_PATHS or path.endswith("/frames") else logging.INFO
        log.log(
            level,
            "request",
            extra={
                "method": self._scope.get("method", "WEBSOCKET"),
                "path": path,
                "status": self.status,
                "duration_ms": round((time.monotonic() - self._started_at_s) * 1000, 1),
                "client": (self._scope.get("client") or ("unknown",))[0],
                "owner": self._scope.get("state", {}).get("owner", ""),
            },
        )
