"""The server's endpoints, one module per resource."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import HTTPConnection, Request

from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.served_session import ServedSession
from streamingvlm.serving.session_manager import SessionManager

Result = TypeVar("Result")

_CLIENT_CLOSED_REQUEST = 499


def manager_of(request: HTTPConnection) -> SessionManager:
    """Return the server's session manager."""
    return request.app.state.manager


def owner_of(request: HTTPConnection) -> str:
    """Return the owner id that the request was authorized as."""
    return request.scope["state"]["owner"]


def session_of(request: HTTPConnection, session_id: str) -> ServedSession:
    """Return the session in the path. Raises ApiError if the owner has no such session."""
    return manager_of(request).find(session_id, owner_of(request))


async def while_connected(request: Request, work: Awaitable[Result]) -> Result:
    """Return the result of the work; cancel it as soon as the client leaves, so that its place is free."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_until_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(_CLIENT_CLOSED_REQUEST, "the client has left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_left(request: Request):
    while (await request.receive())["type"] != "http.disconnect":
        pass
