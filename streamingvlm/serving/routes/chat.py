"""One-shot clips in the manner of OpenAI."""

from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from streamingvlm.errors import StreamingVLMError
from streamingvlm.serving.chat import Completion, as_event
from streamingvlm.serving.clips import ChatAsked
from streamingvlm.serving.refusals import Refusal, error_body, refusal_of
from streamingvlm.serving.routes import hub_of

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def complete(request: Request, asked: ChatAsked) -> dict[str, Any] | StreamingResponse:
    """Commentary on a clip, or an answer to a question about it, whole or piece by piece."""
    hub = hub_of(request)
    name = hub.streams.model.name
    if asked.model not in ("", name):
        raise Refusal(404, f"there is no model {asked.model[:100]!r} here; ask {name!r}")
    completion = Completion(asked, hub)
    if not asked.stream:
        return await completion.whole()
    events = completion.events()
    # What is wrong with the request shows with the first piece: it is to be a status, not a broken stream.
    first = [await anext(events), await anext(events)]
    return StreamingResponse(_after(first, events), media_type="text/event-stream")


async def _after(first: list[str], events: AsyncIterator[str]) -> AsyncIterator[str]:
    for event in first:
        yield event
    try:
        async for event in events:
            yield event
    except (Refusal, StreamingVLMError) as error:
        refusal = error if isinstance(error, Refusal) else refusal_of(error)
        yield as_event(error_body(refusal.status_code, refusal.detail))
