"""Sessions by REST."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.api_requests import QueryRequest, QuestionRequest, SessionRequest, WebRTCRequest
from streamingvlm.serving.routes import manager_of, owner_of, session_of, while_connected
from streamingvlm.serving.served_session import ServedSession

router = APIRouter(prefix="/v1/sessions")
Session = Annotated[ServedSession, Depends(session_of)]


@router.post("", status_code=201)
async def open_session(request: Request, body: SessionRequest) -> dict[str, Any]:
    """Open a session; its commentary starts with its first turn of video."""
    session = await manager_of(request).open(body, owner_of(request))
    return session.as_json()


@router.get("")
async def list_sessions(request: Request) -> dict[str, Any]:
    """The caller's sessions, including those that ended recently."""
    sessions = manager_of(request).owned_by(owner_of(request))
    return {"object": "list", "data": [session.as_json() for session in sessions]}


@router.get("/{session_id}")
async def inspect(session: Session) -> dict[str, Any]:
    """The settings, progress and cache contents of a session."""
    return session.as_json()


@router.patch("/{session_id}")
async def set_query(request: Request, session: Session, body: QueryRequest) -> dict[str, Any]:
    """Change the query of a running session."""
    await manager_of(request).check_text(query=body.query)
    await session.set_query(body.query)
    return session.as_json()


@router.delete("/{session_id}", status_code=204)
async def delete(request: Request, session: Session):
    """End a session immediately; video that waits for the model is dropped."""
    await session.close("deleted")
    await request.app.state.webrtc_peers.disconnect(session.id)


@router.post("/{session_id}/finish", status_code=202)
async def finish(session: Session) -> dict[str, Any]:
    """Accept no more frames; the session ends after all pushed frames are processed."""
    session.finish()
    return session.as_json()


@router.post("/{session_id}/questions")
async def ask(request: Request, session: Session, body: QuestionRequest) -> dict[str, Any]:
    """Answer a question about the stream, without changing it."""
    await manager_of(request).check_text(question=body.question)
    answer = await while_connected(request, session.ask(body.question, body.max_new_tokens))
    return {"object": "answer", "question": body.question, "answer": answer, "time_s": session.end_s}


@router.get("/{session_id}/frame")
async def newest_frame(session: Session) -> Response:
    """The newest frame that the model has seen, as JPEG."""
    jpeg = await asyncio.to_thread(session.jpeg)
    if jpeg is None:
        raise ApiError(404, "the model has processed no frame of this session yet; ask again later")
    return Response(jpeg, media_type="image/jpeg")


@router.post("/{session_id}/webrtc")
async def connect_camera(request: Request, session: Session, offer: WebRTCRequest) -> dict[str, str]:
    """Connect a browser's camera by WebRTC: takes its offer, returns this server's answer."""
    return await request.app.state.webrtc_peers.answer(session, offer.sdp)
