"""`StreamingSession` as a candidate, under any cache policy."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig, one_of, resolve
from streamingvlm.evaluation.candidates.video_clip import Clip
from streamingvlm.inference.commentary import Commentary
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.video.video_turn import VideoTurn


class SessionCandidate:
    """A new session for each clip, on a model that is loaded once.

    model: loaded with the streaming attention, or a name for `load_model`.
    cache, video, sampling: as of `StreamingSession`; settings that are not given are the checkpoint's.
    before_question: what the session does in the turns before a question: ``silent`` forces an empty reply, ``comment``
        generates commentary as in a live stream.
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
        before_question: Literal["silent", "comment"] = "silent",
    ):
        one_of("candidate.before_question", before_question, ("silent", "comment"))
        self.before_question = before_question
        self.model = model if isinstance(model, StreamingModel) else load_model(model)
        defaults = self.model.stream_defaults
        self.cache_config = resolve(CacheConfig, cache, defaults)
        self.video_config = resolve(VideoConfig, video, defaults)
        self.sampling_config = resolve(SamplingConfig, sampling, defaults)
        self.name = name or self.model.name
        self.path = _cache_description(self.cache_config)

    def open_session(self, clip: Clip) -> StreamingSession:
        """Open a session that is ready for the first turn of a clip."""
        return StreamingSession(
            self.model,
            cache=self.cache_for(clip),
            video=self.video_config,
            sampling=self.sampling_config,
            query=clip.query,
            previous_text=clip.previous_text,
        )

    def cache_for(self, clip: Clip) -> CacheConfig:
        """Return the cache policy for this clip."""
        return self.cache_config

    def comment(self, clip: Clip) -> Iterator[Commentary]:
        """Yield a Commentary for each turn of the clip. Raises VideoError where the file cannot be read."""
        session = self.open_session(clip)
        for turn in clip.turns(self.video_config):
            yield session.step(turn)

    def answer(self, clip: Clip, question: str, *, max_new_tokens: int | None = None) -> str:
        """Stream the clip and ask the question in its last turn. Raises the errors of `comment`.

        max_new_tokens: limit of the answer, by default the limit of any turn.
        """
        session = self.open_session(clip)
        turns = self.turns_before_question(clip)
        newest = next(turns)
        for turn in turns:
            if self.before_question == "comment":
                session.step(newest)
            else:
                session.step(newest, reply="")
            newest = turn
        return session.step(newest, question=question, max_new_tokens=max_new_tokens).text

    def turns_before_question(self, clip: Clip) -> Iterator[VideoTurn]:
        """Yield the turns that are streamed before the answer."""
        return clip.turns_to_end(self.video_config)


def _cache_description(cache: CacheConfig) -> str:
    if cache.recompute:
        return "window, recomputed each turn"
    return {
        "streaming": "streaming cache",
        "reference": "streaming cache, as released",
        "full": "full cache",
        "window": "window without overlap",
    }[cache.policy]
