"""Requests for one-shot clips in the format of OpenAI's chat completions, and the turns of their video."""

import base64
import binascii
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from streamingvlm.config import VideoConfig
from streamingvlm.errors import VideoError
from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.api_requests import check_unicode
from streamingvlm.serving.jpeg import decode_jpeg
from streamingvlm.serving.server_config import ServerLimits
from streamingvlm.video.reader import open_video
from streamingvlm.video.video_turn import VideoTurn

_MAX_IMAGES = 1024


class _OpenAIModel(BaseModel):
    # OpenAI's clients send many fields that this server does not use.
    model_config = ConfigDict(extra="ignore")


class MediaUrl(_OpenAIModel):
    """A picture or a video as a data URL."""

    url: str


class MessagePart(_OpenAIModel):
    """A text, picture or video of a message."""

    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: MediaUrl | None = None
    video_url: MediaUrl | None = None


class ChatMessage(_OpenAIModel):
    """A message of the chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[MessagePart] | None = None

    def texts(self) -> list[str]:
        """Return the texts of the message."""
        if isinstance(self.content, str):
            return [self.content]
        return [part.text for part in self.content or [] if part.type == "text" and part.text]


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
    n: Literal[1] = 1

    def sampling(self) -> dict[str, Any]:
        """Return the sampling parameters that the client has set."""
        names = ("temperature", "top_p", "seed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def question(self) -> str:
        """Return the user's question, "" if commentary is wanted."""
        return check_unicode(
            "\n".join(text for message in self.messages if message.role == "user" for text in message.texts())
        )

    def query(self) -> str:
        """Return the stream's query: the system and developer messages."""
        roles = ("system", "developer")
        return check_unicode("\n".join(text for m in self.messages if m.role in roles for text in m.texts()))

    def urls(self, kind: str) -> list[str]:
        """Return the URLs of all parts of type ``image_url`` or ``video_url``, in order. Raises ApiError."""
        parts = [part for m in self.messages if isinstance(m.content, list) for part in m.content if part.type == kind]
        media = [getattr(part, kind) for part in parts]
        if any(url is None for url in media):
            raise ApiError(400, f'a part of type {kind} has no URL; give {{"{kind}": {{"url": "data:..."}}}}')
        return [url.url for url in media]


class ClipTurns:
    """The turns of a clip; they are decoded in one thread and closed from any.

    A cancelled request closes its clip while a worker thread may still be decoding: ``close`` then waits for that turn.
    """

    def __init__(self, turns: Iterator[VideoTurn]):
        self._turns = turns
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[VideoTurn]:
        return self

    def __next__(self) -> VideoTurn:
        with self._lock:
            return next(self._turns)

    def close(self):
        """End the iteration and close the file."""
        with self._lock:
            self._turns.close()


def clip_turns(request: ChatRequest, folder: Path, video: VideoConfig, limits: ServerLimits) -> ClipTurns:
    """Return the turns of the clip; a video is written to ``folder``. Raises ApiError and VideoError."""
    videos, images = request.urls("video_url"), request.urls("image_url")
    if len(videos) + bool(images) != 1:
        raise ApiError(400, "give one clip: a video_url, or its frames as image_url parts")
    if videos:
        path = folder / "clip"
        path.write_bytes(_from_data_url(videos[0], "video/"))
        return ClipTurns(_limit_length(_file_turns(path, video, limits), limits))
    if len(images) > _MAX_IMAGES:
        raise ApiError(400, f"the clip has {len(images)} frames, at most {_MAX_IMAGES} are accepted; send fewer")
    return ClipTurns(_limit_length(_image_turns(images, video, limits), limits))


def _file_turns(path: Path, video: VideoConfig, limits: ServerLimits) -> Iterator[VideoTurn]:
    try:
        with open_video(path, fps=video.fps, turn_s=video.turn_s, decoder="pyav", prefetch=1) as reader:
            _check_length(reader.info.duration_s or 0.0, limits)
            yield from reader
    except VideoError as error:
        raise VideoError(str(error).replace(repr(str(path)), "the clip")) from None


def _image_turns(urls: Sequence[str], video: VideoConfig, limits: ServerLimits) -> Iterator[VideoTurn]:
    """Yield turns of consecutive frames at the model's frame rate; the last frame fills up the last turn."""
    for index, first in enumerate(range(0, len(urls), video.num_frames)):
        data = [_from_data_url(url, "image/") for url in urls[first : first + video.num_frames]]
        frames = [decode_jpeg(picture, max_pixels=limits.max_frame_pixels) for picture in data]
        if len({frame.shape for frame in frames}) > 1:
            raise ApiError(400, "the frames of the clip differ in size; send all in one size")
        frames += [frames[-1]] * (video.num_frames - len(frames))
        yield VideoTurn(index, index * video.turn_s, (index + 1) * video.turn_s, torch.stack(frames))


def _limit_length(turns: Iterator[VideoTurn], limits: ServerLimits) -> Iterator[VideoTurn]:
    """Check the length again while decoding: a file may be longer than its header says."""
    for turn in turns:
        _check_length(turn.start_s, limits)
        yield turn


def _check_length(length_s: float, limits: ServerLimits):
    if length_s > limits.max_clip_s:
        raise ApiError(400, f"the clip is longer than {limits.max_clip_s:g} s; cut it, or open a session")


def _from_data_url(url: str, kind: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not (url[:5].lower() == "data:" and comma and head.lower().endswith(";base64")):
        raise ApiError(400, f"a clip must be sent within the request; give data:{kind}...;base64,...")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "the data URL is not valid base64; encode the file again") from None
