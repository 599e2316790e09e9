"""The server's endpoints, one module per resource."""

from starlette.requests import HTTPConnection

from streamingvlm.serving.served_session import ServedSession
from streamingvlm.serving.session_manager import SessionManager


def manager_of(request: HTTPConnection) -> SessionManager:
    """Return the server's session manager."""
    return request.app.state.manager


def owner_of(request: HTTPConnection) -> str:
    """Return the owner id that the request was authorized as."""
    return request.scope["state"]["owner"]


def session_of(request: HTTPConnection, session_id: str) -> ServedSession:
    """Return the session in the path. Raises ApiError if the owner has no such session."""
    return manager_of(request).find(session_id, owner_of(request))
