"""Decode with PyAV (FFmpeg): any container and codec, real timestamps, and damaged parts are skipped."""

import math
import os
import re
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import torch

from streamingvlm.errors import VideoError
from streamingvlm.video.frame_tensors import channels_first, fit
from streamingvlm.video.mp4 import has_index, is_mp4
from streamingvlm.video.orientation import Orientation, displayed_size
from streamingvlm.video.source import DecodedFrame, SkipCounts, VideoInfo
from streamingvlm.video.stream_clock import StreamClock, plausible_s

try:
    import av
except ImportError as error:
    raise VideoError("PyAV is not installed, so no video can be read; run: pip install av") from error

from av.stream import Disposition
from av.video.reformatter import VideoReformatter

MAX_THREADS = 8
"""Each decoding thread holds one frame. More threads cost memory and gain nothing at a few frames per second."""

DEFAULT_FRAME_S = 1 / 25
"""The time between two frames of a file that has neither timestamps nor a frame rate."""

MAX_READ_FAILURES = 16
"""After this many consecutive read failures the rest of the file is lost."""

EARLY_END_S = 0.5
"""In an intact file, too, the announced end and the end of the last frame may differ by a few frames."""

SEEK_MARGINS_S = (0.0, 10.0, math.inf)
"""Distances before the target at which a keyframe is searched, in this order; the last one is the start."""

BEFORE_START_S = 10.0
"""To seek to the start, some containers need a target time well before it."""

FILE_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": (
        "3gp,aac,ac3,aiff,ape,asf,av1,avi,caf,dv,dvhs,eac3,flac,flv,gif,gxf,h261,h263,h264,hevc,ivf,m4v,matroska,mjpeg,"
        "mov,mp3,mp4,mpeg,mpegts,mpegvideo,mxf,nut,obu,ogg,rm,swf,tty,vc1,vvc,wav,webm,wtv,y4m,yuv4mpegpipe"
    ),
}
"""FFmpeg options for a file: containers of media alone. A playlist (HLS, ffconcat, SDP) would open other files."""

MAX_PIXELS = 2**26
"""Twice 8K. A frame beyond it is refused before it is decoded: a few hundred bytes can announce gigabytes."""

TEXT_DEMUXERS = frozenset({"tty"})
"""FFmpeg demuxers that render text files as video."""


def open_pyav(path: Path, *, start_s: float = 0.0) -> "PyAVSource":
    """Open a file for reading from `start_s`; VideoError if it holds no decodable video."""
    source = PyAVSource(open_container(path), repr(str(path)))
    if start_s > 0:
        source.seek(start_s)
    return source


class PyAVSource:
    """The frames of the main video stream of a file (a `FrameSource`)."""

    thread_type = "AUTO"

    def __init__(self, container: "av.container.InputContainer", shown: str):
        """`shown` names the source in messages. The container is closed with this object, or if this call fails."""
        self._container = container
        try:
            self._stream = main_stream(container, shown)
            self._start(shown)
        except BaseException:
            self.close()
            raise

    def _start(self, shown: str) -> None:
        self._stream.thread_type = self.thread_type
        self._stream.codec_context.thread_count = min(MAX_THREADS, os.cpu_count() or 1)
        self._reformatter = VideoReformatter()
        rate = self._stream.average_rate or self._stream.guessed_rate
        self._frame_s = plausible_s(float(1 / rate) if rate else 0.0, DEFAULT_FRAME_S)
        self._clock = StreamClock(self._frame_s)
        self._coded: tuple[int, int, Fraction | None] | None = None  # height, width, pixel aspect of the newest frame
        self._pixel_aspect: Fraction | None = None
        self._size = (0, 0)  # of the newest frame with square pixels, before rotation
        self._orientation = Orientation()
        self._read_failed = False
        self.skipped = SkipCounts()
        self.tick_s = float(self._stream.time_base)
        self._frames = self._decode()
        self._first = next(self._frames, None)
        if self._first is None:
            raise VideoError(f"{shown} {self._why_no_frame()}")
        self.info = self._describe()

    def frames(self) -> Iterator[DecodedFrame]:
        """Yield the frames in display order; once."""
        first, self._first = self._first, None
        if first is not None:
            yield first
        del first
        yield from self._frames

    @property
    def orientation(self) -> Orientation:
        """How stored frames are displayed."""
        return self._orientation

    def to_file_time(self, stream_s: float) -> float:
        """Return the file's own timestamp of a stream time, by the frames read so far."""
        return self._clock.to_file_time(stream_s)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._first = None
        self._container.close()

    def seek(self, start_s: float) -> None:
        """Seek to a keyframe at or before `start_s`; stay in place if the file is not seekable."""
        for margin_s in SEEK_MARGINS_S:
            target_s = self._clock.to_file_time(max(start_s - margin_s, -BEFORE_START_S))
            try:
                self._container.seek(int(target_s / self.tick_s), stream=self._stream)
            except av.FFmpegError:
                return
            self._clock.seek()
            self._frames = self._decode()
            self._first = next(self._frames, None)
            if self._first is not None and self._first.time_s <= start_s:
                break
        vars(self.skipped).update(vars(SkipCounts()))  # skips during the seek do not count

    def _why_no_frame(self) -> str:
        """Return what is wrong with a source without a frame, and the remedy."""
        return "has no frame that can be decoded; copy or download it again"

    def _describe(self) -> VideoInfo:
        height, width = self._size
        if self._orientation.transpose:
            height, width = width, height
        return VideoInfo(
            duration_s=_stream_length_s(self._container, self._stream) or _file_length_s(self._container),
            width=width,
            height=height,
            average_fps=float(self._stream.average_rate) if self._stream.average_rate else None,
            codec=self._stream.codec_context.name,
            rotation=self._orientation.rotation,
        )

    def _decode(self) -> Iterator[DecodedFrame]:
        for av_frame in self._av_frames():
            frame = self._to_decoded_frame(av_frame)
            if frame is None:
                self.skipped.num_frames += 1
            else:
                yield frame
        self._note_early_end()

    def _av_frames(self) -> Iterator["av.VideoFrame"]:
        for packet in self._packets():
            try:
                frames = self._stream.decode(packet)
            except EOFError:  # the decoder is empty
                return
            except av.FFmpegError:
                self.skipped.num_packets += 1
                continue
            if packet is not None and packet.is_corrupt:
                self.skipped.num_packets += 1
            yield from frames

    def _packets(self) -> Iterator["av.Packet | None"]:
        """Yield packets, then None. A read failure is counted, and reading goes on with the next packet."""
        num_failures = 0
        packets = self._container.demux(self._stream)
        while num_failures < MAX_READ_FAILURES:
            try:
                packet = next(packets)
            except (StopIteration, IndexError):  # PyAV raises IndexError at the end if streams were added on the way
                break
            except av.FFmpegError:
                num_failures += 1
                self.skipped.num_packets += 1
                packets = self._container.demux(self._stream)
            else:
                num_failures = 0
                yield packet
        yield None

    def _to_decoded_frame(self, frame: "av.VideoFrame") -> DecodedFrame | None:
        """Give a frame its stream time; None if it is damaged or late."""
        if frame.is_corrupt:
            return None
        # not frame.time: a frame that is flushed out of the decoder has no time base
        stamp_s = None if frame.pts is None else float(frame.pts * self._stream.time_base)
        duration_s = plausible_s(float(frame.duration * self._stream.time_base), self._frame_s)
        time_s = self._clock.to_stream_time(stamp_s, duration_s)
        self.skipped.num_clock_jumps, self.skipped.gap_s = self._clock.num_jumps, self._clock.gap_s
        if time_s is None:
            return None
        self._note_size(frame)
        to_frame = partial(to_rgb, frame, self._size, self._orientation, self._reformatter)
        return DecodedFrame(time_s, duration_s, to_frame)

    def _note_size(self, frame: "av.VideoFrame") -> None:
        coded = frame.height, frame.width, self._stream.codec_context.sample_aspect_ratio
        if coded == self._coded:
            return
        if self._coded is None:
            self._pixel_aspect = self._stream.sample_aspect_ratio  # the container's, which wins over the codec's
        else:
            self.skipped.num_resolution_changes += 1
            self._pixel_aspect = coded[2] if coded[2] != self._coded[2] else self._pixel_aspect
        self._coded = coded
        self._size = displayed_size(*coded[:2], self._pixel_aspect or coded[2])
        self._orientation = Orientation.from_display_matrix(_display_matrix(frame))

    def _note_early_end(self) -> None:
        announced_s = _stream_length_s(self._container, self._stream)
        if announced_s is None or self._clock.num_jumps:
            return
        missing_s = announced_s - self._clock.end_s
        if missing_s > EARLY_END_S:
            self.skipped.missing_s = missing_s


def open_container(path: Path) -> "av.container.InputContainer":
    """Open a file. Raises VideoError if FFmpeg cannot read it."""
    try:
        # "file:" keeps FFmpeg from reading a name with a colon as a protocol
        return av.open(f"file:{path}", metadata_errors="replace", options=FILE_OPTIONS)
    except av.FFmpegError as error:
        raise _unreadable(path, error.strerror) from error


def _unreadable(path: Path, reason: str) -> VideoError:
    if is_mp4(path) and not has_index(path):
        return VideoError(
            f"{str(path)!r} is cut off: the index (moov) at the end of an mp4 is missing; "
            "copy or download it again, or repair it with untrunc"
        )
    return _no_video(repr(str(path)), reason)


def _no_video(shown: str, reason: str) -> VideoError:
    return VideoError(f"{shown} is not a video or is too damaged to open ({reason}); name a video file")


def main_stream(container: "av.container.InputContainer", shown: str) -> "av.VideoStream":
    """Return FFmpeg's choice of the best video stream unless it is cover art, else the largest stream."""
    if container.format.name in TEXT_DEMUXERS:
        raise _no_video(shown, "text")
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams and container.streams.audio:
        raise VideoError(f"{shown} holds audio only; name a file with video")
    if not streams:
        raise _no_video(shown, "no video stream")
    best = container.streams.best("video")
    stream = best if best in streams else max(streams, key=lambda stream: stream.width * stream.height)
    if stream.codec_context is None:
        raise VideoError(f"{shown} has a codec that PyAV does not support; convert it to H.264 first")
    if stream.width * stream.height > MAX_PIXELS:
        raise VideoError(
            f"{shown} has {stream.width}x{stream.height} pixels, more than {MAX_PIXELS}; convert it to a smaller size"
        )
    return stream


def _stream_length_s(container: "av.container.InputContainer", stream: "av.VideoStream") -> float | None:
    """Return the announced duration of the video stream; None if there is none apart from the audio."""
    if stream.duration and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))
    if tag:  # Matroska: the time at which the stream ends
        hours, minutes, seconds = map(float, tag.groups())
        return hours * 3600 + minutes * 60 + seconds - float((stream.start_time or 0) * stream.time_base)
    return _file_length_s(container) if len(container.streams) == 1 else None


def _file_length_s(container: "av.container.InputContainer") -> float | None:
    return container.duration / av.time_base if container.duration and container.duration > 0 else None


def _display_matrix(frame: "av.VideoFrame") -> bytes | None:
    """Read the matrix. Do not call it for every frame: reading side data makes a reference cycle, left to the GC."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else bytes(data)


def to_rgb(
    frame: "av.VideoFrame", size: tuple[int, int], orientation: Orientation, reformatter: VideoReformatter
) -> torch.Tensor:
    """Convert a decoded frame of any pixel format to RGB, uint8 [3, H, W], as displayed; size: before rotation."""
    try:
        rgb = reformatter.reformat(frame, format="rgb24")
    except av.FFmpegError:  # the colour tag has a reserved value: convert as if there were no tag
        rgb = reformatter.reformat(frame, format="rgb24", src_colorspace="itu601", dst_colorspace="itu601")
    image = channels_first(rgb.to_ndarray())
    if size != (frame.height, frame.width):
        image = fit(image[None], *size)[0]
    return channels_first(orientation.apply(image.permute(1, 2, 0).numpy()))
