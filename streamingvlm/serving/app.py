"""The server as an ASGI application: routes behind the gate."""

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
from streamingvlm.serving.config import ServerConfig
from streamingvlm.serving.gate import Gate
from streamingvlm.serving.gateway import Gateway
from streamingvlm.serving.hub import Hub
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.places import Resolve, resolve_host
from streamingvlm.serving.refusals import FaultBody, error_body, refusal_of
from streamingvlm.serving.routes import chat, commentary, frames, operations, page, sessions
from streamingvlm.serving.streams import Streams
from streamingvlm.serving.webrtc import Cameras

log = logging.getLogger(__name__)


def create_app(streams: Streams, config: ServerConfig, *, resolve_name: Resolve = resolve_host) -> FastAPI:
    """The application. resolve_name: how names become addresses, where it is not the system's way."""
    metrics = Metrics()
    app = session_app(Hub(streams, config, metrics, resolve_name=resolve_name))
    app.include_router(page.router)
    app.mount("/static", page.static)
    app.add_middleware(Gate, config=config, metrics=metrics)
    return app


def session_app(hub: Hub) -> FastAPI:
    """All that a program may ask of a hub, before anybody stands at the gate."""
    app = plain_app(_lifespan)
    app.state.hub = hub
    app.state.cameras = Cameras(hub.config.ice_servers)
    for part in (operations, sessions, frames, commentary, chat):
        app.include_router(part.router)
    return app


def plain_app(lifespan: Lifespan[FastAPI]) -> FastAPI:
    """An application that answers nothing yet, and tells whatever fails in one line."""
    refused = {"default": {"model": FaultBody, "description": "Not served; the message is one line"}}
    app = FastAPI(title="streamingvlm", lifespan=lifespan, docs_url=None, redoc_url=None, responses=refused)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(StreamingVLMError, _impossible)
    app.add_exception_handler(Exception, _failed)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    hub: Hub = app.state.hub
    sweeping = asyncio.create_task(hub.run())
    try:
        async with AsyncExitStack() as stack:
            if hub.config.allowed.hosts:
                hub.gateway = await stack.enter_async_context(Gateway(hub.addresses))
            yield
    finally:
        sweeping.cancel()
        await app.state.cameras.close()
        await hub.close()
        await asyncio.gather(sweeping, return_exceptions=True)


async def _refused(_: Request, error: HTTPException) -> JSONResponse:
    return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    return JSONResponse(error_body(400, _first_fault(error)), 400)


async def _impossible(request: Request, error: StreamingVLMError) -> JSONResponse:
    return await _refused(request, refusal_of(error))


async def _failed(request: Request, error: Exception) -> JSONResponse:
    log.error("a request failed", exc_info=error, extra={"path": request.url.path})
    return JSONResponse(error_body(500, "the server failed; its log tells more"), 500)


def _first_fault(error: RequestValidationError) -> str:
    """The first of the faults in one line: where, and what was expected.

    Where a value may be of several kinds, each has its fault: the deepest is of the kind that was meant.
    """
    faults = error.errors()
    fault = max(faults, key=lambda fault: len(fault["loc"]))
    if fault["type"] == "json_invalid":
        return "the request is no JSON; send one object"
    place = ".".join(str(part) for part in fault["loc"][1:])  # the first says in which part of the request
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{place or 'the request'}: {message[:1].lower()}{message[1:]}{more}"
