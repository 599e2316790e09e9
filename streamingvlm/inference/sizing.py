"""The memory that streams need: how large an engine's key/value pool is, and how many streams a device holds."""

import math
from dataclasses import dataclass
from typing import Self

from streamingvlm.cache.kv_cache import bytes_per_token, pool_bytes
from streamingvlm.inference.fork_requests import FORK_RESERVE_TOKENS
from streamingvlm.inference.stream_config import StreamConfig


def stream_tokens(config: StreamConfig, query: str = "", previous_text: str = "") -> int | None:
    """Return the tokens that an engine reserves for a stream, with room for a fork; None if its cache has no bound."""
    capacity = config.capacity_tokens(query, previous_text)
    return capacity and capacity + FORK_RESERVE_TOKENS


@dataclass(frozen=True)
class StreamSizing:
    """The memory of a model and of streams that share one configuration.

    weight_bytes: of all parameters in the model's dtype. tokens: that an engine reserves for a stream; None without a
    bound. token_bytes: of one token in the pool. Activations and the libraries of the device come on top.
    """

    num_parameters: int
    weight_bytes: int
    tokens: int | None
    token_bytes: int

    @classmethod
    def of(cls, config: StreamConfig, query: str = "", previous_text: str = "") -> Self:
        """Size streams of this configuration. The model may be without weights."""
        model = config.model
        return cls(
            sum(parameter.numel() for parameter in model.hf.parameters()),
            sum(parameter.nbytes for parameter in model.hf.parameters()),
            stream_tokens(config, query, previous_text),
            bytes_per_token(model.text_model.config, model.dtype, config.cache.dtype),
        )

    def cache_bytes(self, num_streams: int) -> int | None:
        """Return the size of the pool of an engine for this many streams; None if it has no bound."""
        return self.tokens and pool_bytes(num_streams * self.tokens, self.token_bytes)

    def num_fitting(self, memory_bytes: int) -> int | None:
        """Return how many streams fit beside the weights; None if a stream has no bound."""
        if self.tokens is None:
            return None
        spare_tokens = (memory_bytes - self.weight_bytes - pool_bytes(0, self.token_bytes)) // self.token_bytes
        return max(0, spare_tokens // self.tokens)


def tokens_per_s(config: StreamConfig, height: int, width: int) -> float:
    """Return the vision tokens of a second of video whose frames have this size."""
    return math.prod(config.vision_encoder.grid(config.video.num_frames, height, width)) / config.video.turn_s
