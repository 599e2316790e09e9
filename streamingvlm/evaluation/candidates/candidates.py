"""Who is evaluated: the session under any policy, the last few frames without a cache, a model behind an address.

All watch the same clips in the file's own times, and nothing that comes after the end of a line is seen before it is
said.
"""

import io
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image

from streamingvlm.cache.eviction import kept_text_ranges
from streamingvlm.config import TIME_SLACK_S, CacheConfig, SamplingConfig, VideoConfig, above, at_least, one_of, resolve
from streamingvlm.endpoint import (
    CHARACTERS_PER_TOKEN,
    ChatEndpoint,
    ContentPart,
    CostEstimate,
    EndpointConfig,
    image_part,
    text_part,
)
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.candidates.clips import Clip, evenly, num_frames_before, spread
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.turns import ELLIPSIS, TurnFormat
from streamingvlm.video.clock import VideoTurn

_JPEG_QUALITY = 85
_PIXELS_PER_TOKEN = 28 * 28
"""Of an image, for estimates; Qwen's, while other models count otherwise."""


class Candidate(Protocol):
    """Whoever comments on clips.

    name: as a table calls it; path: how it answers, "streaming cache" or "remote endpoint" for instance; num_parallel:
    clips that it may watch at a time.
    """

    name: str
    path: str
    num_parallel: int

    def comment(self, clip: Clip) -> Iterator[Commentary]:
        """Watch the clip and yield what is said, in order and in the file's own times."""

    def answer(self, clip: Clip, question: str) -> str:
        """Watch the clip to its end, then answer."""


class SessionCandidate:
    """The real session, a fresh one for each clip, on a model that is loaded once.

    model: as it was loaded with the streaming attention, or a name for `load_model`.
    cache, video, sampling: as of `StreamingSession`; what is not given is the checkpoint's.
    before_question: what it does until a question comes: ``listen``, saying nothing, or ``comment``.
    """

    num_parallel = 1

    def __init__(
        self,
        model: StreamingModel | str | Path,
        *,
        name: str | None = None,
        cache: CacheConfig | Mapping[str, Any] | None = None,
        video: VideoConfig | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
        before_question: Literal["listen", "comment"] = "listen",
    ):
        one_of("candidate.before_question", before_question, ("listen", "comment"))
        self.before_question = before_question
        self.model = model if isinstance(model, StreamingModel) else load_model(model)
        defaults = self.model.stream_defaults
        self.cache_config = resolve(CacheConfig, cache, defaults)
        self.video_config = resolve(VideoConfig, video, defaults)
        self.sampling_config = resolve(SamplingConfig, sampling, defaults)
        self.name = name or self.model.name
        self.path = _how_it_remembers(self.cache_config)

    def open_session(self, clip: Clip) -> StreamingSession:
        """A session that is ready for the first second of a clip."""
        return StreamingSession(
            self.model,
            cache=self.cache_for(clip),
            video=self.video_config,
            sampling=self.sampling_config,
            query=clip.query,
            previous_text=clip.previous_text,
        )

    def cache_for(self, clip: Clip) -> CacheConfig:
        """What the cache keeps while this clip is watched."""
        return self.cache_config

    def comment(self, clip: Clip) -> Iterator[Commentary]:
        """Watch the clip and yield a Commentary a turn; VideoError where the file cannot be watched."""
        session = self.open_session(clip)
        for second in clip.seconds(self.video_config):
            yield session.step(second)

    def answer(self, clip: Clip, question: str, *, max_new_tokens: int | None = None) -> str:
        """Watch the clip, then answer the question, which joins its last second; errors as of `comment`.

        max_new_tokens: of the answer; by default as of any turn.
        """
        session = self.open_session(clip)
        seconds = self.seconds_before_question(clip)
        newest = next(seconds)
        for second in seconds:
            if self.before_question == "comment":
                session.step(newest)
            else:
                session.hear(newest, "")
            newest = second
        return session.step(newest, question=question, max_new_tokens=max_new_tokens).text

    def seconds_before_question(self, clip: Clip) -> Iterator[VideoTurn]:
        """The turns that it looks at before it answers."""
        return clip.seconds_to_the_end(self.video_config)


class LastFrames(SessionCandidate):
    """The newest frames alone, read afresh for every line: the baseline of SimpleStream.

    Of text it knows the query and what the clip says was said before, cut as for any session, never its own words. It
    is the session under a policy that keeps this much, so that prompt, resize and sampling are those of its rivals.
    num_frames: how many frames it sees, a whole number of turns.
    """

    def __init__(
        self,
        model: StreamingModel | str | Path,
        *,
        num_frames: int = 4,
        name: str | None = None,
        video: VideoConfig | Mapping[str, Any] | None = None,
        sampling: SamplingConfig | Mapping[str, Any] | None = None,
    ):
        super().__init__(model, name=name, video=video, sampling=sampling)
        turn_frames = self.video_config.num_frames
        if num_frames < turn_frames or num_frames % turn_frames:
            raise ConfigError(
                f"num_frames={num_frames} is no whole number of turns of {turn_frames} frames; give {turn_frames} or "
                "a multiple, or another video.fps"
            )
        self.window_s = num_frames // turn_frames * self.video_config.turn_s
        self.path = f"last {num_frames} frames, no cache"

    def open_session(self, clip: Clip) -> StreamingSession:
        """A session that is ready for the first second of a clip, and will remember of text what it has by then."""
        ids = self._text_ids(clip.previous_text)
        survivors = kept_text_ranges(len(ids), *self.cache_config.text_limits)
        kept = [token for first, last in survivors for token in ids[first:last]]
        text = clip.previous_text if len(kept) == len(ids) else self.model.tokenizer.decode(kept)
        return super().open_session(replace(clip, previous_text=text))

    def cache_for(self, clip: Clip) -> CacheConfig:
        """Vision of the newest frames; of the text, all that was there before the clip and nothing that is said."""
        return replace(
            self.cache_config,
            text_sink_tokens=len(self._text_ids(clip.previous_text)),
            text_window_tokens=0,
            vision_window_s=self.window_s,
            turn_window_s=self.video_config.turn_s,
            recompute=True,
        )

    def seconds_before_question(self, clip: Clip) -> Iterator[VideoTurn]:
        """The turns of the newest frames; what came before leaves no trace, so it is not read."""
        fps = self.video_config.fps
        if clip.is_finite:
            num_skipped = num_frames_before(clip.end_s - clip.start_s, fps) - round(self.window_s * fps)
            clip = replace(clip, start_s=clip.start_s + max(0, num_skipped) / fps)
        num_turns = round(self.window_s / self.video_config.turn_s)
        return iter(deque(clip.seconds_to_the_end(self.video_config), maxlen=num_turns))

    def _text_ids(self, text: str) -> tuple[int, ...]:
        return TurnFormat.of(self.model.tokenizer, self.model.family, self.video_config).encode_plain(text)


def _how_it_remembers(cache: CacheConfig) -> str:
    if cache.recompute:
        return "window, read afresh each second"
    return {
        "streaming": "streaming cache",
        "reference": "streaming cache, as released",
        "full": "cache of everything",
        "window": "window without overlap",
    }[cache.policy]


@dataclass(frozen=True)
class EndpointView:
    """How much of a clip a model behind an address is shown.

    turn_s: seconds for which it is asked at a time; fps: frames a second of them; max_frames: of one question, evenly
    spread where there are more; max_pixels: of a frame, the aspect ratio kept; max_tokens: of an answer.
    history_characters: of what it has said itself and of what was said before, the newest, told to it.
    """

    turn_s: float = 10.0
    fps: float = 1.0
    max_frames: int = 16
    max_pixels: int = 512 * 512
    max_tokens: int = 120
    history_characters: int = 4000

    def __post_init__(self):
        above("candidate.turn_s", self.turn_s, 0, "seconds asked about at a time")
        above("candidate.fps", self.fps, 0, "frames a second")
        for field in ("max_frames", "max_pixels", "max_tokens"):
            at_least(f"candidate.{field}", getattr(self, field), 1, "or it is shown, or says, nothing")
        at_least("candidate.history_characters", self.history_characters, 0, "0 tells it nothing")


_COMMENT = """\
You are the live commentator of a video that you watch as it happens. You are shown the frames of its newest seconds.
Say what you would say on air over just these seconds: plain spoken words, no headings, no lists, no times. If nothing
there is worth a word, answer with three dots alone."""
_ANSWER = "You are shown frames of a video in their order. Answer the question about it, and say nothing else."


class EndpointCandidate:
    """A vision-language model behind an address that speaks OpenAI's chat protocol.

    It is shown frames as JPEG, a few at a time, each question with the newest of what was said before it. Answers are
    kept by `ChatEndpoint`, so that a run that was broken off asks nothing twice.
    """

    path = "remote endpoint"

    def __init__(self, endpoint: ChatEndpoint, view: EndpointView | None = None, *, name: str | None = None):
        self.endpoint = endpoint
        self.view = view or EndpointView()
        self.name = name or endpoint.config.model
        self.num_parallel = endpoint.config.num_parallel

    def comment(self, clip: Clip) -> Iterator[Commentary]:
        """Yield a Commentary for every ``turn_s`` of the clip, silent where no answer could be used.

        Raises EndpointError where the endpoint refuses or is not there, VideoError as `Clip.seconds` does.
        """
        said = clip.previous_text
        for seconds in _grouped(clip.seconds(self._video()), self.view.turn_s):
            frames = spread([frame for second in seconds for frame in second.frames], self.view.max_frames)
            images = [self._image(frame) for frame in frames]
            started_s, ended_s = seconds[0].start_s, seconds[-1].end_s
            text = self._ask(_COMMENT, images, self._told(clip.query, said, started_s, ended_s)) or ""
            said = f"{said} {text}".strip()
            yield Commentary(started_s, ended_s, text)

    def answer(self, clip: Clip, question: str) -> str:
        """Answer from frames spread evenly over the clip, "" where no answer could be used; errors as of `comment`."""
        frames = (frame for second in clip.seconds_to_the_end(self._video()) for frame in second.frames)
        images = evenly(frames, self.view.max_frames, self._image)
        previous = clip.previous_text[-self.view.history_characters :] if self.view.history_characters else ""
        told = [previous and f"Said before this part of the video: {previous}", clip.query, question]
        return self._ask(_ANSWER, images, "\n".join(filter(None, told))) or ""

    def estimate(self, clips: Iterable[Clip]) -> CostEstimate:
        """Count what commenting on clips of known ends will ask, at most; what is kept is not known beforehand."""
        view, lengths_s = self.view, [clip.end_s - clip.start_s for clip in clips]
        num_requests = sum(math.ceil(length_s / view.turn_s) for length_s in lengths_s)
        num_images = num_requests * min(view.max_frames, math.ceil(view.turn_s * view.fps))
        num_text = num_requests * (len(_COMMENT) + view.history_characters) // CHARACTERS_PER_TOKEN
        num_in = num_text + num_images * view.max_pixels // _PIXELS_PER_TOKEN
        num_out = num_requests * view.max_tokens
        cost_usd = self.endpoint.config.cost_usd(num_in, num_out)
        return CostEstimate(f"{self.name}, commenting,", num_requests, 0, num_in, num_out, cost_usd)

    def _video(self) -> VideoConfig:
        # Frames come second by second, so that a clip may end at any second.
        turn_s = max(1.0, 1 / self.view.fps)
        return VideoConfig(fps=self.view.fps, turn_s=turn_s)

    def _told(self, query: str, said: str, started_s: float, ended_s: float) -> str:
        history = said[-self.view.history_characters :] if self.view.history_characters else ""
        parts = [
            query,
            history and f"What was said so far, by you or before you took over: {history}",
            f"The frames show the video from {started_s:g} s to {ended_s:g} s. Your words for these seconds:",
        ]
        return "\n".join(filter(None, parts))

    def _image(self, frame: torch.Tensor) -> ContentPart:
        return image_part(_jpeg(frame, self.view.max_pixels))

    def _ask(self, instructions: str, images: Sequence[ContentPart], text: str) -> str | None:
        request = self.endpoint.request(
            [("system", instructions), ("user", [*images, text_part(text)])], max_tokens=self.view.max_tokens
        )
        return self.endpoint.ask(request, _spoken)


def candidate_from(options: Mapping[str, Any], *, work_folder: str | Path = ".") -> Candidate:
    """The candidate that options of ``configs/candidate/`` describe.

    kind: session, last_frames, offline_generate or endpoint; the other options are those of its class. work_folder:
        where an endpoint's answers are kept. Raises ConfigError for an unknown kind, and what loading a model or asking
        for a key raises.
    """
    options = dict(options)
    kind = options.pop("kind", None)
    if kind == "endpoint":
        endpoint = ChatEndpoint(EndpointConfig(**options.pop("endpoint")), Path(work_folder) / "answers")
        return EndpointCandidate(endpoint, name=options.pop("name", None), view=EndpointView(**options))
    if kind == "offline_generate":
        from streamingvlm.evaluation.candidates.offline_generate import (
            OrdinaryGeneration,  # which builds on this module
        )

        return OrdinaryGeneration(load_model(**options.pop("model")), **options)
    classes = {"session": SessionCandidate, "last_frames": LastFrames}
    if kind not in classes:
        kinds = ", ".join([*classes, "offline_generate", "endpoint"])
        raise ConfigError(f"candidate.kind={kind} is unknown; choose one of {kinds}")
    return classes[kind](load_model(**options.pop("model")), **options)


def _grouped(seconds: Iterator[VideoTurn], turn_s: float) -> Iterator[list[VideoTurn]]:
    """Seconds in groups that last ``turn_s``, the last one as long as it is."""
    group: list[VideoTurn] = []
    for second in seconds:
        group.append(second)
        if second.end_s - group[0].start_s >= turn_s - TIME_SLACK_S:
            yield group
            group = []
    if group:
        yield group


def _jpeg(frame: torch.Tensor, max_pixels: int) -> bytes:
    """A frame, uint8 [3, H, W], as JPEG."""
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    if (shrink := math.sqrt(max_pixels / (image.width * image.height))) < 1:
        image = image.resize((max(1, int(image.width * shrink)), max(1, int(image.height * shrink))))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_JPEG_QUALITY)
    return data.getvalue()


def _spoken(answer: str) -> str:
    """The words of an answer in one line, "" for three dots; ValueError for an answer of nothing."""
    if not (words := answer.split()):
        raise ValueError("an empty answer")
    text = " ".join(words)
    return "" if text in (ELLIPSIS.strip(), "…") else text
