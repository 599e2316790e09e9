"""What clients talk to: the page and the API of a server that stands alone, every request handed on to its replica.

Frames and commentary go by the routes that such a server has, for a `RemoteSession` is to them as a session is.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from streamingvlm.serving import metrics
from streamingvlm.serving.app import plain_app
from streamingvlm.serving.chat import as_event
from streamingvlm.serving.fleet.figures import of_all
from streamingvlm.serving.fleet.fleet import Fleet
from streamingvlm.serving.fleet.link import UnreachableError
from streamingvlm.serving.fleet.remote import RemoteSession
from streamingvlm.serving.gate import Gate
from streamingvlm.serving.refusals import error_body
from streamingvlm.serving.requests import SessionAsked
from streamingvlm.serving.routes import commentary, frames, hub_of, operations, owner_of, page, session_of

_HANDED_ON = ("content-type", "retry-after", "x-accel-buffering")

router = APIRouter()
Session = Annotated[RemoteSession, Depends(session_of)]


def create_front(fleet: Fleet) -> FastAPI:
    """The application that stands before the replicas of a fleet."""
    app = plain_app(_lifespan)
    app.state.hub = fleet
    for part in (router, operations.liveness, frames.router, commentary.router, page.router):
        app.include_router(part)
    app.mount("/static", page.static)
    app.add_middleware(Gate, config=fleet.config, metrics=fleet.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    fleet: Fleet = app.state.hub
    await fleet.begin()
    looking = asyncio.create_task(fleet.run())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        await fleet.close()


@router.post("/v1/sessions", status_code=201)
async def open_session(request: Request, asked: SessionAsked) -> dict[str, Any]:
    """Open a session at the replica that has the fewest."""
    return await hub_of(request).open(asked, owner_of(request))


@router.get("/v1/sessions")
async def list_sessions(request: Request) -> dict[str, Any]:
    """The caller's sessions, of all replicas."""
    sessions = hub_of(request).of(owner_of(request))
    answers = await asyncio.gather(*(session.request("GET", session.path) for session in sessions))
    return {"object": "list", "data": [answer.json() for answer in answers if answer.status_code == 200]}


def _handing_on(method: str, name: str) -> Callable[..., Awaitable[Response]]:
    async def hand_on(request: Request, session: Session) -> Response:
        content = {"content": await request.body(), "headers": _handed_on(request.headers)}
        answer = await session.request(method, session.path + name, **content)
        if answer.is_success and name == "/finish":
            session.has_finished = True
        if answer.is_success and method == "DELETE":
            session.is_live = False
        return Response(answer.content, answer.status_code, _handed_on(answer.headers))

    return hand_on


for _method, _name in (
    ("GET", ""),
    ("PATCH", ""),
    ("DELETE", ""),
    ("POST", "/finish"),
    ("POST", "/questions"),
    ("GET", "/frame"),
    ("POST", "/webrtc"),
):
    router.add_api_route(f"/v1/sessions/{{session_id}}{_name}", _handing_on(_method, _name), methods=[_method])


@router.post("/v1/chat/completions")
@router.get("/v1/models")
@router.get("/v1/settings")
async def ask_anyone(request: Request) -> Response:
    """What any replica can answer."""
    content = {"content": await request.body(), "headers": _handed_on(request.headers)}
    async with AsyncExitStack() as stack:
        asking = hub_of(request).anywhere(request.method, request.scope["route"].path, owner_of(request), **content)
        _, answer = await stack.enter_async_context(asking)
        told = _pieces(answer, stack.pop_all())
    return StreamingResponse(told, answer.status_code, _handed_on(answer.headers))


@router.get("/metrics")
async def figures(request: Request) -> Response:
    """The figures of the front and of every replica, each labelled with whose they are."""
    fleet: Fleet = hub_of(request)
    told = {"front": fleet.metrics.exposition().decode()}
    for link in fleet.links:
        try:
            told[link.address.id] = (await link.request("GET", "/metrics")).text
        except UnreachableError:
            await fleet.doubt(link)
    return Response(of_all(told), media_type=metrics.CONTENT_TYPE)


async def _pieces(answer: httpx.Response, stack: AsyncExitStack) -> AsyncIterator[bytes]:
    async with stack:
        try:
            async for piece in answer.aiter_bytes():
                yield piece
        except httpx.TransportError:
            # What has been said cannot be unsaid: a client that reads events finds an error among them.
            yield as_event(error_body(503, "the replica that answered has gone; ask again")).encode()


def _handed_on(headers) -> dict[str, str]:
    return {name: headers[name] for name in _HANDED_ON if name in headers}
