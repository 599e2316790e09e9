"""One-shot clips in the format of OpenAI's chat completions."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from streamingvlm.errors import StreamingVLMError
from streamingvlm.serving.api_errors import ApiError, error_body, to_api_error
from streamingvlm.serving.chat_completions import ChatCompletion, as_sse
from streamingvlm.serving.chat_requests import ChatRequest
from streamingvlm.serving.routes import manager_of, while_connected

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def complete(request: Request, body: ChatRequest) -> dict[str, Any] | StreamingResponse:
    """Commentary on a clip, or the answer to a question about it, whole or streamed."""
    manager = manager_of(request)
    name = manager.pool.model.name
    if body.model not in ("", name):
        raise ApiError(404, f"there is no model {body.model[:100]!r} here; use {name!r}")
    await manager.check_text(**{"the text of the chat": body.all_text()})
    completion = ChatCompletion(body, manager)
    if not body.stream:
        return await while_connected(request, completion.as_json())
    events = completion.sse_events()
    # An invalid clip raises with the first text: wait for it, so that the error is a status and not a broken stream.
    first = [await anext(events), await while_connected(request, anext(events))]
    return StreamingResponse(_stream(first, events), media_type="text/event-stream")


async def _stream(first: list[str], events: AsyncIterator[str]) -> AsyncIterator[str]:
    for event in first:
        yield event
    try:
        async for event in events:
            yield event
    except (ApiError, StreamingVLMError) as error:
        api_error = error if isinstance(error, ApiError) else to_api_error(error)
        yield as_sse(error_body(api_error.status_code, api_error.detail))
