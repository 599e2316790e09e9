"""Errors of the HTTP API: a status and a one-line message, in OpenAI's format."""

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


class ErrorDetail(BaseModel):
    """Message, type and HTTP status of an error; the message is one line and names the remedy."""

    message: str
    type: str
    param: str | None = None
    code: int


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class ApiError(HTTPException):
    """A request that is refused; the message is one line and names the remedy."""

    def __init__(self, status: int, message: str, *, retry_after_s: float | None = None):
        headers = None if retry_after_s is None else {"Retry-After": f"{max(1, round(retry_after_s))}"}
        super().__init__(status, message, headers)


def to_api_error(error: StreamingVLMError) -> ApiError:
    """Return the API error that a client gets for an error of the library."""
    if isinstance(error, EngineFull):
        message = "the server's memory for sessions is full; close one, ask for smaller windows, or try again later"
        return ApiError(503, message, retry_after_s=5)
    return ApiError(409 if isinstance(error, ClosedError) else 400, str(error))


def error_body(status: int, message: str) -> dict[str, Any]:
    """Return the JSON body of an error response."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return ErrorBody(error=ErrorDetail(message=" ".join(message.split()), type=kind, code=status)).model_dump()
