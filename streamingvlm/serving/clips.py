"""One-shot clips: a chat request in OpenAI's shape, and the seconds of the video in it."""

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from streamingvlm.config import VideoConfig
from streamingvlm.errors import VideoError
from streamingvlm.serving.config import Limits
from streamingvlm.serving.pictures import decode_jpeg
from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.requests import readable
from streamingvlm.video.reader import open_video
from streamingvlm.video.video_turn import VideoTurn

_MAX_FRAMES_OF_IMAGES = 1024


class _Lenient(BaseModel):
    # Clients of this protocol send many names that mean nothing here.
    model_config = ConfigDict(extra="ignore")


class Link(_Lenient):
    """Where a picture or a video is; here: in the link itself."""

    url: str


class Part(_Lenient):
    """A piece of a message."""

    type: Literal["text", "image_url", "video_url"]
    text: str | None = None
    image_url: Link | None = None
    video_url: Link | None = None


class Message(_Lenient):
    """A message of the chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part] | None = None

    def texts(self) -> list[str]:
        """The words of the message."""
        if isinstance(self.content, str):
            return [self.content]
        return [part.text for part in self.content or [] if part.type == "text" and part.text]


class StreamOptions(_Lenient):
    """What a stream of chunks ends with."""

    include_usage: bool = False


class ChatAsked(_Lenient):
    """A chat request: one clip, and what is asked of it."""

    model: str = ""
    messages: list[Message] = Field(min_length=1, max_length=64)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=0, lt=2**31)
    n: Literal[1] = 1

    def sampling(self) -> dict[str, Any]:
        """How tokens are to be chosen, as far as it is said."""
        names = ("temperature", "top_p", "seed")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def question(self) -> str:
        """What the user asks of the clip, "" for its commentary."""
        return readable(
            "\n".join(text for message in self.messages if message.role == "user" for text in message.texts())
        )

    def instruction(self) -> str:
        """What stands for the whole clip."""
        standing = ("system", "developer")
        return readable("\n".join(text for m in self.messages if m.role in standing for text in m.texts()))

    def links(self, kind: str) -> list[str]:
        """The links of all pictures, or of all videos, in order."""
        parts = [part for m in self.messages if isinstance(m.content, list) for part in m.content if part.type == kind]
        links = [getattr(part, kind) for part in parts]
        if any(link is None for link in links):
            raise Refusal(400, f'a part of type {kind} has no link; give {{"{kind}": {{"url": "data:..."}}}}')
        return [link.url for link in links]


def seconds_of(asked: ChatAsked, folder: Path, video: VideoConfig, limits: Limits) -> Iterator[VideoTurn]:
    """The seconds of the clip. Raises Refusal and VideoError."""
    videos, images = asked.links("video_url"), asked.links("image_url")
    if len(videos) + bool(images) != 1:
        raise Refusal(400, "give one clip: a video_url, or the frames of it as image_url parts")
    if videos:
        path = folder / "clip"
        path.write_bytes(_from_data_url(videos[0], "video/"))
        return _limited(_of_file(path, video, limits), limits)
    if len(images) > _MAX_FRAMES_OF_IMAGES:
        raise Refusal(400, f"a clip has at most {_MAX_FRAMES_OF_IMAGES} frames; send fewer")
    return _limited(_of_images(images, video, limits), limits)


def _of_file(path: Path, video: VideoConfig, limits: Limits) -> Iterator[VideoTurn]:
    try:
        with open_video(path, fps=video.fps, turn_s=video.turn_s, decoder="pyav", prefetch=1) as reader:
            _check_length(reader.info.duration_s or 0.0, limits)
            yield from reader
    except VideoError as error:
        raise VideoError(str(error).replace(repr(str(path)), "the clip")) from None


def _of_images(links: Sequence[str], video: VideoConfig, limits: Limits) -> Iterator[VideoTurn]:
    """Frames that follow each other at the model's own rate."""
    for index, first in enumerate(range(0, len(links), video.num_frames)):
        data = [_from_data_url(link, "image/") for link in links[first : first + video.num_frames]]
        frames = [decode_jpeg(picture, max_pixels=limits.max_frame_pixels) for picture in data]
        if len({frame.shape for frame in frames}) > 1:
            raise Refusal(400, "the frames of the clip differ in size; send all of one size")
        frames += [frames[-1]] * (video.num_frames - len(frames))
        yield VideoTurn(index, index * video.turn_s, (index + 1) * video.turn_s, torch.stack(frames))


def _limited(seconds: Iterator[VideoTurn], limits: Limits) -> Iterator[VideoTurn]:
    """The seconds as they come: a file may say that it is shorter than it is."""
    for second in seconds:
        _check_length(second.start_s, limits)
        yield second


def _check_length(length_s: float, limits: Limits):
    if length_s > limits.max_clip_s:
        raise Refusal(400, f"the clip is longer than {limits.max_clip_s:g} s; cut it, or open a session")


def _from_data_url(url: str, kind: str) -> bytes:
    head, comma, payload = url.partition(",")
    if not (url[:5].lower() == "data:" and comma and head.lower().endswith(";base64")):
        raise Refusal(400, f"a clip comes within the request; give data:{kind}...;base64,...")
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(400, "a data URL is not base64; encode it anew") from None
