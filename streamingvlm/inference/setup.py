"""How one stream is watched: its settings, resolved, and what follows from them alone."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamingvlm.cache.eviction import capacity_tokens
from streamingvlm.config import CacheConfig, SamplingConfig, VideoConfig, resolve
from streamingvlm.model.loading import StreamingModel
from streamingvlm.model.stream_settings import contradictions
from streamingvlm.model.vision import VisionEncoder
from streamingvlm.turns import Turn, TurnFormat

_LOG = logging.getLogger(__name__)

# The longest time label and turn number that a stream may reach: four months of seconds.
_LAST_TURN_S = 9_999_999.0

Given = Mapping[str, Any] | None


@dataclass(frozen=True)
class StreamSetup:
    """The settings of one stream on one model, with its vision encoder and its turn format."""

    model: StreamingModel
    cache: CacheConfig
    video: VideoConfig
    sampling: SamplingConfig
    query: str
    previous_text: str
    vision: VisionEncoder = field(init=False)
    format: TurnFormat = field(init=False)

    def __post_init__(self):
        video = self.video
        encoder = self.model.vision_encoder(
            min_pixels=video.min_pixels, max_pixels=video.max_pixels, resize=video.resize
        )
        object.__setattr__(self, "vision", encoder)
        object.__setattr__(self, "format", TurnFormat.of(self.model.tokenizer, self.model.family, video))

    @classmethod
    def of(
        cls,
        model: StreamingModel,
        *,
        cache: CacheConfig | Given = None,
        video: VideoConfig | Given = None,
        sampling: SamplingConfig | Given = None,
        query: str = "",
        previous_text: str = "",
    ) -> "StreamSetup":
        """Fill what was not given from the checkpoint's own settings. Raises ConfigError."""
        own = model.stream_defaults
        setup = cls(
            model,
            resolve(CacheConfig, cache, own),
            resolve(VideoConfig, video, own),
            resolve(SamplingConfig, sampling, own),
            query,
            previous_text,
        )
        if differing := contradictions(setup.video, own):
            _LOG.warning("%s is shown turns unlike those of its training: %s", model.name, ", ".join(differing))
        return setup

    def capacity_tokens(self) -> int | None:
        """The most tokens that the cache will hold, from the largest turn that these settings allow."""
        turn = Turn(0, _LAST_TURN_S, _LAST_TURN_S, self.vision.largest_grid(self.video.num_frames))
        previous_tokens = len(self.format.encode_plain(self.previous_text))
        markup_tokens = len(self.format.prologue()) + len(self.format.standing_query(turn, self.query))
        reply_tokens = self.sampling.max_new_tokens + 1
        turn_tokens = len(self.format.line_feed(turn) + self.format.open_turn(turn)) + reply_tokens
        return capacity_tokens(
            self.cache,
            markup_tokens=markup_tokens,
            previous_tokens=previous_tokens,
            turn_tokens=turn_tokens,
            turn_s=self.video.turn_s,
        )
