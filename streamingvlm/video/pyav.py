"""Decode with PyAV (FFmpeg): any container and codec, real timestamps, and what is damaged is passed over."""

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from streamingvlm.errors import VideoError
from streamingvlm.video.clock import StreamClock
from streamingvlm.video.mp4 import has_index, is_mp4
from streamingvlm.video.orientation import Orientation
from streamingvlm.video.source import Picture, SkipCounts, VideoInfo

try:
    import av
except ImportError as error:
    raise VideoError("PyAV is not installed, so no video can be read; run: pip install av") from error

from av.stream import Disposition
from av.video.reformatter import VideoReformatter

MAX_THREADS = 8
"""Each decoding thread holds a frame of its own; more of them cost memory and win nothing at a few frames a second."""

MAX_READ_FAILURES = 16
"""So many failures to read in a row mean that the rest of the file is lost."""

EARLY_END_S = 0.5
"""In a sound file too the announced end and the last picture's may differ by a few frames."""

SEEK_MARGINS_S = (0.0, 10.0)
"""How far before the wanted time to look for a picture from which decoding can begin, before reading from the start."""

TEXT_DEMUXERS = frozenset({"tty"})
"""FFmpeg draws text files as video with these."""


def open_pyav(path: Path, *, start_s: float = 0.0) -> "PyAVSource":
    """Open a file for reading from `start_s`; VideoError where it holds no video that can be decoded."""
    source = PyAVSource(path)
    if start_s > 0:
        source.seek(start_s)
    return source


class PyAVSource:
    """The pictures of the main video stream of a file (a `PictureSource`)."""

    def __init__(self, path: Path):
        self._container = _open_container(path)
        try:
            self._stream = _main_stream(path, self._container)
            self._start(path)
        except BaseException:
            self.close()
            raise

    def _start(self, path: Path) -> None:
        self._stream.thread_type = "AUTO"
        self._stream.codec_context.thread_count = min(MAX_THREADS, os.cpu_count() or 1)
        self._reformatter = VideoReformatter()
        self._frame_s = float(1 / (self._stream.average_rate or self._stream.guessed_rate or 25))
        self._clock = StreamClock(self._frame_s)
        self._stored_size: tuple[int, int] | None = None
        self._orientation = Orientation()
        self._read_failed = False
        self.skipped = SkipCounts()
        self.tick_s = float(self._stream.time_base)
        self._pictures = self._decode()
        self._first = next(self._pictures, None)
        if self._first is None:
            raise VideoError(f"{str(path)!r} holds no picture that can be decoded; copy or download it again")
        self.info = self._describe()

    def pictures(self) -> Iterator[Picture]:
        """Yield the pictures in the order in which they are shown; once."""
        first, self._first = self._first, None
        if first is not None:
            yield first
        del first
        yield from self._pictures

    def close(self) -> None:
        """Let the file go; safe to call twice."""
        self._first = None
        self._container.close()

    def seek(self, start_s: float) -> None:
        """Go to the last picture at or before `start_s` from which decoding can begin; stay where the file cannot seek."""
        for margin_s in (*SEEK_MARGINS_S, start_s):
            ticks = self._clock.file_time_s(max(0.0, start_s - margin_s)) / self.tick_s
            try:
                self._container.seek(int(ticks), stream=self._stream)
            except av.FFmpegError:
                return
            self._clock.seek()
            self._pictures = self._decode()
            self._first = next(self._pictures, None)
            if self._first is not None and self._first.time_s <= start_s:
                break
        vars(self.skipped).update(vars(SkipCounts()))  # what was lost while looking for the place does not count

    def _describe(self) -> VideoInfo:
        height, width = self._stored_size
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

    def _decode(self) -> Iterator[Picture]:
        for frame in self._frames():
            picture = self._picture(frame)
            if picture is None:
                self.skipped.num_frames += 1
            else:
                yield picture
        self._note_early_end()

    def _frames(self) -> Iterator["av.VideoFrame"]:
        for packet in self._packets():
            try:
                frames = self._stream.decode(packet)
            except EOFError:  # already flushed
                return
            except av.FFmpegError:
                self.skipped.num_packets += 1
                continue
            if packet is not None and packet.is_corrupt:
                self.skipped.num_packets += 1
            yield from frames

    def _packets(self) -> Iterator["av.Packet | None"]:
        """Yield packets, then None; a failure to read is counted and the next packet tried."""
        num_failures = 0
        packets = self._container.demux(self._stream)
        while num_failures < MAX_READ_FAILURES:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError:
                num_failures += 1
                self.skipped.num_packets += 1
                packets = self._container.demux(self._stream)
            else:
                num_failures = 0
                yield packet
        yield None

    def _picture(self, frame: "av.VideoFrame") -> Picture | None:
        """Give a frame its place in stream time; None where it is damaged or comes too late."""
        if frame.is_corrupt:
            return None
        duration_s = float(frame.duration * frame.time_base) if frame.duration else self._frame_s
        time_s = self._clock.tell(frame.time, duration_s)
        self.skipped.num_clock_jumps, self.skipped.gap_s = self._clock.num_jumps, self._clock.gap_s
        if time_s is None:
            return None
        self._note_size(frame)
        return Picture(time_s, duration_s, partial(_to_rgb, frame, self._orientation, self._reformatter))

    def _note_size(self, frame: "av.VideoFrame") -> None:
        size = frame.height, frame.width
        if size == self._stored_size:
            return
        if self._stored_size is not None:
            self.skipped.num_resolution_changes += 1
        self._stored_size = size
        self._orientation = Orientation.from_display_matrix(_display_matrix(frame))

    def _note_early_end(self) -> None:
        announced_s = _stream_length_s(self._container, self._stream)
        if announced_s is None or self._clock.num_jumps:
            return
        missing_s = announced_s - self._clock.end_s
        if missing_s > EARLY_END_S:
            self.skipped.missing_s = missing_s


def _open_container(path: Path) -> "av.container.InputContainer":
    try:
        # "file:" keeps FFmpeg from taking what stands before a colon in the name for a protocol
        container = av.open(f"file:{path}", metadata_errors="replace")
    except av.FFmpegError as error:
        raise VideoError(_why_unreadable(path, error)) from error
    if container.format.name in TEXT_DEMUXERS:
        container.close()
        raise VideoError(f"{str(path)!r} is a text file, not a video; name a video file")
    return container


def _why_unreadable(path: Path, error: "av.FFmpegError") -> str:
    if is_mp4(path) and not has_index(path):
        return (
            f"{str(path)!r} is cut off: the index (moov) that stands at the end of an mp4 is missing; "
            "copy or download it again, or repair it with untrunc"
        )
    return f"{str(path)!r} is not a video, or too damaged to be opened ({error.strerror}); name a video file"


def _main_stream(path: Path, container: "av.container.InputContainer") -> "av.VideoStream":
    """The best video stream that is not a cover picture, in FFmpeg's opinion, else the largest."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        holds = "audio alone" if container.streams.audio else "no video stream"
        raise VideoError(f"{str(path)!r} holds {holds}; name a file with pictures")
    best = container.streams.best("video")
    stream = best if best in streams else max(streams, key=lambda stream: stream.width * stream.height)
    if stream.codec_context is None:
        raise VideoError(f"{str(path)!r} is coded in a way that PyAV does not know; convert it to H.264 first")
    return stream


def _stream_length_s(container: "av.container.InputContainer", stream: "av.VideoStream") -> float | None:
    """Length of the video as the file announces it; None where it does not, or not apart from the sound."""
    if stream.duration and stream.duration > 0:
        return float(stream.duration * stream.time_base)
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska's own
    if tag:
        hours, minutes, seconds = map(float, tag.groups())
        return hours * 3600 + minutes * 60 + seconds
    return _file_length_s(container) if len(container.streams) == 1 else None


def _file_length_s(container: "av.container.InputContainer") -> float | None:
    return container.duration / av.time_base if container.duration and container.duration > 0 else None


def _display_matrix(frame: "av.VideoFrame") -> bytes | None:
    """Not for every frame: a frame whose side data has been looked at is in a cycle and waits for the collector."""
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else bytes(data)


def _to_rgb(frame: "av.VideoFrame", orientation: Orientation, reformatter: VideoReformatter) -> torch.Tensor:
    image = orientation.apply(reformatter.reformat(frame, format="rgb24").to_ndarray())
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
