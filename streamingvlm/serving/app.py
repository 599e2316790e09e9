"""The ASGI application of the server: routes behind ``RequestMiddleware``."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Lifespan

from streamingvlm.errors import StreamingVLMError
from streamingvlm.serving.access_policy import Resolver, resolve_host
from streamingvlm.serving.api_errors import ErrorBody, error_body, to_api_error
from streamingvlm.serving.egress_proxy import EgressProxy
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.request_middleware import RequestMiddleware
from streamingvlm.serving.routes import chat, commentary, frames, operations, page, sessions
from streamingvlm.serving.server_config import ServerConfig
from streamingvlm.serving.session_manager import SessionManager
from streamingvlm.serving.stream_pool import StreamPool
from streamingvlm.serving.webrtc import WebRTCPeers

log = logging.getLogger(__name__)


def create_app(pool: StreamPool, config: ServerConfig, *, resolve_name: Resolver = resolve_host) -> FastAPI:
    """Return the application of a standalone server. resolve_name: DNS lookup, replaced by tests."""
    metrics = Metrics()
    app = session_app(SessionManager(pool, config, metrics, resolve_name=resolve_name))
    app.include_router(page.router)
    app.mount("/static", page.static)
    app.add_middleware(RequestMiddleware, config=config, metrics=metrics)
    return app


def session_app(manager: SessionManager) -> FastAPI:
    """Return the API of a session manager, without authentication."""
    app = base_app(_lifespan)
    app.state.manager = manager
    app.state.webrtc_peers = WebRTCPeers(manager.config.ice_servers)
    for part in (operations, sessions, frames, commentary, chat):
        app.include_router(part.router)
    return app


def base_app(lifespan: Lifespan[FastAPI]) -> FastAPI:
    """Return an application without routes, whose errors are all one-line messages in JSON."""
    responses = {"default": {"model": ErrorBody, "description": "Error; the message is one line"}}
    app = FastAPI(title="streamingvlm", lifespan=lifespan, docs_url=None, redoc_url=None, responses=responses)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(StreamingVLMError, _on_library_error)
    app.add_exception_handler(Exception, _on_unexpected_error)
    return app


_NO_JSON = "the body is not one JSON object in UTF-8; send it uncompressed, with Content-Type: application/json"
# Messages of FastAPI and Starlette that lack the remedy.
_FRAMEWORK_MESSAGES = {
    "There was an error parsing the body": _NO_JSON,
    "Not Found": "there is nothing at {path}; docs/serving.md lists the addresses",
    "Method Not Allowed": "{method} is not allowed at {path}; see the Allow header",
}


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    manager: SessionManager = app.state.manager
    sweeping = asyncio.create_task(manager.run())
    try:
        async with AsyncExitStack() as stack:
            if manager.config.allowed.hosts:
                manager.egress_proxy = await stack.enter_async_context(EgressProxy(manager.hosts))
            yield
    finally:
        sweeping.cancel()
        await app.state.webrtc_peers.close()
        await manager.close()
        await asyncio.gather(sweeping, return_exceptions=True)


async def _on_http_error(request: Request, error: HTTPException) -> JSONResponse:
    message = str(error.detail)
    if message in _FRAMEWORK_MESSAGES:
        message = _FRAMEWORK_MESSAGES[message].format(method=request.method, path=request.url.path[:100])
    return JSONResponse(error_body(error.status_code, message), error.status_code, error.headers)


async def _on_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse(error_body(400, _first_error(error)), 400)


async def _on_library_error(request: Request, error: StreamingVLMError) -> JSONResponse:
    return await _on_http_error(request, to_api_error(error))


async def _on_unexpected_error(request: Request, error: Exception) -> JSONResponse:
    log.error("request failed", exc_info=error, extra={"path": request.url.path})
    return JSONResponse(error_body(500, "the server failed; see its log"), 500)


def _first_error(error: RequestValidationError) -> str:
    """Return one validation error as a line: the field and what was expected.

    A field that accepts several types has an error for each; the deepest is of the type that the client meant.
    """
    errors = error.errors()
    deepest = max(errors, key=lambda one: (len(one["loc"]), one["type"] != "string_type"))
    is_whole_body = tuple(deepest["loc"]) == ("body",) and deepest["type"] != "value_error"
    if is_whole_body or deepest["type"] == "json_invalid":
        return _NO_JSON
    field = ".".join(str(part) for part in deepest["loc"][1:])  # the first is "body", "query" or "path"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    message = str(deepest["msg"]).removeprefix("Value error, ")
    return f"{field or 'the request'}: {message[:1].lower()}{message[1:]}{more}"
