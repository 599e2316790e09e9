"""Connect to live sources: cameras, RTSP, RTMP, HLS, HTTP and pipes, all through PyAV (FFmpeg).

FFmpeg opens whatever an address, a playlist or a redirect names. So each kind of source is opened with a whitelist of
the protocols and formats that it needs: neither `file:` nor `concat:` can be reached from the network.
"""

import os
import select
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import av
import certifi

from streamingvlm.config import LiveConfig
from streamingvlm.errors import VideoError
from streamingvlm.video.address import Address
from streamingvlm.video.pyav import PyAVSource
from streamingvlm.video.source import BrokenStreamError

PROTOCOLS = {
    "rtsp": "rtsp,rtp,tcp,udp,tls",
    "rtmp": "rtmp,tcp",
    "http": "http,https,httpproxy,tcp,tls,crypto",
    "pipe": "pipe",
}
"""The protocols that FFmpeg may open for a kind of address. `crypto` decrypts HLS, over http and https only."""

_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,mpegvideo,flv,live_flv,avi,ogg,asf,nut,ivf,h264,hevc,obu,"
    "yuv4mpegpipe,mjpeg"
)
FORMATS = {"rtsp": "rtsp", "rtmp": "flv,live_flv", "http": f"{_CONTAINERS},mpjpeg,hls,aac,ac3,eac3,mp3,webvtt"}
FORMATS["pipe"] = _CONTAINERS
"""Without `concat`, `image2` and `sdp`, which open further files and addresses."""

CLOCKLESS_FORMATS = frozenset({"mpjpeg", "mjpeg", "h264", "hevc", "obu"})
"""FFmpeg invents timestamps at 25 frames per second for these, so arrival times are more accurate."""

DELAYING_FORMATS = frozenset({"rtsp", "mpegts"})
"""FFmpeg finds the end of a frame in these when the next one begins, and returns it only then."""

PROBE_S, PROBE_BYTES = 1.0, 2_000_000
"""Limits of FFmpeg's probe of a stream. Its default of 5 seconds delays the first frame of a camera."""

RTSP_PROBE_BYTES = "32"
"""FFmpeg's minimum. RTSP describes its streams before they begin, and probing a slow one takes seconds."""

CAMERA_INPUTS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
POLL_S = 0.1


class Connection(PyAVSource):
    """The frames of one connection as they arrive (a `FrameSource`). The first frame has time 0.

    is_recording: the source announces its duration, so it ends by itself and can be read at any rate.
    is_paced: several seconds arrive at once (HLS) and are to be played in real time.
    has_clock: the timestamps are the source's own, not invented by FFmpeg.
    delays_one_frame: a frame is returned when the next one arrives.
    """

    # Frame threading delays one frame per thread; at 2 frames per second that is seconds.
    thread_type = "SLICE"

    def __init__(self, container: "av.container.InputContainer", shown: str, stall_timeout_s: float):
        self._stall_timeout_s = stall_timeout_s
        self.broken_by: str | None = None
        super().__init__(container, shown)
        name = container.format.name
        self.is_recording = self.info.duration_s is not None
        self.is_paced = name == "hls" and not self.is_recording
        self.has_clock = name not in CLOCKLESS_FORMATS
        self.delays_one_frame = name in DELAYING_FORMATS

    @property
    def first_stamp_s(self) -> float:
        """The source's own timestamp of time 0 in this connection."""
        return self._clock.to_file_time(0.0)

    @property
    def has_ended(self) -> bool:
        """True if the frames ended at the end that the source announced."""
        return self.is_recording and self.broken_by is None and self.skipped.missing_s == 0

    def _why_no_frame(self) -> str:
        if "mp4" in self._container.format.name:
            return (
                "is an mp4 with its index at the end, which cannot be reached without seeking; serve it with Range "
                "requests, write it with -movflags +faststart, send MPEG-TS (-f mpegts), or read it from a file"
            )
        return "has no frame that can be decoded; check that it is running"

    def _packets(self) -> Iterator["av.Packet | None"]:
        """Yield packets up to the end or a failure. Audio that continues without frames counts as a failure."""
        newest_s = time.monotonic()
        try:
            for packet in self._container.demux():
                if packet.stream_index == self._stream.index:
                    newest_s = time.monotonic()
                    yield packet
                elif time.monotonic() - newest_s > self._stall_timeout_s:
                    self.broken_by = f"no frame for {self._stall_timeout_s:g} s"
                    return
        except av.FFmpegError as error:
            self.broken_by = _reason(error, self._stall_timeout_s)
        yield None


def connect(address: Address, config: LiveConfig, should_stop: Callable[[], bool]) -> Connection:
    """Open a live source and decode its first frame.

    Raises BrokenStreamError if there is no answer or no video in it; a later attempt may succeed.
    """
    with _one_line_errors(address, config):
        timeouts = (config.open_timeout_s, None if address.kind == "pipe" else config.stall_timeout_s)
        if address.kind == "pipe":
            target = StandardInput(sys.stdin.buffer, should_stop)
            container = av.open(target, options=_options(address, config), metadata_errors="replace")
        elif address.kind == "webcam":
            target, format_name, options = camera_input(address.target, config)
            container = av.open(target, format=format_name, options=options, timeout=timeouts)
        else:
            container = av.open(
                address.target, options=_options(address, config), timeout=timeouts, metadata_errors="replace"
            )
        return Connection(container, address.shown, config.stall_timeout_s)


def camera_input(device: str, config: LiveConfig, platform: str = sys.platform) -> tuple[str, str, dict[str, str]]:
    """Return what FFmpeg opens for a camera number or name: the input, its format, and options.

    Raises VideoError if the platform is not supported or has no camera of this number.
    """
    format_name = CAMERA_INPUTS.get(platform)
    if format_name is None:
        raise VideoError(f"cameras are not supported on {platform}; push frames from Python instead (PushedFrames)")
    options = {"video_size": config.camera_size, "framerate": config.camera_fps and f"{config.camera_fps:g}"}
    if platform == "linux":
        target = f"/dev/video{device}" if device.isdecimal() else device
    elif platform == "darwin":
        target = f"{device}:none"
        options["framerate"] = options["framerate"] or "30"  # avfoundation defaults to 29.97, which no camera supports
    else:
        target = f"video={_camera_name(device, format_name)}"
    return target, format_name, {name: value for name, value in options.items() if value}


def _camera_name(device: str, format_name: str) -> str:
    """Return the name of a camera number; DirectShow identifies cameras by name only."""
    if not device.isdecimal():
        return device
    names = [info.description or info.name for info in av.enumerate_input_devices(format_name)]
    if int(device) >= len(names):
        raise VideoError(f"camera {device} does not exist; cameras found: {', '.join(names) or 'none'}")
    return names[int(device)]


def _options(address: Address, config: LiveConfig) -> dict[str, str]:
    """Return FFmpeg's options for this kind of address. A protocol ignores options that it does not have."""
    kind = address.kind
    options = {
        "protocol_whitelist": PROTOCOLS[kind],
        "format_whitelist": FORMATS[kind],
        "probesize": str(PROBE_BYTES),
        "analyzeduration": _microseconds(PROBE_S),
        "flags": "low_delay",
    }
    if kind == "pipe":
        return options
    if kind == "rtsp":
        options |= {"rtsp_transport": config.rtsp_transport, "allowed_media_types": "video"}
        options |= {"timeout": _microseconds(config.stall_timeout_s), "probesize": RTSP_PROBE_BYTES}
    else:
        options["rw_timeout"] = _microseconds(config.stall_timeout_s)
    if config.http_proxy:
        options["http_proxy"] = config.http_proxy
    if kind == "rtmp":
        options["rtmp_live"] = "live"
    if config.verify_tls:
        options |= {"tls_verify": "1", "ca_file": ssl.get_default_verify_paths().cafile or certifi.where()}
    return options


def _microseconds(time_s: float) -> str:
    return str(round(time_s * 1e6))


@contextmanager
def _one_line_errors(address: Address, config: LiveConfig) -> Iterator[None]:
    """Replace FFmpeg's errors, text and cause: they contain the address with its password."""
    try:
        yield
    except av.FFmpegError as error:
        reason = _reason(error, config.open_timeout_s)
        raise BrokenStreamError(f"{address.shown} cannot be opened ({reason}); {_remedy(address, error)}") from None
    except VideoError as error:
        raise BrokenStreamError(str(error)) from None


def _reason(error: "av.FFmpegError", timeout_s: float) -> str:
    if isinstance(error, av.ExitError | av.TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return (error.strerror or type(error).__name__).lower()


def _remedy(address: Address, error: "av.FFmpegError") -> str:
    if address.kind == "pipe":
        return "send a format that can be read without seeking, such as MPEG-TS or Matroska (ffmpeg ... -f mpegts -)"
    if address.kind == "webcam":
        return "check that the camera is connected and not in use by another program, or choose another: webcam:1"
    if isinstance(error, av.HTTPUnauthorizedError | av.HTTPForbiddenError):
        return "put user and password in the address: scheme://user:password@host/..."
    if isinstance(error, av.ArgumentError):
        return "it leads to protocols or formats that are not allowed; give the address of the stream itself"
    return "check the address, and that the stream is running"


class StandardInput:
    """A pipe whose reads end once `should_stop()` is true; on platforms without `select` on pipes, at the next data."""

    def __init__(self, pipe: BinaryIO, should_stop: Callable[[], bool]):
        self.name = "standard input"
        self._descriptor = pipe.fileno()
        self._should_stop = should_stop

    def read(self, size: int) -> bytes:
        """Return the available bytes, at most `size`; empty at the end."""
        while os.name == "posix" and not select.select([self._descriptor], [], [], POLL_S)[0]:
            if self._should_stop():
                return b""
        return os.read(self._descriptor, size)
