"""Push JPEG frames: one per request, or many through a WebSocket."""

import json
import math
import struct
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, WebSocket, WebSocketDisconnect

from streamingvlm.errors import VideoError
from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.api_requests import MAX_TIME_S
from streamingvlm.serving.auth import SUBPROTOCOL
from streamingvlm.serving.jpeg import JPEG_START
from streamingvlm.serving.routes import session_of
from streamingvlm.serving.served_session import ServedSession

router = APIRouter(prefix="/v1/sessions/{session_id}/frames")
Session = Annotated[ServedSession, Depends(session_of)]

_JPEG = {"required": True, "content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}
_TIME = struct.Struct(">d")
_MAX_BAD_FRAMES = 10
_POLICY_VIOLATION = 1008


@router.post("", status_code=202, openapi_extra={"requestBody": _JPEG})
async def push(request: Request, session: Session, time_s: float | None = None) -> dict[str, Any]:
    """Push one JPEG, the request's body. ``time_s``: stream time; the time of arrival by default."""
    session.check_takes_frames()
    if time_s is not None:
        _check_time(time_s)
    accepted = await session.push_jpeg(await request.body(), time_s, may_wait=False)
    return {"object": "frame", "accepted": accepted}


@router.websocket("")
async def push_many(socket: WebSocket, session: Session):
    """Push JPEGs as binary messages, each with or without a prefix: its stream time as a big-endian double.

    The text ``{"type": "finish"}`` ends the stream. Only errors are sent back.
    """
    session.check_takes_frames()
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope.get("subprotocols", []) else None)
    num_bad = 0
    while num_bad < _MAX_BAD_FRAMES:
        try:
            await _handle(session, await socket.receive())
        except WebSocketDisconnect:
            return
        except (ApiError, VideoError) as error:
            num_bad += 1
            message = error.detail if isinstance(error, ApiError) else str(error)
            await socket.send_json({"type": "error", "message": message})
            if not session.is_live:
                break
    await socket.close(_POLICY_VIOLATION if num_bad >= _MAX_BAD_FRAMES else 1000)


async def _handle(session: ServedSession, message: dict[str, Any]):
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    if (data := message.get("bytes")) is not None:
        time_s, jpeg = _parse_frame(data)
        await session.push_jpeg(jpeg, time_s, may_wait=True)
    elif _message_type(message.get("text") or "") == "finish":
        session.finish()
    else:
        raise ApiError(400, 'the message is neither a frame nor {"type": "finish"}; send frames as binary messages')


def _parse_frame(data: bytes) -> tuple[float | None, bytes]:
    """Split a message into time and JPEG. The first bytes of a JPEG are no valid time: a negative number."""
    if data.startswith(JPEG_START) or len(data) < _TIME.size:
        return None, data
    (time_s,) = _TIME.unpack_from(data)
    _check_time(time_s)
    return time_s, data[_TIME.size :]


def _message_type(text: str) -> str | None:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return message.get("type") if isinstance(message, dict) else None


def _check_time(time_s: float):
    if not (math.isfinite(time_s) and 0 <= time_s <= MAX_TIME_S):
        raise ApiError(400, f"time_s={time_s:g} is outside 0 to {MAX_TIME_S:g}; give seconds of stream time")
