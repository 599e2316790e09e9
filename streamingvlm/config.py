"""Settings of a stream: the cache, the video, live sources and sampling.

Every setting is a field of one of four frozen dataclasses, with the same name on the command line and in Python:

    streamingvlm stream match.mp4 cache.vision_window_s=8 sampling.temperature=0
    StreamingSession.from_pretrained("pitch", cache={"vision_window_s": 8}, sampling={"temperature": 0})

A setting that is not given (or given as null) comes from the checkpoint, under the key ``streamingvlm`` of its
config.json, and otherwise has the default below, which is the paper's (arXiv 2510.09608) or the released code's. A
config object in place of a dict, such as ``sampling=SamplingConfig(temperature=0)``, is used as it is: the checkpoint's
settings do not apply.

Names carry their unit: ``_s`` seconds, ``_tokens`` tokens, ``_pixels`` pixels of one frame. Values are checked when a
config is made; a ConfigError names the setting, the value, what is allowed and the remedy.

A turn is one step of the stream: ``VideoConfig.turn_s`` seconds of video (by default one) and the model's reply.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from streamingvlm.errors import ConfigError

# Slack for comparing times in seconds, far below any frame interval.
TIME_SLACK_S = 1e-6

# The names end in a version: the tokens behind a name never change, or checkpoints would see other tokens than in their
# training. See turns.py.
TURN_FORMATS = ("time-range-1", "patch-seconds-1")

RENAMED_SETTINGS = {
    "cache": {"reread_text": "recompute_text"},
    "video": {"chunk_s": "turn_s"},
    "prepare_data": {"chunk_s": "turn_s"},
    "evaluate": {"chunk_s": "clip_s"},
    "limits": {"kept_s": "retention_s"},
    "lora": {"quantise": "quantize"},
    "frames_per_s": {"most": "search_limit"},
    "streams": {"most": "search_limit"},
    "candidate=": {"ordinary": "offline_generate"},
}
"""Section, script (for its own options) or ``group=`` -> old name -> new name. Errors for the old name give the new."""


@dataclass(frozen=True)
class CacheConfig:
    """The KV cache: which tokens it keeps, and the positions it assigns to them.

    The paper's policy (Sec. 3.1) keeps the vision of the last ``vision_window_s`` seconds and all of the turns in the
    last ``turn_window_s`` seconds. The words of older replies join the previous text, of which the first
    ``text_sink_tokens`` and the last ``text_window_tokens`` stay. The system prompt and the query always stay.

    policy: which tokens are evicted before each turn.
        ``streaming``: as above. The size of the cache is bounded, however long the stream is.
        ``full``: none. Memory and time per turn grow without bound.
        ``window``: all, whenever ``vision_window_s`` of video are cached; the stream restarts from the system prompt.
        ``reference``: those that the released code evicts, including its off-by-one errors. For comparison with it.
    positions: ``contiguous`` renumbers the kept tokens from 0 each turn (the paper's contiguous RoPE). ``native`` keeps
        the first position of each token, so positions grow without bound.
    text_sink_tokens, text_window_tokens: tokens kept from the start and from the end of the previous text. The
        ``reference`` policy accepts None for both: no limit.
    text_step_tokens: tokens evicted at once when the text window is full, at most the whole window. With
        ``recompute_text``, larger steps mean fewer prefills of the text. The reference policy ignores it.
    vision_window_s: seconds of vision kept, including the newest turn. At least 1.
    turn_window_s: seconds of turns kept whole, with their markup and replies, including the newest turn. At least 1.
    recompute: prefill all kept tokens again each turn instead of reusing their keys and values. A slow baseline.
    recompute_text: prefill the previous text again whenever words join it, directly after the prologue and before any
        vision, as in training. Otherwise it keeps the keys and values that were computed when it was generated.
    dtype: number format of cached keys and values: ``fp8`` (one byte each and a scale per row), or None for the
        model's dtype. All streams of an engine share one.
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
            at_least(f"cache.{name}", getattr(self, name), 1.0, "the newest turn is always kept")
        self._check_text_limits()
        at_least("cache.text_step_tokens", self.text_step_tokens, 1, "tokens evicted at once from the text window")
        if self.recompute and self.positions == "native":
            raise ConfigError(
                "cache.recompute=true assigns new positions each turn, but cache.positions=native keeps the old ones; "
                "use cache.positions=contiguous"
            )

    def _check_text_limits(self):
        sizes = {name: getattr(self, name) for name in ("text_sink_tokens", "text_window_tokens")}
        for name, size in sizes.items():
            if size is None and self.policy == "streaming":
                raise ConfigError(f"cache.{name} is null, but cache.policy=streaming needs a limit; give a number")
            if size is not None:
                at_least(f"cache.{name}", size, 0, "a number of tokens")
        if (self.text_sink_tokens is None) != (self.text_window_tokens is None):
            raise ConfigError(
                "cache.text_sink_tokens and cache.text_window_tokens are one limit, but one of them is null; give both "
                "or neither"
            )

    @property
    def text_limits(self) -> tuple[int, int, int]:
        """Sink, window and step of the previous text, in tokens. Raises ConfigError if there are no limits."""
        if self.text_sink_tokens is None or self.text_window_tokens is None:
            raise ConfigError("cache.text_sink_tokens and cache.text_window_tokens are null; give numbers for a limit")
        return self.text_sink_tokens, self.text_window_tokens, self.text_step_tokens

    @property
    def is_bounded(self) -> bool:
        """True if the cache has a maximum size that does not depend on the length of the stream."""
        if self.policy == "reference":
            return self.text_window_tokens is not None
        return self.policy != "full"


@dataclass(frozen=True)
class VideoConfig:
    """Video files and frames: sampling, resizing, decoding, and the token format of turns.

    A checkpoint expects turns like those of its training; a stream warns about other values of ``fps``, ``turn_s``,
    ``min_pixels``, ``max_pixels``, ``resize`` and ``turn_format``.

    fps: frames sampled per second of video.
    turn_s: seconds of video per turn; ``fps * turn_s``, rounded, is the number of frames per turn, at least 1.
    min_pixels, max_pixels: a frame is resized to a size between these, keeping its aspect ratio. The defaults are 100
        and 768 tokens of 28 x 28 pixels.
    resize: ``processor`` (the Hugging Face video processor: bicubic on integers) or ``qwen_vl_utils`` (the one that the
        released checkpoint was trained with: bicubic in float, then rounded, with a cap on the pixels of a frame).
    decoder: ``pyav`` reads every format of FFmpeg; ``decord`` reads ordinary mp4 files.
    prefetch: turns decoded ahead of the model. At least 1.
    turn_format: how a turn is written as tokens: ``time-range-1`` (one time label per turn, as in the released
        checkpoint), ``patch-seconds-1`` (one per temporal patch, as in Qwen3-VL), or None for the checkpoint's own.
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
        above("video.fps", self.fps, 0, "frames per second")
        above("video.turn_s", self.turn_s, 0, "seconds per turn")
        at_least("video.min_pixels", self.min_pixels, 1, "pixels of a frame")
        at_least("video.max_pixels", self.max_pixels, self.min_pixels, "the value of video.min_pixels")
        at_least("video.prefetch", self.prefetch, 1, "turns decoded ahead")
        if self.num_frames < 1:
            raise ConfigError(
                f"video.fps={self.fps:g} with video.turn_s={self.turn_s:g} gives turns of no frame; raise one"
            )

    @property
    def num_frames(self) -> int:
        """Frames of one turn."""
        return round(self.fps * self.turn_s)


@dataclass(frozen=True)
class LiveConfig:
    """Live sources: connections, and the policy when the model falls behind.

    policy: what to do with video that arrived while the model was busy.
        ``drop``: process the newest turn and skip the others.
        ``coalesce``: process one turn that spans everything missed, with the usual number of frames.
        ``degrade``: process every turn, with fewer pixels, frames and tokens while behind; beyond ``max_lag_s``, drop.
        ``wait``: process every turn in full and hold the source back.
        None: ``wait`` for sources that can be held back or end by themselves (a pipe, a recording behind an address),
        ``drop`` for all others.
    max_lag_s: seconds of lag beyond which ``degrade`` drops turns.
    max_frames, max_bytes: limits of the queue of decoded video in front of the model.
    open_timeout_s: seconds within which a new connection must deliver its first frame.
    stall_timeout_s: seconds without a frame after which a connection counts as broken.
    retry_min_s, retry_max_s: delay before a broken connection is opened again; it doubles with each attempt.
    retry_for_s: seconds of attempts after which the stream ends with an error; None retries for ever.
    rtsp_transport: ``tcp`` (no loss) or ``udp``.
    verify_tls: refuse a server without a valid certificate. Set to False for a camera with a self-signed one.
    http_proxy: URL of the proxy for http and https, with user and password if it needs them; None connects directly.
    camera_size, camera_fps: requested size ("1280x720") and frame rate of a webcam; None is the driver's choice.
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
        at_least("live.retry_max_s", self.retry_max_s, self.retry_min_s, "the value of live.retry_min_s")
        if self.retry_for_s is not None:
            at_least("live.retry_for_s", self.retry_for_s, 0, "seconds; null retries for ever")
        if self.camera_fps is not None:
            above("live.camera_fps", self.camera_fps, 0, "frames per second")
        if self.camera_size is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", str(self.camera_size)):
            raise ConfigError(f"live.camera_size={self.camera_size} is not WIDTHxHEIGHT; give a size such as 1280x720")


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling of the tokens of a reply. The defaults are the released code's.

    temperature: divides the logits; 0 takes the most likely token each time (greedy).
    top_p: nucleus sampling: sample from the most likely tokens whose probabilities sum to this. In (0, 1]; 1 is off.
    repetition_penalty: penalty on tokens that are in the cache or in the reply, as in Hugging Face. 1 is off.
    max_new_tokens: tokens of a reply, at most.
    seed: of the stream's own random numbers: the same seed gives the same reply, whatever other streams do.
    silence_threshold: a turn is silent if the model's probability of silence, at the start of its reply, is at least
        this; otherwise the model must speak. Lower is quieter. A question is always answered. None samples silence like
        any other token.
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
        at_least("sampling.max_new_tokens", self.max_new_tokens, 1, "tokens of a reply")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling.top_p={self.top_p} is outside (0, 1]; give 1 to keep every token")
        if self.silence_threshold is not None:
            at_least("sampling.silence_threshold", self.silence_threshold, 0, "a probability; 0 is always silent")
            if self.silence_threshold > 1:
                raise ConfigError(
                    f"sampling.silence_threshold={self.silence_threshold} is above 1; give a probability, or null to "
                    "sample silence like any other token"
                )


Config = TypeVar("Config", CacheConfig, VideoConfig, LiveConfig, SamplingConfig)


def resolve(
    kind: type[Config], given: Config | Mapping[str, Any] | str | None, checkpoint: Mapping[str, Any]
) -> Config:
    """Build a config from the given settings, then the checkpoint's, then the defaults.

    given: a config, which is returned as it is; settings by name, where None and null values count as not given; or the
        name of a policy, if ``kind`` has policies.
    checkpoint: the checkpoint's settings by name; those of other sections are ignored.
    Raises ConfigError for a given name that ``kind`` does not have, and for anything else.
    """
    if isinstance(given, kind):
        return given
    names = {field.name for field in fields(kind)}
    section = kind.__name__.removesuffix("Config").lower()
    if isinstance(given, str) and "policy" in names:
        given = {"policy": given}
    if not isinstance(given, Mapping | None):
        raise ConfigError(
            f"{section}={given!r} is a {type(given).__name__}, expected settings by name or {kind.__name__}"
        )
    settings = {name: value for name, value in (given or {}).items() if value is not None}
    if unknown := sorted(set(given or {}) - names):
        _refuse(section, unknown, names)
    return kind(**{name: checkpoint[name] for name in names & set(checkpoint)} | settings)


def explain_renamed(key: str, *, script: str = "") -> str | None:
    """Return the error message for an old setting, such as ``video.chunk_s``; None if ``key`` was not renamed.

    script: whose own options the keys without a section are.
    """
    parent, _, name = key.rpartition(".")
    new_name = RENAMED_SETTINGS.get(parent.rpartition(".")[2] or script, {}).get(name)
    return new_name and f"{key} was renamed to {key.removesuffix(name)}{new_name}; use the new name"


def _refuse(section: str, unknown: list[str], names: set[str]):
    for name in unknown:
        if message := explain_renamed(f"{section}.{name}"):
            raise ConfigError(message)
    raise ConfigError(f"{section}.{unknown[0]} is unknown; {section} has {', '.join(sorted(names))}")


def one_of(name: str, value: str, allowed: tuple[str, ...]):
    """Raise ConfigError unless the value is one of the allowed words."""
    if value not in allowed:
        raise ConfigError(f"{name}={value} is unknown; choose one of {', '.join(allowed)}")


def at_least(name: str, value: float, least: float, why: str):
    """Raise ConfigError unless the value is a number of at least ``least``."""
    _number(name, value)
    if not value >= least:
        raise ConfigError(f"{name}={value} is below {least:g} ({why}); give {least:g} or more")


def above(name: str, value: float, bound: float, why: str):
    """Raise ConfigError unless the value is a number above ``bound``."""
    _number(name, value)
    if not value > bound:
        raise ConfigError(f"{name}={value} is not above {bound:g} ({why}); give a larger number")


def _number(name: str, value: float):
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{name}={value!r} is not a number; give a number")
