"""Answers to one-shot clips, as OpenAI's chat completions tell them."""

import asyncio
import json
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from streamingvlm.inference.commentary import Commentary
from streamingvlm.serving.clips import ChatAsked, seconds_of
from streamingvlm.serving.hub import Hub
from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.streams import Stream
from streamingvlm.video.video_turn import VideoTurn

DONE = "data: [DONE]\n\n"


class Completion:
    """What is said of one clip: without words of the user its commentary, a line a second; else the answer to them,
    given when the clip has been watched to its end.
    """

    def __init__(self, asked: ChatAsked, hub: Hub):
        self._asked, self._hub = asked, hub
        self._id, self._created = f"chatcmpl-{secrets.token_urlsafe(16)}", int(time.time())
        most = hub.config.limits.max_answer_tokens
        self._max_tokens = min(asked.max_completion_tokens or asked.max_tokens or most, most)
        self._num_tokens = self._num_prompt_tokens = 0
        self._is_cut = False

    async def pieces(self) -> AsyncIterator[str]:
        """The text, piece by piece. Raises Refusal and StreamingVLMError."""
        question = self._asked.question()
        spoken: asyncio.Queue[str | None] = asyncio.Queue()
        async with self._opened(spoken if question else None) as (stream, seconds):
            told = self._answer(stream, seconds, question, spoken) if question else self._comment(stream, seconds)
            async for piece in told:
                yield piece
            self._num_prompt_tokens = max(0, stream.state.cache_tokens - self._num_tokens)
        self._hub.metrics.clips.inc()

    @asynccontextmanager
    async def _opened(self, spoken: asyncio.Queue | None):
        loop, hub = asyncio.get_running_loop(), self._hub
        on_token = None if spoken is None else lambda text: loop.call_soon_threadsafe(spoken.put_nowait, text)
        with hub.clip_place(), tempfile.TemporaryDirectory(prefix="streamingvlm-clip-") as folder:
            seconds = await asyncio.to_thread(seconds_of, self._asked, Path(folder), hub.video, hub.config.limits)
            sampling, query = self._asked.sampling(), self._asked.instruction()
            stream = await asyncio.to_thread(hub.streams.open, sampling=sampling, query=query, on_token=on_token)
            try:
                yield stream, seconds
            finally:
                await asyncio.to_thread(_close_both, stream, seconds)

    async def _comment(self, stream: Stream, seconds: Iterator[VideoTurn]) -> AsyncIterator[str]:
        separator = ""
        while (second := await asyncio.to_thread(next, seconds, None)) is not None:
            line = await asyncio.wrap_future(stream.submit(second))
            self._num_tokens += line.num_tokens
            if line.text:
                yield separator + line.text
                separator = "\n"

    async def _answer(
        self, stream: Stream, seconds: Iterator[VideoTurn], question: str, spoken: asyncio.Queue[str | None]
    ) -> AsyncIterator[str]:
        newest = await self._listen_to_all_but_the_last(stream, seconds)
        turn = asyncio.wrap_future(stream.submit(newest, question=question, max_new_tokens=self._max_tokens))
        # What is spoken comes through the loop before the future is done: None is the last to be put.
        turn.add_done_callback(lambda _: spoken.put_nowait(None))
        num_told = 0
        while (piece := await spoken.get()) is not None:
            num_told += len(piece)
            yield piece
        line: Commentary = await turn
        self._num_tokens, self._is_cut = line.num_tokens, line.num_tokens >= self._max_tokens
        if len(line.text) > num_told:
            yield line.text[num_told:]

    async def _listen_to_all_but_the_last(self, stream: Stream, seconds: Iterator[VideoTurn]) -> VideoTurn:
        newest = await asyncio.to_thread(next, seconds, None)
        if newest is None:
            raise Refusal(400, "the clip has no frame; send one that has")
        while (second := await asyncio.to_thread(next, seconds, None)) is not None:
            await asyncio.wrap_future(stream.listen(newest))
            newest = second
        return newest

    async def whole(self) -> dict[str, Any]:
        """The completion, all at once."""
        text = "".join([piece async for piece in self.pieces()])
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self._finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": self._usage}

    async def events(self) -> AsyncIterator[str]:
        """The completion as server-sent events."""
        yield self._chunk({"role": "assistant", "content": ""})
        async for piece in self.pieces():
            yield self._chunk({"content": piece})
        yield self._chunk({}, finish_reason=self._finish_reason)
        if self._asked.stream_options and self._asked.stream_options.include_usage:
            yield as_event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage})
        yield DONE

    def _chunk(self, delta: dict[str, str], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return as_event({**self._head("chat.completion.chunk"), "choices": [choice]})

    @property
    def _finish_reason(self) -> str:
        return "length" if self._is_cut else "stop"

    @property
    def _usage(self) -> dict[str, int]:
        total = self._num_prompt_tokens + self._num_tokens
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_tokens,
            "total_tokens": total,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._hub.streams.model.name}


def _close_both(stream: Stream, seconds: Iterator[VideoTurn]):
    stream.close()
    seconds.close()


def as_event(document: dict[str, Any]) -> str:
    """A document as a server-sent event."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n"
