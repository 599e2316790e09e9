"""SimpleStream: the newest frames alone, prefilled again for every line."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from streamingvlm.cache.eviction import kept_text_ranges
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig
from streamingvlm.errors import ConfigError
from streamingvlm.evaluation.candidates.session_candidate import SessionCandidate
from streamingvlm.evaluation.candidates.video_clip import Clip, num_frames_before
from streamingvlm.inference.session import StreamingSession
from streamingvlm.model.loading import StreamingModel
from streamingvlm.turns import TurnFormat
from streamingvlm.video.video_turn import VideoTurn


class LastFrames(SessionCandidate):
    """The newest frames without a cache: the baseline of SimpleStream.

    Its text is the query and the clip's previous text, cut as for any session, never its own replies. It is a session
    under a policy that keeps only this, so that prompt, resize and sampling equal those of the other candidates.
    num_frames: frames in context, a whole number of turns.
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
        """Open a session for a clip, its previous text cut to the limits of the checkpoint's text sink and window."""
        ids = self._text_ids(clip.previous_text)
        kept = [
            token
            for first, last in kept_text_ranges(len(ids), *self.cache_config.text_limits)
            for token in ids[first:last]
        ]
        text = clip.previous_text if len(kept) == len(ids) else self.model.tokenizer.decode(kept)
        return super().open_session(replace(clip, previous_text=text))

    def cache_for(self, clip: Clip) -> CacheConfig:
        """Keep the vision of the newest frames and the previous text of the clip, no replies."""
        return replace(
            self.cache_config,
            text_sink_tokens=len(self._text_ids(clip.previous_text)),
            text_window_tokens=0,
            vision_window_s=self.window_s,
            turn_window_s=self.video_config.turn_s,
            recompute=True,
        )

    def turns_before_question(self, clip: Clip) -> Iterator[VideoTurn]:
        """Yield the turns of the newest frames; earlier ones would be evicted, so they are not read."""
        fps = self.video_config.fps
        if clip.is_finite:
            num_skipped = num_frames_before(clip.end_s - clip.start_s, fps) - round(self.window_s * fps)
            clip = replace(clip, start_s=clip.start_s + max(0, num_skipped) / fps)
        num_turns = round(self.window_s / self.video_config.turn_s)
        return iter(deque(clip.turns_to_end(self.video_config), maxlen=num_turns))

    def _text_ids(self, text: str) -> tuple[int, ...]:
        return TurnFormat.of(self.model.tokenizer, self.model.family, self.video_config).encode_plain(text)
