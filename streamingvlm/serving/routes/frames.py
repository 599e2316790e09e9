"""Frames pushed as JPEG: one a request, or many through a WebSocket."""

import json
import math
import struct
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, WebSocket, WebSocketDisconnect

from streamingvlm.errors import VideoError
from streamingvlm.serving.keys import SUBPROTOCOL
from streamingvlm.serving.pictures import JPEG_START
from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.requests import LAST_TIME_S
from streamingvlm.serving.routes import session_of
from streamingvlm.serving.sessions import LiveSession

router = APIRouter(prefix="/v1/sessions/{session_id}/frames")
Session = Annotated[LiveSession, Depends(session_of)]

_JPEG = {"required": True, "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
_TIME = struct.Struct(">d")
_MAX_BAD_FRAMES = 10
_POLICY_VIOLATION = 1008


@router.post("", status_code=202, openapi_extra={"requestBody": _JPEG})
async def push(request: Request, session: Session, time_s: float | None = None) -> dict[str, Any]:
    """Push one JPEG, the body of the request; ``time_s`` is its stream time, without it the time it comes."""
    session.check_takes_frames()
    if time_s is not None:
        _check_time(time_s)
    taken = await session.push_jpeg(await request.body(), time_s, may_wait=False)
    return {"object": "frame", "taken": taken}


@router.websocket("")
async def push_many(socket: WebSocket, session: Session):
    """Push JPEGs as binary messages, each alone or after its stream time as a big-endian double.

    ``{"type": "finish"}`` as text ends the stream when all has been spoken of. Nothing is sent back but errors.
    """
    session.check_takes_frames()
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", []) else None)
    num_bad = 0
    while num_bad < _MAX_BAD_FRAMES:
        try:
            await _take(session, await socket.receive())
        except WebSocketDisconnect:
            return
        except (Refusal, VideoError) as error:
            num_bad += 1
            message = error.detail if isinstance(error, Refusal) else str(error)
            await socket.send_json({"type": "error", "message": message})
            if not session.is_live:
                break
    await socket.close(_POLICY_VIOLATION if num_bad >= _MAX_BAD_FRAMES else 1000)


async def _take(session: LiveSession, message: dict[str, Any]):
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    if (data := message.get("bytes")) is not None:
        time_s, jpeg = _parsed(data)
        await session.push_jpeg(jpeg, time_s, may_wait=True)
    elif _kind(message.get("text") or "") == "finish":
        session.finish()
    else:
        raise Refusal(400, 'the message is neither a frame nor {"type": "finish"}; send frames as binary messages')


def _parsed(data: bytes) -> tuple[float | None, bytes]:
    """Time and picture. No time begins as a JPEG does: read as a double, those bytes are no number."""
    if data.startswith(JPEG_START) or len(data) < _TIME.size:
        return None, data
    (time_s,) = _TIME.unpack_from(data)
    _check_time(time_s)
    return time_s, data[_TIME.size :]


def _kind(text: str) -> str | None:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message.get("type") if isinstance(message, dict) else None


def _check_time(time_s: float):
    if not (math.isfinite(time_s) and 0 <= time_s <= LAST_TIME_S):
        raise Refusal(400, f"time_s={time_s:g} is outside 0 to {LAST_TIME_S:g}; give seconds of stream time")
