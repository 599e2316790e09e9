"""What a user may set, as frozen dataclasses: units in the names, ranges checked when they are made."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from streamingvlm.errors import ConfigError

# Fractions of a second are compared with this slack, far below any frame interval.
TIME_SLACK_S = 1e-6

# Each name ends in a version: what a name stands for never changes, or a checkpoint would be shown other tokens than it
# was trained on. turns.py says what they look like.
TURN_FORMATS = ("time-range-1", "patch-seconds-1")

# Old names of settings, as a command line spells them; an error about an old name gives the new one.
RENAMED_SETTINGS = {
    "video.chunk_s": "video.turn_s",
    "cache.reread_text": "cache.recompute_text",
    "candidate=ordinary": "candidate=offline_generate",
}


@dataclass(frozen=True)
class CacheConfig:
    """What the cache keeps and how it numbers it.

    policy: ``streaming`` keeps a text sink, a text window and a vision window (Sec. 3 of the paper); ``full`` keeps
        everything; ``window`` starts afresh whenever ``vision_window_s`` is full; ``reference`` keeps, off-by-ones
        included, what the released code keeps.
    positions: ``contiguous`` renumbers the survivors from 0 each second; ``native`` leaves every token the position
        it was born with, which grows for ever.
    text_sink_tokens, text_window_tokens: first and last tokens kept of the text that left its turn; the reference
        policy takes ``None`` for no limit.
    text_step_tokens: tokens that leave the text window at once when it is full, at most all of it: where words that
        move are read anew, they move the more seldom. The reference policy has no steps.
    vision_window_s: seconds of vision kept, the newest second included.
    turn_window_s: seconds of turns kept whole, markup and all, the newest second included.
    recompute: prefill all that is kept afresh each second instead of reusing keys and values.
    recompute_text: prefill the previous text afresh, after the prologue and before any vision as in training, whenever
        words join it; without it they keep the keys and values of the turn in which they were spoken.
    dtype: in which numbers keys and values are kept, ``fp8`` (a byte each) or, by default, as the model computes; all
        streams of an engine share one kind.
    """

    policy: Literal["streaming", "full", "window", "reference"] = "streaming"
    positions: Literal["contiguous", "native"] = "contiguous"
    text_sink_tokens: int | None = 512
    text_window_tokens: int | None = 512
    text_step_tokens: int = 1
    vision_window_s: float = 16.0
    turn_window_s: float = 16.0
    recompute: bool = False
    recompute_text: bool = False
    dtype: Literal["fp8"] | None = None

    def __post_init__(self):
        if self.dtype is not None:
            one_of("cache.dtype", self.dtype, ("fp8",))
        one_of("cache.policy", self.policy, ("streaming", "full", "window", "reference"))
        one_of("cache.positions", self.positions, ("contiguous", "native"))
        for name in ("vision_window_s", "turn_window_s"):
            at_least(f"cache.{name}", getattr(self, name), 1.0, "the newest second is always kept")
        self._check_text_limits()
        at_least("cache.text_step_tokens", self.text_step_tokens, 1, "tokens that leave the text window at once")
        if self.recompute and self.positions == "native":
            raise ConfigError("cache.recompute=true renumbers what it keeps; use cache.positions=contiguous with it")

    def _check_text_limits(self):
        sizes = {name: getattr(self, name) for name in ("text_sink_tokens", "text_window_tokens")}
        for name, size in sizes.items():
            if size is None and self.policy == "streaming":
                raise ConfigError(f"cache.{name} is null, but the streaming policy needs a number of tokens: give one")
            if size is not None:
                at_least(f"cache.{name}", size, 0, "it counts tokens")
        if (self.text_sink_tokens is None) != (self.text_window_tokens is None):
            raise ConfigError(
                "cache.text_sink_tokens and cache.text_window_tokens are limits together: give both or none"
            )

    @property
    def text_limits(self) -> tuple[int, int, int]:
        """Sink, window and step of the text, in tokens."""
        return self.text_sink_tokens, self.text_window_tokens, self.text_step_tokens

    @property
    def is_bounded(self) -> bool:
        """Whether the cache has a largest size whatever the length of the stream."""
        if self.policy == "reference":
            return self.text_window_tokens is not None
        return self.policy != "full"


@dataclass(frozen=True)
class VideoConfig:
    """How video becomes turns: ``fps`` frames a second, ``turn_s`` seconds a turn, pixels a frame, the resize.

    resize: ``processor`` is the video processor's (bicubic on integers), ``qwen_vl_utils`` the one that the released
        checkpoint was trained with (float, rounded, with a cap on the pixels of a frame).
    prefetch: seconds of video decoded ahead of the model.
    turn_format: how a turn is written as tokens, ``time-range-1`` (one time label a turn) or ``patch-seconds-1`` (one a
        temporal patch); by default as the checkpoint was trained.
    """

    fps: float = 2.0
    turn_s: float = 1.0
    min_pixels: int = 100 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    resize: Literal["processor", "qwen_vl_utils"] = "processor"
    decoder: Literal["pyav", "decord"] = "pyav"
    prefetch: int = 2
    turn_format: str | None = None

    def __post_init__(self):
        if self.turn_format is not None:
            one_of("video.turn_format", self.turn_format, TURN_FORMATS)
        one_of("video.resize", self.resize, ("processor", "qwen_vl_utils"))
        one_of("video.decoder", self.decoder, ("pyav", "decord"))
        above("video.fps", self.fps, 0, "frames a second")
        above("video.turn_s", self.turn_s, 0, "seconds a turn")
        at_least("video.min_pixels", self.min_pixels, 1, "pixels a frame")
        at_least("video.max_pixels", self.max_pixels, self.min_pixels, "never below video.min_pixels")
        at_least("video.prefetch", self.prefetch, 1, "seconds decoded ahead")
        if self.num_frames < 1:
            raise ConfigError(
                f"video.fps={self.fps:g} with video.turn_s={self.turn_s:g} makes turns of no frame; raise one of them"
            )

    @property
    def num_frames(self) -> int:
        """Frames of one turn."""
        return round(self.fps * self.turn_s)


@dataclass(frozen=True)
class LiveConfig:
    """How a stream that does not wait is received, and what is done when the model is late.

    policy: ``drop`` takes the newest second and lets the others go; ``coalesce`` makes one turn of all that was missed,
        its frames thinned to those of a turn; ``degrade`` spends fewer pixels, frames and tokens while late, and drops
        beyond ``max_lag_s``; ``wait`` takes every second and holds the source back. None: ``wait`` for what can be held
        back or ends by itself (a pipe, a recording behind an address), ``drop`` for what is live.
    max_lag_s: how far the model may fall behind under ``degrade`` before seconds are dropped.
    max_frames, max_bytes: the most that waits in front of the model.
    open_timeout_s: how long a connection may take to give its first picture.
    stall_timeout_s: a connection that gives no picture for so long is broken.
    retry_min_s, retry_max_s: the wait before a broken connection is tried again, doubled up to the largest.
    retry_for_s: for how long it is tried before the stream ends with an error; None for ever.
    rtsp_transport: ``tcp``, which loses nothing, or ``udp``.
    verify_tls: refuse a server whose certificate is not vouched for; many cameras sign their own.
    http_proxy: the proxy that http and https go through, password and all; None for the direct way.
    camera_size, camera_fps: what is asked of a webcam, "1280x720" and pictures a second; None leaves it to the driver.
    """

    policy: Literal["wait", "drop", "coalesce", "degrade"] | None = None
    max_lag_s: float = 3.0
    max_frames: int = 64
    max_bytes: int = 512 * 2**20
    open_timeout_s: float = 10.0
    stall_timeout_s: float = 5.0
    retry_min_s: float = 0.25
    retry_max_s: float = 2.0
    retry_for_s: float | None = None
    rtsp_transport: Literal["tcp", "udp"] = "tcp"
    verify_tls: bool = True
    http_proxy: str | None = None
    camera_size: str | None = None
    camera_fps: float | None = None

    def __post_init__(self):
        if self.policy is not None:
            one_of("live.policy", self.policy, ("wait", "drop", "coalesce", "degrade"))
        one_of("live.rtsp_transport", self.rtsp_transport, ("tcp", "udp"))
        at_least("live.max_lag_s", self.max_lag_s, 0, "seconds behind")
        at_least("live.max_frames", self.max_frames, 1, "frames in front of the model")
        at_least("live.max_bytes", self.max_bytes, 1, "bytes in front of the model")
        for name in ("open_timeout_s", "stall_timeout_s", "retry_min_s"):
            above(f"live.{name}", getattr(self, name), 0, "seconds")
        at_least("live.retry_max_s", self.retry_max_s, self.retry_min_s, "never below live.retry_min_s")
        if self.retry_for_s is not None:
            at_least("live.retry_for_s", self.retry_for_s, 0, "seconds; null tries for ever")
        if self.camera_fps is not None:
            above("live.camera_fps", self.camera_fps, 0, "pictures a second")
        if self.camera_size is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(self.camera_size)):
            raise ConfigError(f"live.camera_size={self.camera_size} is no size; write width x height, as in 1280x720")


@dataclass(frozen=True)
class SamplingConfig:
    """How a token is chosen; the defaults are the released code's. ``temperature`` 0 is greedy.

    silence_threshold: a turn is silent where the model's own probability of silence, at the start of its reply, is at
        least this, and speaks where it is below: lower is quieter. By default silence is a token as all others.
    """

    temperature: float = 0.9
    top_p: float = 1.0
    repetition_penalty: float = 1.05
    max_new_tokens: int = 20
    seed: int = 0
    silence_threshold: float | None = None

    def __post_init__(self):
        at_least("sampling.temperature", self.temperature, 0, "0 is greedy")
        above("sampling.repetition_penalty", self.repetition_penalty, 0, "1 is no penalty")
        at_least("sampling.max_new_tokens", self.max_new_tokens, 1, "tokens a turn")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p={self.top_p} is outside (0, 1]; 1 keeps every token")
        if self.silence_threshold is not None:
            at_least("sampling.silence_threshold", self.silence_threshold, 0, "a probability; 0 is always silent")
            if self.silence_threshold > 1:
                raise ConfigError(
                    f"sampling.silence_threshold={self.silence_threshold} is above 1; give a probability, or null to "
                    "leave silence to the model"
                )


Config = TypeVar("Config", CacheConfig, VideoConfig, LiveConfig, SamplingConfig)


def resolve(kind: type[Config], given: Config | Mapping[str, Any] | None, checkpoint: Mapping[str, Any]) -> Config:
    """Fill what was not given (or given as null) from the checkpoint's own settings, then from the paper's defaults.

    Raises ConfigError for a name that ``kind`` does not have.
    """
    if isinstance(given, kind):
        return given
    names = {field.name for field in fields(kind)}
    given = dict(given or {})
    if unknown := sorted(set(given) - names):
        raise ConfigError(f"{kind.__name__} has no setting {unknown[0]!r}; it has {', '.join(sorted(names))}")
    chosen = {name: checkpoint[name] for name in names & set(checkpoint)}
    chosen.update({name: value for name, value in given.items() if value is not None})
    return kind(**chosen)


def one_of(name: str, value: str, allowed: tuple[str, ...]):
    """Raise ConfigError unless the setting is one of these words."""
    if value not in allowed:
        raise ConfigError(f"{name}={value} is unknown; choose one of {', '.join(allowed)}")


def at_least(name: str, value: float, least: float, why: str):
    """Raise ConfigError unless the setting is a number that is not below ``least``."""
    _number(name, value)
    if not value >= least:
        raise ConfigError(f"{name}={value} is below {least:g} ({why}); give {least:g} or more")


def above(name: str, value: float, bound: float, why: str):
    """Raise ConfigError unless the setting is a number above ``bound``."""
    _number(name, value)
    if not value > bound:
        raise ConfigError(f"{name}={value} is not above {bound:g} ({why}); give a larger number")


def _number(name: str, value: float):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}={value!r} is not a number; give one")
