"""The resolved settings of one stream, with the vision encoder and the turn format that follow from them."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypedDict

from streamingvlm.cache.eviction import capacity_tokens
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig, resolve
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.stream_settings import contradictions
from streamingvlm.model.vision import VisionEncoder
from streamingvlm.turns import Turn, TurnFormat

log = logging.getLogger(__name__)

# The longest time label and turn number that a stream may reach: four months of seconds.
_LAST_TURN_S = 9_999_999.0

Given = Mapping[str, Any] | None


class SessionSettings(TypedDict, total=False):
    """The keyword arguments of `StreamingSession`, except an engine, which has a model already."""

    cache: CacheConfig | Mapping[str, Any] | str | None
    video: VideoConfig | Mapping[str, Any] | None
    sampling: SamplingConfig | Mapping[str, Any] | None
    query: str
    previous_text: str
    on_token: Callable[[str], None] | None
    autosave: str | Path | None


@dataclass(frozen=True)
class StreamConfig:
    """The model and settings of one stream, with vision encoder and turn format. Constant while the stream runs."""

    model: StreamingModel
    cache: CacheConfig
    video: VideoConfig
    sampling: SamplingConfig
    vision_encoder: VisionEncoder
    turn_format: TurnFormat

    @classmethod
    def resolve(
        cls,
        model: StreamingModel,
        *,
        cache: CacheConfig | Given | str = None,
        video: VideoConfig | Given = None,
        sampling: SamplingConfig | Given = None,
    ) -> Self:
        """Fill what was not given from the checkpoint's own settings, then from the defaults. Raises ConfigError."""
        own = model.stream_defaults
        video = resolve(VideoConfig, video, own)
        if differing := contradictions(video, own):
            log.warning("%s was trained with other turns than it is given now: %s", model.name, ", ".join(differing))
        return cls(
            model,
            resolve(CacheConfig, cache, own),
            video,
            resolve(SamplingConfig, sampling, own),
            model.vision_encoder(min_pixels=video.min_pixels, max_pixels=video.max_pixels, resize=video.resize),
            TurnFormat.of(model.tokenizer, model.family, video),
        )

    def with_cache_dtype(self, dtype: str | None) -> Self:
        """Return the same settings with the cache stored as ``dtype``."""
        return replace(self, cache=replace(self.cache, dtype=dtype))

    def capacity_tokens(self, query: str, previous_text: str) -> int | None:
        """Return the largest number of tokens that the cache can hold, None if the policy has no bound."""
        turn = Turn(0, _LAST_TURN_S, _LAST_TURN_S, self.vision_encoder.largest_grid(self.video.num_frames))
        markup_tokens = len(self.turn_format.prologue()) + len(self.turn_format.standing_query(turn, query))
        reply_tokens = self.sampling.max_new_tokens + 1
        turn_tokens = len(self.turn_format.line_feed(turn) + self.turn_format.open_turn(turn)) + reply_tokens
        return capacity_tokens(
            self.cache,
            markup_tokens=markup_tokens,
            previous_tokens=len(self.turn_format.encode_plain(previous_text)),
            turn_tokens=turn_tokens,
            turn_s=self.video.turn_s,
        )
