"""The commentary of a session, by server-sent events or WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.auth import SUBPROTOCOL
from streamingvlm.serving.commentary_log import CommentaryEvent
from streamingvlm.serving.routes import manager_of, session_of
from streamingvlm.serving.served_session import ServedSession

router = APIRouter(prefix="/v1/sessions/{session_id}/commentary")
Session = Annotated[ServedSession, Depends(session_of)]

_KEEP_ALIVE_S = 15.0


@router.get("")
async def stream_events(
    request: Request,
    session: Session,
    after: Annotated[int | None, Query(ge=0)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Server-sent events from the first stored line, or after line ``Last-Event-ID``."""
    after = _parse_event_id(last_event_id) if last_event_id is not None else after or 0
    _check_subscribers(session, manager_of(request).config.limits.max_subscribers)
    return StreamingResponse(_sse(session, after), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.websocket("")
async def stream_messages(socket: WebSocket, session: Session, after: Annotated[int, Query(ge=0)] = 0):
    """JSON messages, from the line after number ``after``."""
    _check_subscribers(session, manager_of(socket).config.limits.max_subscribers)
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", []) else None)
    sender = asyncio.ensure_future(_send_events(socket, session, after))
    receiver = asyncio.ensure_future(_until_disconnect(socket))
    try:
        await asyncio.wait({sender, receiver}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (sender, receiver):
            task.cancel()
        await asyncio.gather(sender, receiver, return_exceptions=True)


async def _sse(session: ServedSession, after: int) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    events = session.log.follow(after)
    newest = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({newest}, timeout=_KEEP_ALIVE_S)
            if not done:
                yield ": keep-alive\n\n"
                continue
            event = newest.result()
            yield _as_sse(event)
            if event.kind == "end":
                return
            newest = asyncio.ensure_future(anext(events))
    finally:
        newest.cancel()
        await asyncio.gather(newest, return_exceptions=True)
        await events.aclose()


def _as_sse(event: CommentaryEvent) -> str:
    number = "" if event.id is None else f"id: {event.id}\n"
    return f"event: {event.kind}\n{number}data: {json.dumps(event.data, ensure_ascii=False)}\n\n"


async def _send_events(socket: WebSocket, session: ServedSession, after: int):
    """Send all events until the end, then close the socket."""
    try:
        async for event in session.log.follow(after):
            message = json.dumps({"type": event.kind, **event.data}, ensure_ascii=False)
            await socket.send_text(message)
    except (WebSocketDisconnect, RuntimeError):
        return  # the listener has disconnected
    await socket.close()


async def _until_disconnect(socket: WebSocket):
    """Ignore all messages of a listener; return when it disconnects."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


def _parse_event_id(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16):
        raise ApiError(400, "Last-Event-ID is no line's number; send the id of the last line, or leave it out")
    return int(last_event_id)


def _check_subscribers(session: ServedSession, most: int):
    if session.log.num_listeners >= most:
        raise ApiError(429, f"{most} clients listen to this session already, which is the limit", retry_after_s=5)
