"""A vision-language model behind an address that serves OpenAI's chat protocol."""

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from streamingvlm.config import TIME_SLACK_S, VideoConfig, above, at_least
from streamingvlm.endpoint import CHARACTERS_PER_TOKEN, ChatEndpoint, ContentPart, CostEstimate, image_part, text_part
from streamingvlm.evaluation.candidates.video_clip import Clip, evenly_spaced, sample_evenly
from streamingvlm.inference.commentary import Commentary
from streamingvlm.turns import ELLIPSIS
from streamingvlm.video.video_turn import VideoTurn

_JPEG_QUALITY = 85
_PIXELS_PER_TOKEN = 28 * 28
"""Pixels of an image per token, for cost estimates. This is Qwen's figure; other models differ."""


@dataclass(frozen=True)
class EndpointView:
    """The frames and text that an endpoint receives with each request.

    turn_s: seconds of video per request; fps: frames per second; max_frames: per request, evenly spaced where there are
    more; max_pixels: per frame, the aspect ratio kept; max_tokens: of an answer; history_characters: the newest
    characters of its own replies and of the previous text, sent with each request.
    """

    turn_s: float = 10.0
    fps: float = 1.0
    max_frames: int = 16
    max_pixels: int = 512 * 512
    max_tokens: int = 120
    history_characters: int = 4000

    def __post_init__(self):
        above("candidate.turn_s", self.turn_s, 0, "seconds of video per request")
        above("candidate.fps", self.fps, 0, "frames per second")
        for field in ("max_frames", "max_pixels", "max_tokens"):
            at_least(
                f"candidate.{field}", getattr(self, field), 1, "a request needs frames, and an answer needs tokens"
            )
        at_least("candidate.history_characters", self.history_characters, 0, "0 sends no history")


_COMMENT = """\
You are the live commentator of a video that you watch as it happens. You are shown the frames of its newest seconds.
Say what you would say on air over just these seconds: plain spoken words, no headings, no lists, no times. If nothing
there is worth a word, answer with three dots alone."""
_ANSWER = "You are shown frames of a video in their order. Answer the question about it, and say nothing else."


class EndpointCandidate:
    """A remote model that receives frames as JPEG and the newest text of the commentary with each request.

    `ChatEndpoint` stores every answer, so a run that is resumed sends no request twice.
    """

    path = "remote endpoint"

    def __init__(self, endpoint: ChatEndpoint, view: EndpointView | None = None, *, name: str | None = None):
        self.endpoint = endpoint
        self.view = view or EndpointView()
        self.name = name or endpoint.config.model
        self.num_parallel = endpoint.config.num_parallel

    def comment(self, clip: Clip) -> Iterator[Commentary]:
        """Yield a Commentary for every ``turn_s`` of the clip, silent where no answer could be used.

        Raises EndpointError where the endpoint refuses or cannot be reached, VideoError as `Clip.turns` does.
        """
        history = clip.previous_text
        for turns in _grouped(clip.turns(self._video()), self.view.turn_s):
            frames = evenly_spaced([frame for turn in turns for frame in turn.frames], self.view.max_frames)
            images = [self._image(frame) for frame in frames]
            start_s, end_s = turns[0].start_s, turns[-1].end_s
            text = self._ask(_COMMENT, images, self._user_text(clip.query, history, start_s, end_s)) or ""
            history = f"{history} {text}".strip()
            yield Commentary(start_s, end_s, text)

    def answer(self, clip: Clip, question: str) -> str:
        """Answer from frames evenly spaced over the clip, "" where no answer could be used; errors as of `comment`."""
        frames = (frame for turn in clip.turns_to_end(self._video()) for frame in turn.frames)
        images = sample_evenly(frames, self.view.max_frames, self._image)
        previous = self._newest(clip.previous_text)
        parts = [previous and f"Said before this part of the video: {previous}", clip.query, question]
        return self._ask(_ANSWER, images, "\n".join(filter(None, parts))) or ""

    def estimate(self, clips: Iterable[Clip]) -> CostEstimate:
        """Return an upper bound of the requests and tokens of commenting on clips of known ends.

        Answers that are stored already are counted as well.
        """
        view, lengths_s = self.view, [clip.end_s - clip.start_s for clip in clips]
        num_requests = sum(math.ceil(length_s / view.turn_s) for length_s in lengths_s)
        num_images = num_requests * min(view.max_frames, math.ceil(view.turn_s * view.fps))
        num_text = num_requests * (len(_COMMENT) + view.history_characters) // CHARACTERS_PER_TOKEN
        num_in = num_text + num_images * view.max_pixels // _PIXELS_PER_TOKEN
        num_out = num_requests * view.max_tokens
        cost_usd = self.endpoint.config.cost_usd(num_in, num_out)
        return CostEstimate(f"{self.name}, commenting,", num_requests, 0, num_in, num_out, cost_usd)

    def _video(self) -> VideoConfig:
        # Turns of one second, so that a clip may end at any second.
        turn_s = max(1.0, 1 / self.view.fps)
        return VideoConfig(fps=self.view.fps, turn_s=turn_s)

    def _user_text(self, query: str, history: str, start_s: float, end_s: float) -> str:
        newest = self._newest(history)
        parts = [
            query,
            newest and f"What was said so far, by you or before you took over: {newest}",
            f"The frames show the video from {start_s:g} s to {end_s:g} s. Your words for these seconds:",
        ]
        return "\n".join(filter(None, parts))

    def _newest(self, text: str) -> str:
        return text[-self.view.history_characters :] if self.view.history_characters else ""

    def _image(self, frame: torch.Tensor) -> ContentPart:
        return image_part(_jpeg(frame, self.view.max_pixels))

    def _ask(self, instructions: str, images: Sequence[ContentPart], text: str) -> str | None:
        request = self.endpoint.request(
            [("system", instructions), ("user", [*images, text_part(text)])], max_tokens=self.view.max_tokens
        )
        return self.endpoint.ask(request, _one_line)


def _grouped(turns: Iterator[VideoTurn], group_s: float) -> Iterator[list[VideoTurn]]:
    """Group turns into lists of ``group_s`` seconds; the last list may be shorter."""
    group: list[VideoTurn] = []
    for turn in turns:
        group.append(turn)
        if turn.end_s - group[0].start_s >= group_s - TIME_SLACK_S:
            yield group
            group = []
    if group:
        yield group


def _jpeg(frame: torch.Tensor, max_pixels: int) -> bytes:
    """Encode a frame, uint8 [3, H, W], as JPEG of at most ``max_pixels``."""
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    if (shrink := math.sqrt(max_pixels / (image.width * image.height))) < 1:
        image = image.resize((max(1, int(image.width * shrink)), max(1, int(image.height * shrink))))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_JPEG_QUALITY)
    return data.getvalue()


def _one_line(answer: str) -> str:
    """Return the words of an answer in one line, "" for three dots; ValueError for an empty answer."""
    if not (words := answer.split()):
        raise ValueError("an empty answer")
    return "" if words in ([ELLIPSIS.strip()], ["…"]) else " ".join(words)
