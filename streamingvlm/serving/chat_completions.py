"""Completions for one-shot clips, in the format of OpenAI's chat completions."""

import asyncio
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from streamingvlm.inference.commentary import Commentary
from streamingvlm.serving.chat_requests import ChatRequest, ChatTurn, ClipTurns, clip_turns
from streamingvlm.serving.session_manager import SessionManager
from streamingvlm.serving.stream_pool import StreamHandle

SSE_DONE = "data: [DONE]\n\n"


class ChatCompletion:
    """The completion for one clip: without a question its commentary, one line per turn; with one the answer.

    A question joins the last turn of the clip, after the model has seen all turns before it.
    """

    def __init__(self, request: ChatRequest, manager: SessionManager):
        self._request, self._manager = request, manager
        self._id, self._created = f"chatcmpl-{secrets.token_urlsafe(16)}", int(time.time())
        most = manager.config.limits.max_answer_tokens
        self._max_tokens = min(request.max_completion_tokens or request.max_tokens or most, most)
        self._num_tokens = self._num_prompt_tokens = 0
        self._is_truncated = False

    async def text_pieces(self) -> AsyncIterator[str]:
        """Yield the text as it is generated. Raises ApiError and StreamingVLMError."""
        tokens: asyncio.Queue[str | None] = asyncio.Queue()
        async with self._open(tokens if self._request.has_question else None) as (stream, turns):
            separator = ""
            while (turn := await asyncio.to_thread(next, turns, None)) is not None:
                if turn.reply is not None:
                    await asyncio.wrap_future(stream.submit(turn.video, question=turn.question, reply=turn.reply))
                elif turn.question:
                    async for piece in self._answer(stream, turn, tokens):
                        yield piece
                elif text := await self._comment(stream, turn):
                    yield separator + text
                    separator = "\n"
            self._num_prompt_tokens = max(0, stream.num_appended - self._num_tokens)
        self._manager.metrics.clips.inc()

    @asynccontextmanager
    async def _open(self, tokens: asyncio.Queue | None):
        loop, manager = asyncio.get_running_loop(), self._manager
        on_token = None if tokens is None else lambda text: loop.call_soon_threadsafe(tokens.put_nowait, text)
        with manager.reserve_clip(), tempfile.TemporaryDirectory(prefix="streamingvlm-clip-") as folder:
            turns = await asyncio.to_thread(
                clip_turns, self._request, Path(folder), manager.video, manager.config.limits
            )
            sampling, query = self._request.sampling(), self._request.query()
            stream = await asyncio.to_thread(manager.pool.open, sampling=sampling, query=query, on_token=on_token)
            try:
                yield stream, turns
            finally:
                await asyncio.to_thread(_close_both, stream, turns)

    async def _comment(self, stream: StreamHandle, turn: ChatTurn) -> str:
        line = await asyncio.wrap_future(stream.submit(turn.video))
        self._num_tokens += line.num_tokens
        return line.text

    async def _answer(
        self, stream: StreamHandle, turn: ChatTurn, tokens: asyncio.Queue[str | None]
    ) -> AsyncIterator[str]:
        submitted = stream.submit(turn.video, question=turn.question, max_new_tokens=self._max_tokens)
        reply = asyncio.wrap_future(submitted)
        # on_token schedules its pieces on the loop before the future is done, so None is always the last in the queue.
        reply.add_done_callback(lambda _: tokens.put_nowait(None))
        num_sent = 0
        while (piece := await tokens.get()) is not None:
            num_sent += len(piece)
            yield piece
        line: Commentary = await reply
        self._num_tokens, self._is_truncated = line.num_tokens, line.num_tokens >= self._max_tokens
        if len(line.text) > num_sent:
            yield line.text[num_sent:]

    async def as_json(self) -> dict[str, Any]:
        """Return the whole completion."""
        text = "".join([piece async for piece in self.text_pieces()])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage}

    async def sse_events(self) -> AsyncIterator[str]:
        """Yield the completion as server-sent events."""
        yield self._delta_event({"role": "assistant", "content": ""})
        async for piece in self.text_pieces():
            yield self._delta_event({"content": piece})
        yield self._delta_event({}, finish_reason=self._finish_reason)
        if self._request.stream_options and self._request.stream_options.include_usage:
            yield as_sse({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage})
        yield SSE_DONE

    def _delta_event(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return as_sse({**self._head("chat.completion.chunk"), "choices": [choice]})

    @property
    def _finish_reason(self) -> str:
        return "length" if self._is_truncated else "stop"

    @property
    def _usage(self) -> dict[str, int]:
        total = self._num_prompt_tokens + self._num_tokens
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_tokens,
            "total_tokens": total,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._manager.pool.model.name}


def _close_both(stream: StreamHandle, turns: ClipTurns):
    stream.close()
    turns.close()


def as_sse(document: dict[str, Any]) -> str:
    """Return a document as a server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
