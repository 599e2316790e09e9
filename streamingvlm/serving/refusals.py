"""How a request is refused: a status and one line, in the shape that OpenAI's clients read."""

from typing import Any

from fastapi import HTTPException
from pydantic import BaseModel

from streamingvlm.errors import ClosedError, EngineFull, StreamingVLMError

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}


class Fault(BaseModel):
    """Why a request is not served: one line that names the remedy, its sort, and the status."""

    message: str
    type: str
    param: str | None = None
    code: int


class FaultBody(BaseModel):
    """The body of every refusal."""

    error: Fault


class Refusal(HTTPException):
    """A request that is not served; the message is one line and names the remedy."""

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None):
        headers = None if retry_after_s is None else {"Retry-After": f"{max(1, round(retry_after_s))}"}
        super().__init__(status, message, headers)


def refusal_of(error: StreamingVLMError) -> Refusal:
    """What a client is told of an error of the library's own."""
    if isinstance(error, EngineFull):
        told = "the server's memory for sessions is spent; close one, ask for smaller windows, or try again later"
        return Refusal(503, told, retry_after_s=5)
    return Refusal(409 if isinstance(error, ClosedError) else 400, str(error))


def error_body(status: int, message: str) -> dict[str, Any]:
    """The body of a refusal."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return FaultBody(error=Fault(message=" ".join(message.split()), type=kind, code=status)).model_dump()
