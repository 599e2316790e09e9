"""The application that clients connect to: the page and API of a standalone server, forwarded to the replicas.

The routes for frames and commentary are those of a standalone server, because a `RemoteSession` has the interface of a
session.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from streamingvlm.serving.api_errors import error_body
from streamingvlm.serving.api_requests import SessionRequest
from streamingvlm.serving.app import base_app
from streamingvlm.serving.chat_completions import as_sse
from streamingvlm.serving.fleet.fleet import Fleet
from streamingvlm.serving.fleet.merged_metrics import merge_expositions
from streamingvlm.serving.fleet.remote_session import RemoteSession
from streamingvlm.serving.fleet.replica_client import UnreachableError
from streamingvlm.serving.metrics import CONTENT_TYPE
from streamingvlm.serving.request_middleware import RequestMiddleware
from streamingvlm.serving.routes import commentary, frames, manager_of, operations, owner_of, page, session_of

_FORWARDED_HEADERS = ("content-type", "retry-after", "x-accel-buffering")

router = APIRouter()
Session = Annotated[RemoteSession, Depends(session_of)]


def create_frontend(fleet: Fleet) -> FastAPI:
    """Return the application of the frontend."""
    app = base_app(_lifespan)
    app.state.manager = fleet
    for part in (router, operations.health_router, frames.router, commentary.router, page.router):
        app.include_router(part)
    app.mount("/static", page.static)
    app.add_middleware(RequestMiddleware, config=fleet.config, metrics=fleet.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    fleet: Fleet = app.state.manager
    await fleet.begin()
    polling = asyncio.create_task(fleet.run())
    try:
        yield
    finally:
        polling.cancel()
        await asyncio.gather(polling, return_exceptions=True)
        await fleet.close()


@router.post("/v1/sessions", status_code=201)
async def open_session(request: Request, body: SessionRequest) -> dict[str, Any]:
    """Open a session on the replica with the fewest."""
    return await manager_of(request).open(body, owner_of(request))


@router.get("/v1/sessions")
async def list_sessions(request: Request) -> dict[str, Any]:
    """The caller's sessions on all replicas."""
    sessions = manager_of(request).owned_by(owner_of(request))
    responses = await asyncio.gather(*(session.request("GET", session.path) for session in sessions))
    return {"object": "list", "data": [response.json() for response in responses if response.status_code == 200]}


def _forward_to_session(method: str, name: str) -> Callable[..., Awaitable[Response]]:
    async def forward(request: Request, session: Session) -> Response:
        content = {"content": await request.body(), "headers": _forwarded_headers(request.headers)}
        response = await session.request(method, session.path + name, **content)
        if response.is_success and name == "/finish":
            session.has_finished = True
        if response.is_success and method == "DELETE":
            session.is_live = False
        return Response(response.content, response.status_code, _forwarded_headers(response.headers))

    return forward


for _method, _name in (
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/finish"),
    ("POST", "/questions"),
    ("GET", "/frame"),
    ("POST", "/webrtc"),
):
    router.add_api_route(f"/v1/sessions/{{session_id}}{_name}", _forward_to_session(_method, _name), methods=[_method])


@router.post("/v1/chat/completions")
@router.get("/v1/models")
@router.get("/v1/settings")
async def forward_to_any(request: Request) -> Response:
    """Forward a request that any replica can answer."""
    content = {"content": await request.body(), "headers": _forwarded_headers(request.headers)}
    async with AsyncExitStack() as stack:
        pending = manager_of(request).request_any(
            request.method, request.scope["route"].path, owner_of(request), **content
        )
        _, response = await stack.enter_async_context(pending)
        body = _stream_body(response, stack.pop_all())
    return StreamingResponse(body, response.status_code, _forwarded_headers(response.headers))


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Metrics of the frontend and of every replica, labelled by replica."""
    fleet: Fleet = manager_of(request)
    expositions = {"frontend": fleet.metrics.exposition().decode()}
    for client in fleet.ready_clients:
        try:
            expositions[client.address.id] = (await client.request("GET", "/metrics")).text
        except UnreachableError:
            await fleet.recheck(client)
    return Response(merge_expositions(expositions), media_type=CONTENT_TYPE)


async def _stream_body(response: httpx.Response, stack: AsyncExitStack) -> AsyncIterator[bytes]:
    async with stack:
        try:
            async for data in response.aiter_bytes():
                yield data
        except httpx.TransportError:
            # The response has started, so its status cannot change: send the error as an event of the stream.
            yield as_sse(error_body(503, "the replica failed during its response; send the request again")).encode()


def _forwarded_headers(headers) -> dict[str, str]:
    return {name: headers[name] for name in _FORWARDED_HEADERS if name in headers}
