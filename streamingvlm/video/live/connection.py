"""Connect to what is live: cameras, RTSP, RTMP, HLS, HTTP and pipes, all through PyAV (FFmpeg).

FFmpeg opens what an address, a playlist or a redirection names. So each kind of source is opened with the protocols and
formats that it needs, and with no others: neither `file:` nor `concat:` can be reached from the network.
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
"""What FFmpeg may open for a kind of address; `crypto` decrypts HLS, over http and https alone."""

_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,mpegvideo,flv,live_flv,avi,ogg,asf,nut,ivf,h264,hevc,obu,"
    "yuv4mpegpipe,mjpeg"
)
FORMATS = {"rtsp": "rtsp", "rtmp": "flv,live_flv", "http": f"{_CONTAINERS},mpjpeg,hls,aac,ac3,eac3,mp3,webvtt"}
FORMATS["pipe"] = _CONTAINERS
"""Not among them: `concat`, `image2` and `sdp`, which open further files and addresses."""

CLOCKLESS_FORMATS = frozenset({"mpjpeg", "mjpeg", "h264", "hevc", "obu"})
"""Here FFmpeg makes up times at a supposed 25 pictures a second; when a picture comes is nearer to the truth."""

HOLDING_FORMATS = frozenset({"rtsp", "mpegts"})
"""Here FFmpeg knows where a picture ends when the next one begins, and gives it only then."""

PROBE_S, PROBE_BYTES = 1.0, 2_000_000
"""How much of a stream may go by while FFmpeg looks for what it holds; its own 5 seconds make a camera slow to come."""

RTSP_PROBE_BYTES = "32"
"""The least that FFmpeg allows: what a stream holds is told before it begins, and a slow one takes seconds to probe."""

CAMERA_INPUTS = {"linux": "v4l2", "darwin": "avfoundation", "win32": "dshow"}
POLL_S = 0.1


class Connection(PyAVSource):
    """The pictures of one connection, as they come (a `PictureSource`); their times begin at 0 with the first.

    is_recording: the source says how long it is: it ends by itself, and can be read at any pace.
    is_paced: several seconds come at once (HLS) and are meant to be shown one after the other.
    has_clock: the times are the source's own, and not made up on the way.
    holds_one_back: a picture is given when the next one comes.
    """

    # Frame threads hold pictures back, one for each thread; at 2 pictures a second that is seconds of delay.
    thread_type = "SLICE"

    def __init__(self, container: "av.container.InputContainer", shown: str, stall_timeout_s: float):
        self._stall_timeout_s = stall_timeout_s
        self.broken_by: str | None = None
        super().__init__(container, shown)
        name = container.format.name
        self.is_recording = self.info.duration_s is not None
        self.is_paced = name == "hls" and not self.is_recording
        self.has_clock = name not in CLOCKLESS_FORMATS
        self.holds_one_back = name in HOLDING_FORMATS

    @property
    def first_stamp_s(self) -> float:
        """The source's own time of what is 0 in this connection."""
        return self._clock.file_time_s(0.0)

    @property
    def has_ended(self) -> bool:
        """Whether the pictures ended where the source had said that they would."""
        return self.is_recording and self.broken_by is None and self.skipped.missing_s == 0

    def _packets(self) -> Iterator["av.Packet | None"]:
        """Yield packets up to the end or a failure; sound that goes on without pictures is a failure, too."""
        newest_s = time.monotonic()
        try:
            for packet in self._container.demux():
                if packet.stream_index == self._stream.index:
                    newest_s = time.monotonic()
                    yield packet
                elif time.monotonic() - newest_s > self._stall_timeout_s:
                    self.broken_by = f"no picture for {self._stall_timeout_s:g} s"
                    return
        except av.FFmpegError as error:
            self.broken_by = _reason(error, self._stall_timeout_s)
        yield None


def connect(address: Address, config: LiveConfig, should_stop: Callable[[], bool]) -> Connection:
    """Open a live source and decode its first picture.

    Raises BrokenStreamError where nobody answers, or not with video: it may be otherwise a moment later.
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
    """What FFmpeg opens for a camera, given by its number or name: the input's name, its format, and options.

    Raises VideoError where the platform is not known, or has no camera of this number.
    """
    format_name = CAMERA_INPUTS.get(platform)
    if format_name is None:
        raise VideoError(f"cameras cannot be opened on {platform}; push frames from Python instead (PushedFrames)")
    options = {"video_size": config.camera_size, "framerate": config.camera_fps and f"{config.camera_fps:g}"}
    if platform == "linux":
        target = f"/dev/video{device}" if device.isdecimal() else device
    elif platform == "darwin":
        target = f"{device}:none"
        options["framerate"] = options["framerate"] or "30"  # avfoundation offers 29.97, which no camera has
    else:
        target = f"video={_camera_name(device, format_name)}"
    return target, format_name, {name: value for name, value in options.items() if value}


def _camera_name(device: str, format_name: str) -> str:
    """DirectShow knows cameras by their names alone."""
    if not device.isdecimal():
        return device
    names = [info.description or info.name for info in av.enumerate_input_devices(format_name)]
    if int(device) >= len(names):
        raise VideoError(f"there is no camera {device}; there are {', '.join(names) or 'none'}")
    return names[int(device)]


def _options(address: Address, config: LiveConfig) -> dict[str, str]:
    """What FFmpeg is told, for this kind of address; options that a protocol does not know are passed over by it."""
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
    """FFmpeg's errors hold the address, password and all: neither their text nor they themselves go further."""
    try:
        yield
    except av.FFmpegError as error:
        reason = _reason(error, config.open_timeout_s)
        raise BrokenStreamError(f"{address.shown} cannot be watched ({reason}); {_remedy(address, error)}") from None
    except VideoError as error:
        raise BrokenStreamError(str(error)) from None


def _reason(error: "av.FFmpegError", timeout_s: float) -> str:
    if isinstance(error, av.ExitError | av.TimeoutError):
        return f"no answer within {timeout_s:g} s"
    return (error.strerror or type(error).__name__).lower()


def _remedy(address: Address, error: "av.FFmpegError") -> str:
    if address.kind == "pipe":
        return "send what can be read without going back, such as MPEG-TS or Matroska (ffmpeg ... -f mpegts -)"
    if address.kind == "webcam":
        return "check that the camera is there and that no other program has it, or name another: webcam:1"
    if isinstance(error, av.HTTPUnauthorizedError | av.HTTPForbiddenError):
        return "give user and password in the address: scheme://user:password@host/..."
    if isinstance(error, av.ArgumentError):
        return "it leads to protocols or formats that are not opened; name the stream itself"
    return "check the address, and that the stream is on"


class StandardInput:
    """A pipe that is read no further once it shall stop; where the platform cannot wait for one, at the next data."""

    def __init__(self, pipe: BinaryIO, should_stop: Callable[[], bool]):
        self.name = "standard input"
        self._descriptor = pipe.fileno()
        self._should_stop = should_stop

    def read(self, size: int) -> bytes:
        """The bytes that are there, at most `size`; none at the end."""
        while os.name == "posix" and not select.select([self._descriptor], [], [], POLL_S)[0]:
            if self._should_stop():
                return b""
        return os.read(self._descriptor, size)
