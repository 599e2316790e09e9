"""Requests for one-shot clips in the format of OpenAI's chat completions, and the turns of their video."""

import base64
import binascii
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, model_validator

from streamingvlm.config import VideoConfig
from streamingvlm.errors import VideoError
from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.api_requests import RequestBody, check_unicode
from streamingvlm.serving.jpeg import decode_picture
from streamingvlm.serving.server_config import ServerLimits
from streamingvlm.video.pyav import open_container
from streamingvlm.video.reader import open_video
from streamingvlm.video.video_turn import VideoTurn

_MAX_IMAGES = 1024
_MAX_TYPE_CHARACTERS = 1000
_FROM_URL_SAFE = str.maketrans("-_", "+/")


_ONLY_VALUES = {
    "n": 1,
    "stop": [],
    "response_format": {"type": "text"},
    "tools": [],
    "tool_choice": "none",
    "functions": [],
    "function_call": "none",
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "modalities": ["text"],
    "reasoning_effort": "none",
    "store": False,
    "verbosity": "medium",
}
"""Parameters that change an answer, each with the only value that this server supports."""

_WITHOUT_EFFECT = {
    "metadata",
    "parallel_tool_calls",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "user",
}
"""Parameters that change no answer. All others are refused, as OpenAI does."""


class _OpenAIModel(RequestBody):
    # Parts and messages have fields that do not change an answer, such as name.
    model_config = ConfigDict(extra="ignore")


class MediaUrl(_OpenAIModel):
    """A picture or a video as a data URL."""

    url: str

    @model_validator(mode="before")
    @classmethod
    def _is_object(cls, media: Any) -> Any:
        if isinstance(media, str):
            raise ValueError('a string was given, an object is expected; give {"url": "data:...;base64,..."}')
        return media


class MessagePart(_OpenAIModel):
    """A text, picture or video of a message."""

    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: MediaUrl | None = None
    video_url: MediaUrl | None = None


class ChatMessage(_OpenAIModel):
    """A message of the chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[MessagePart], Field(max_length=2 * _MAX_IMAGES)] | None = None

    def text(self) -> str:
        """Return the text of the message, "" if it is blank."""
        parts = self.content if isinstance(self.content, list) else [MessagePart(type="text", text=self.content)]
        text = check_unicode("\n".join(part.text for part in parts if part.type == "text" and part.text))
        return text if text.strip() else ""

    @property
    def has_media(self) -> bool:
        """Return True if there is a picture or a video."""
        return isinstance(self.content, list) and any(part.type != "text" for part in self.content)

    def urls(self, kind: str) -> list[str]:
        """Return the URLs of all parts of type ``image_url`` or ``video_url``, in order. Raises ApiError."""
        parts = [part for part in self.content or [] if part.type == kind] if isinstance(self.content, list) else []
        media = [getattr(part, kind) for part in parts]
        if any(url is None for url in media):
            raise ApiError(400, f'a part of type {kind} has no URL; give {{"{kind}": {{"url": "data:..."}}}}')
        return [url.url for url in media]


class StreamOptions(_OpenAIModel):
    """Options of a streamed completion."""

    include_usage: bool = False


class ChatRequest(_OpenAIModel):
    """A chat request: one clip and, optionally, a question about it."""

    model: str = ""
    messages: list[ChatMessage] = Field(min_length=1, max_length=64)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _media_is_the_users(self) -> "ChatRequest":
        if any(message.role != "user" and message.has_media for message in self.messages):
            raise ValueError("only messages of the user may have pictures and videos; move them there")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream=true; leave it out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _is_supported(cls, fields: Any) -> Any:
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if name in _ONLY_VALUES:
                supported = _ONLY_VALUES[name]
                if value is not None and value != supported:
                    raise ValueError(f"{name} is supported as {json.dumps(supported)} only; leave it out")
            elif value is not None and name not in cls.model_fields and name not in _WITHOUT_EFFECT:
                raise ValueError(f"{name[:100]!r} is not supported; leave it out")
        return fields

    def sampling(self) -> dict[str, Any]:
        """Return the sampling parameters that the client has set."""
        names = ("temperature", "top_p", "seed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def all_text(self) -> str:
        """Return the text of all messages."""
        return "\n".join(message.text() for message in self.messages)

    def query(self) -> str:
        """Return the stream's query: the system and developer messages."""
        return "\n".join(m.text() for m in self.messages if m.role in ("system", "developer") and m.text())

    def exchanges(self) -> list["Exchange"]:
        """Return the user messages, each with the reply that follows it, None for the last. Raises ApiError."""
        exchanges: list[Exchange] = []
        for message in self.messages:
            if message.role == "user":
                exchanges.append(Exchange(message))
            elif message.role == "assistant":
                if not exchanges:
                    raise ApiError(400, "the first message is an answer; send the question before it, too")
                exchanges[-1].reply = "\n".join(filter(None, (exchanges[-1].reply, message.text())))
        if not exchanges or exchanges[-1].reply is not None:
            raise ApiError(400, "the last message is not the user's; end with the clip or the question")
        return exchanges

    @property
    def has_question(self) -> bool:
        """Return True if an answer is wanted, False for commentary."""
        return bool(self.exchanges()[-1].user.text())


@dataclass
class Exchange:
    """A user message and its reply, None if it is to be generated."""

    user: ChatMessage
    reply: str | None = None


@dataclass(frozen=True)
class ChatTurn:
    """A turn of video with its question and its reply, None if it is to be generated."""

    video: VideoTurn
    question: str
    reply: str | None


class ClipTurns:
    """The turns of a clip; they are decoded in one thread and closed from any.

    A cancelled request closes its clip while a worker thread may still be decoding: ``close`` then waits for that turn.
    """

    def __init__(self, turns: Iterator[ChatTurn]):
        self._turns = turns
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[ChatTurn]:
        return self

    def __next__(self) -> ChatTurn:
        with self._lock:
            return next(self._turns)

    def close(self):
        """End the iteration and close the file."""
        with self._lock:
            self._turns.close()


def clip_turns(request: ChatRequest, folder: Path, video: VideoConfig, limits: ServerLimits) -> ClipTurns:
    """Return the turns of the chat; videos are written to ``folder``. Raises ApiError and VideoError.

    Earlier exchanges become turns with the replies that they had. A message without a clip shows the last turn again.
    """
    return ClipTurns(_limit_length(_chat_turns(request, folder, video, limits), limits))


def _chat_turns(request: ChatRequest, folder: Path, video: VideoConfig, limits: ServerLimits) -> Iterator[ChatTurn]:
    newest: VideoTurn | None = None
    for exchange in request.exchanges():
        for turn, is_last in _with_last(_message_turns(exchange.user, newest, folder, video, limits)):
            index = 0 if newest is None else newest.index + 1
            newest = replace(turn, index=index, start_s=index * video.turn_s, end_s=(index + 1) * video.turn_s)
            question = exchange.user.text()
            if exchange.reply is None and not question:
                yield ChatTurn(newest, "", None)
            elif is_last:
                yield ChatTurn(newest, question, exchange.reply)
            else:
                yield ChatTurn(newest, "", "")


def _with_last(turns: Iterator[VideoTurn]) -> Iterator[tuple[VideoTurn, bool]]:
    newest = next(turns, None)
    if newest is None:
        raise ApiError(400, "the clip has no frames; send one that has")
    for turn in turns:
        yield newest, False
        newest = turn
    yield newest, True


def _message_turns(
    user: ChatMessage, newest: VideoTurn | None, folder: Path, video: VideoConfig, limits: ServerLimits
) -> Iterator[VideoTurn]:
    videos, images = user.urls("video_url"), user.urls("image_url")
    if not videos and not images and newest is not None:
        return iter([newest])
    if len(videos) + bool(images) != 1:
        raise ApiError(400, "give one clip: a video_url, or its frames as image_url parts")
    if videos:
        path = folder / "clip"
        path.write_bytes(_from_data_url(videos[0], "video/"))
        return _file_turns(path, video, limits)
    if len(images) > _MAX_IMAGES:
        raise ApiError(400, f"the clip has {len(images)} frames, at most {_MAX_IMAGES} are accepted; send fewer")
    return _image_turns(images, video, limits)


def _file_turns(path: Path, video: VideoConfig, limits: ServerLimits) -> Iterator[VideoTurn]:
    try:
        _check_clip_size(path, limits.max_frame_pixels)
        with open_video(path, fps=video.fps, turn_s=video.turn_s, decoder="pyav", prefetch=1) as reader:
            _check_length(reader.info.duration_s or 0.0, limits)
            yield from reader
    except VideoError as error:
        raise VideoError(str(error).replace(repr(str(path)), "the clip")) from None


def _check_clip_size(path: Path, max_pixels: int):
    """Read the size before a frame is decoded. Raises VideoError."""
    with open_container(path) as container:
        for stream in container.streams.video:
            if stream.codec_context is not None and stream.width * stream.height > max_pixels:
                raise VideoError(
                    f"the clip has {stream.width}x{stream.height} pixels, more than {max_pixels}; send it smaller"
                )


def _image_turns(urls: Sequence[str], video: VideoConfig, limits: ServerLimits) -> Iterator[VideoTurn]:
    """Yield turns of consecutive frames at the model's frame rate; the last frame fills up the last turn."""
    for index, first in enumerate(range(0, len(urls), video.num_frames)):
        data = [_from_data_url(url, "image/") for url in urls[first : first + video.num_frames]]
        frames = [decode_picture(picture, max_pixels=limits.max_frame_pixels) for picture in data]
        if len({frame.shape for frame in frames}) > 1:
            raise ApiError(400, "the frames of the clip differ in size; send all in one size")
        frames += [frames[-1]] * (video.num_frames - len(frames))
        yield VideoTurn(index, index * video.turn_s, (index + 1) * video.turn_s, torch.stack(frames))


def _limit_length(turns: Iterator[ChatTurn], limits: ServerLimits) -> Iterator[ChatTurn]:
    """Check the length again while decoding: a file may be longer than its header says."""
    for turn in turns:
        _check_length(turn.video.start_s, limits)
        yield turn


def _check_length(length_s: float, limits: ServerLimits):
    if length_s > limits.max_clip_s:
        raise ApiError(400, f"the clip is longer than {limits.max_clip_s:g} s; cut it, or open a session")


def _from_data_url(url: str, kind: str) -> bytes:
    mark, payload = _after_base64_mark(url)
    if not (url[:5].lower() == "data:" and mark):
        raise ApiError(400, f"a clip must be sent within the request; give data:{kind}...;base64,...")
    try:
        payload = "".join(payload.split()).translate(_FROM_URL_SAFE)
        return base64.b64decode(payload.rstrip("=") + "=" * (-len(payload.rstrip("=")) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "the data URL is not valid base64; encode the file again") from None


def _after_base64_mark(url: str) -> tuple[bool, str]:
    """Return True and the payload of a base64 URL, whose type may have commas of its own."""
    mark = ";base64,"
    start = url[:_MAX_TYPE_CHARACTERS].lower().find(mark)
    return start >= 0, url[start + len(mark) :]
