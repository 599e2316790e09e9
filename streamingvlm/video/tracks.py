"""The tracks of a captioned video: packets of the file that are copied, or picture and sound that are encoded again."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from streamingvlm.video.caption_image import CaptionOverlay, draw_caption
from streamingvlm.video.orientation import Orientation
from streamingvlm.video.pyav import DEFAULT_FRAME_S, MAX_THREADS, main_stream, open_container
from streamingvlm.video.stream_clock import StreamClock, plausible_s

COPIED_VIDEO = frozenset({"h264", "hevc", "av1"})
COPIED_AUDIO = frozenset({"aac", "mp3", "ac3", "alac"})
"""Codecs that players expect in mp4."""

_AAC_SAMPLES = 1024  # of a frame
_X264 = {"preset": "ultrafast", "crf": "23", "bf": "0"}  # without B frames, a turn's packets are decoded in its time


class Track:
    """A stream of a file on its way into an mp4, read from its own handle: sound may lie far from its picture.

    source: the stream. file_start_s: the file's own time at which the mp4 begins.
    """

    def __init__(self, path: Path, kind: Literal["video", "audio"], file_start_s: float):
        self._container = open_container(path)
        best = self._container.streams.best
        self.source = main_stream(self._container, repr(str(path))) if kind == "video" else best(kind)
        self._file_start_s = file_start_s
        self._packets = self._container.demux(self.source)
        self._first_s = 0.0

    def seek(self, time_s: float):
        """Begin at this time in the mp4; what precedes it is dropped."""
        self._first_s = time_s - 1e-6
        if time_s:
            ticks = int((time_s + self._file_start_s) / self.source.time_base)
            self._container.seek(ticks, stream=self.source)

    def close(self):
        """Close the file. Safe to call twice."""
        self._container.close()


class CopiedTrack(Track):
    """Packets of a stream, with new times."""

    def declare(self, output: "av.container.OutputContainer") -> "av.stream.Stream":
        """Add the track to an mp4."""
        return output.add_stream_from_template(self.source)

    def mux(self, output: "av.container.OutputContainer", stream: "av.stream.Stream", end_s: float, caption: str):
        """Write the packets before ``end_s``."""
        while (packet := self._next()) is not None:
            if float(packet.dts * packet.time_base) >= end_s - 1e-6:
                self._pending = packet
                return
            packet.stream = stream
            output.mux(packet)

    _pending: "av.Packet | None" = None

    def _next(self) -> "av.Packet | None":
        packet, self._pending = self._pending or next(self._moved, None), None
        return packet

    @cached_property
    def _moved(self) -> Iterator["av.Packet"]:
        return (packet for packet in self._output() if float(packet.dts * packet.time_base) >= self._first_s)

    def _output(self) -> Iterator["av.Packet"]:
        start = round(self._file_start_s / self.source.time_base)
        for packet in self._packets:
            if packet.dts is not None and packet.size:
                packet.dts -= start
                packet.pts = packet.dts if packet.pts is None else packet.pts - start
                yield packet


class EncodedSound(CopiedTrack):
    """Sound that mp4 does not hold, as AAC. One encoder makes all of it, so that no turn begins with a click."""

    def declare(self, output: "av.container.OutputContainer") -> "av.stream.Stream":
        """Add an AAC track. Its own encoder only describes the format."""
        stream = output.add_stream("aac", rate=self.source.codec_context.sample_rate)
        self._configure(stream.codec_context)
        return stream

    def _output(self) -> Iterator["av.Packet"]:
        encoder = av.CodecContext.create("aac", "w")
        self._configure(encoder)
        resampler = av.AudioResampler("fltp", encoder.layout, encoder.sample_rate, frame_size=_AAC_SAMPLES)
        for frame in decoded(self._packets, self.source):
            if frame.pts is not None:
                frame.pts -= round(self._file_start_s / frame.time_base)
                for piece in resampler.resample(frame):
                    yield from encoder.encode(piece)

    def _configure(self, context: "av.AudioCodecContext"):
        context.sample_rate = self.source.codec_context.sample_rate
        context.layout = "mono" if self.source.codec_context.layout.nb_channels == 1 else "stereo"
        context.format = "fltp"
        context.time_base = Fraction(1, context.sample_rate)


class EncodedPicture(Track):
    """The picture as it is displayed, as H.264, with a caption drawn on it. Each turn begins with a keyframe.

    start_s: stream time at which the mp4 begins; zero_s: the file's own time of stream time 0.
    """

    def __init__(self, path: Path, start_s: float, zero_s: float, orientation: Orientation):
        super().__init__(path, "video", zero_s + start_s)
        self._start_s, self._zero_s, self._orientation = start_s, zero_s, orientation
        self.source.thread_type = "AUTO"
        self.source.codec_context.thread_count = _num_threads()
        width, height = self.source.codec_context.width, self.source.codec_context.height
        self._stored_size = width - width % 2, height - height % 2
        self._size = self._stored_size[::-1] if orientation.transpose else self._stored_size
        self._reformatter = VideoReformatter()
        self._frames = self._timed_frames()
        self._pending: tuple[float, av.VideoFrame] | None = None
        self._overlay: tuple[str, CaptionOverlay | None] = ("", None)

    def declare(self, output: "av.container.OutputContainer") -> "av.VideoStream":
        """Add an H.264 track of the displayed size and the file's frame rate and colours."""
        stream = output.add_stream("libx264", rate=self.source.average_rate or 25, options=_X264)
        context, source = stream.codec_context, self.source.codec_context
        stream.width, stream.height = self._size
        stream.pix_fmt = "yuv420p"
        context.time_base = stream.time_base = self.source.time_base
        context.thread_count = _num_threads()
        for name in ("colorspace", "color_primaries", "color_trc"):
            setattr(context, name, getattr(source, name))
        if ratio := source.sample_aspect_ratio:
            context.sample_aspect_ratio = 1 / ratio if self._orientation.transpose else ratio
        return stream

    def mux(self, output: "av.container.OutputContainer", stream: "av.VideoStream", end_s: float, caption: str):
        """Encode the frames before ``end_s`` with the caption."""
        while (timed := self._pending or next(self._frames, None)) is not None:
            self._pending = timed
            if timed[0] >= end_s - 1e-6:
                break
            self._pending = None
            picture = self._drawn(timed[1], caption)
            picture.pts, picture.time_base = round(timed[0] / self.source.time_base), self.source.time_base
            output.mux(stream.encode(picture))
        output.mux(stream.encode(None))

    def _timed_frames(self) -> Iterator[tuple[float, "av.VideoFrame"]]:
        """Yield the frames with their times in the mp4."""
        time_base, rate = self.source.time_base, self.source.average_rate
        usual_s = plausible_s(float(1 / rate) if rate else 0.0, DEFAULT_FRAME_S)
        clock = StreamClock(usual_s, zero_s=self._zero_s)
        for frame in decoded(self._packets, self.source):
            stamp_s = None if frame.pts is None else float(frame.pts * time_base)
            time_s = clock.to_stream_time(stamp_s, plausible_s(float((frame.duration or 0) * time_base), usual_s))
            if time_s is not None and not frame.is_corrupt and time_s - self._start_s >= self._first_s:
                yield time_s - self._start_s, frame

    def _drawn(self, frame: "av.VideoFrame", caption: str) -> "av.VideoFrame":
        width, height = self._stored_size
        stored = self._reformatter.reformat(frame, width, height, "yuv420p").to_ndarray()
        planes = [self._orientation.apply(plane[..., None])[..., 0] for plane in _planes(stored, width, height)]
        width, height = self._size
        picture = np.concatenate([plane.ravel() for plane in planes]).reshape(height * 3 // 2, width)
        if overlay := self._overlay_of(caption):
            overlay.blend(_planes(picture, width, height))
        return av.VideoFrame.from_ndarray(picture, format="yuv420p")

    def _overlay_of(self, caption: str) -> CaptionOverlay | None:
        if caption != self._overlay[0]:
            self._overlay = caption, draw_caption(caption, *self._size)
        return self._overlay[1]


def open_sound(path: Path, file_start_s: float) -> CopiedTrack | None:
    """Return the track of a file's sound, copied if mp4 holds its codec; None without sound."""
    with open_container(path) as container:
        sound = container.streams.best("audio")
        if sound is None:
            return None
        copies = sound.codec_context.name in COPIED_AUDIO
    return (CopiedTrack if copies else EncodedSound)(path, "audio", file_start_s)


def decode_lead_s(path: Path, zero_s: float) -> float | None:
    """Return how long before stream time 0 the first packet is decoded; None for a picture that mp4 cannot hold."""
    with open_container(path) as container:
        video = main_stream(container, repr(str(path)))
        if video.codec_context.name not in COPIED_VIDEO:
            return None
        first = next(packet for packet in container.demux(video) if packet.dts is not None)
        return max(0.0, zero_s - float(first.dts * video.time_base))


def decoded(packets: Iterable["av.Packet"], stream: "av.stream.Stream") -> Iterator["av.frame.Frame"]:
    """Yield the frames of a stream's packets; damaged ones are left out."""
    for packet in packets:
        with suppress(av.FFmpegError, EOFError):
            yield from stream.decode(packet)


def _planes(picture: np.ndarray, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return luma and both chroma planes, as views of a yuv420p picture [H * 3 / 2, W]."""
    flat, size, half = picture.reshape(-1), width * height, (height // 2, width // 2)
    chroma = flat[size:].reshape(2, *half)
    return flat[:size].reshape(height, width), chroma[0], chroma[1]


def _num_threads() -> int:
    return min(MAX_THREADS, os.cpu_count() or 1)
