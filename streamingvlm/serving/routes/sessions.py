"""Sessions by REST, and what is asked of them in mid-stream."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.requests import InstructionAsked, OfferAsked, QuestionAsked, SessionAsked
from streamingvlm.serving.routes import hub_of, owner_of, session_of
from streamingvlm.serving.sessions import LiveSession

router = APIRouter(prefix="/v1/sessions")
Session = Annotated[LiveSession, Depends(session_of)]


@router.post("", status_code=201)
async def open_session(request: Request, asked: SessionAsked) -> dict[str, Any]:
    """Open a session; its commentary begins with its first second of video."""
    session = await hub_of(request).open(asked, owner_of(request))
    return session.as_json()


@router.get("")
async def list_sessions(request: Request) -> dict[str, Any]:
    """The caller's sessions, those that ended lately included."""
    return {"object": "list", "data": [session.as_json() for session in hub_of(request).of(owner_of(request))]}


@router.get("/{session_id}")
async def inspect(session: Session) -> dict[str, Any]:
    """One session: its settings, its pace, its cache."""
    return session.as_json()


@router.patch("/{session_id}")
async def instruct(session: Session, asked: InstructionAsked) -> dict[str, Any]:
    """Change the standing instruction while the stream runs."""
    await session.instruct(asked.query)
    return session.as_json()


@router.delete("/{session_id}", status_code=204)
async def delete(request: Request, session: Session):
    """End a session at once; what waits for the model is let go."""
    await session.close("deleted")
    await request.app.state.cameras.hang_up(session.id)


@router.post("/{session_id}/finish", status_code=202)
async def finish(session: Session) -> dict[str, Any]:
    """Nothing more is fed; the session ends when it has spoken of all that came."""
    session.finish()
    return session.as_json()


@router.post("/{session_id}/questions")
async def ask(session: Session, asked: QuestionAsked) -> dict[str, Any]:
    """Answer a question beside the stream."""
    answer = await session.ask(asked.question, asked.max_new_tokens)
    return {"object": "answer", "question": asked.question, "answer": answer, "time_s": session.seen_s}


@router.get("/{session_id}/frame")
async def newest_frame(session: Session) -> Response:
    """The newest picture that the model was shown, as JPEG."""
    jpeg = session.jpeg()
    if jpeg is None:
        raise Refusal(404, "the model has seen no frame of this session yet; ask again later")
    return Response(jpeg, media_type="image/jpeg")


@router.post("/{session_id}/webrtc")
async def connect_camera(request: Request, session: Session, offer: OfferAsked) -> dict[str, str]:
    """Take a browser's camera by WebRTC: its offer in, this server's answer out."""
    return await request.app.state.cameras.answer(session, offer.sdp)
