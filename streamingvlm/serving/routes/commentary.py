"""The commentary of a session, as server-sent events or through a WebSocket."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from streamingvlm.serving.commentary import Event
from streamingvlm.serving.keys import SUBPROTOCOL
from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.routes import hub_of, session_of
from streamingvlm.serving.sessions import LiveSession

router = APIRouter(prefix="/v1/sessions/{session_id}/commentary")
Session = Annotated[LiveSession, Depends(session_of)]

_KEEP_ALIVE_S = 15.0


@router.get("")
async def listen(
    request: Request,
    session: Session,
    after: Annotated[int | None, Query(ge=0)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Lines as server-sent events, each with its number; from the first one kept, or after the last that was had."""
    begin = _after(last_event_id) if last_event_id is not None else after or 0
    _check_room(session, hub_of(request).config.limits.max_subscribers)
    return StreamingResponse(_sse(session, begin), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.websocket("")
async def listen_by_socket(socket: WebSocket, session: Session, after: Annotated[int, Query(ge=0)] = 0):
    """Lines as JSON messages, from number ``after`` on."""
    _check_room(session, hub_of(socket).config.limits.max_subscribers)
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", []) else None)
    speaker = asyncio.ensure_future(_tell(socket, session, after))
    hearer = asyncio.ensure_future(_until_gone(socket))
    try:
        await asyncio.wait({speaker, hearer}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (speaker, hearer):
            task.cancel()
        await asyncio.gather(speaker, hearer, return_exceptions=True)


async def _sse(session: LiveSession, after: int) -> AsyncIterator[str]:
    yield "retry: 1000\n\n"
    events = session.log.follow(after)
    newest = asyncio.ensure_future(anext(events))
    try:
        while True:
            done, _ = await asyncio.wait({newest}, timeout=_KEEP_ALIVE_S)
            if not done:
                yield ": still here\n\n"
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


def _as_sse(event: Event) -> str:
    number = "" if event.id is None else f"id: {event.id}\n"
    return f"event: {event.kind}\n{number}data: {json.dumps(event.data, ensure_ascii=False)}\n\n"


async def _tell(socket: WebSocket, session: LiveSession, after: int):
    """Send what is told until the end."""
    try:
        async for event in session.log.follow(after):
            message = json.dumps({"type": event.kind, **event.data}, ensure_ascii=False)
            await socket.send_text(message)
    except (WebSocketDisconnect, RuntimeError):
        return  # the listener has left
    await socket.close()


async def _until_gone(socket: WebSocket):
    """What a listener sends means nothing; that it left does."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


def _after(last_event_id: str) -> int:
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 16):
        raise Refusal(400, "Last-Event-ID is no line's number; send the id of the last line, or leave it out")
    return int(last_event_id)


def _check_room(session: LiveSession, most: int):
    if session.log.num_listeners >= most:
        raise Refusal(429, f"{most} listen to this session already, which is the limit", retry_after_s=5)
