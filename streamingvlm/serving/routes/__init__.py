"""What the server answers to, by subject."""

from starlette.requests import HTTPConnection

from streamingvlm.serving.hub import Hub
from streamingvlm.serving.sessions import LiveSession


def hub_of(request: HTTPConnection) -> Hub:
    """The server's sessions."""
    return request.app.state.hub


def owner_of(request: HTTPConnection) -> str:
    """Whose key the request came with."""
    return request.scope["state"]["owner"]


def session_of(request: HTTPConnection, session_id: str) -> LiveSession:
    """The session that the path names. Raises Refusal where the owner has none such."""
    return hub_of(request).find(session_id, owner_of(request))
