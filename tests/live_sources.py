"""Servers and senders of live streams on loopback."""

import contextlib
import http.server
import subprocess
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np

FPS = 25


def write_camera_file(path, images, fps):
    """Write images, uint8 [H, W, 3], as a camera encodes them: H.264 without B-frames, a keyframe every second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"tune": "zerolatency", "bf": "0", "g": str(fps)})
        stream.pix_fmt, stream.codec_context.time_base = "yuv420p", Fraction(1, 90_000)
        for index, image in enumerate(images):
            if index == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = index * 90_000 // fps, Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@contextlib.contextmanager
def ffmpeg(*words, **options):
    """Run the ffmpeg program in a process that ends with the block."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-loglevel", "error", *map(str, words)]
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


class WebServer(http.server.ThreadingHTTPServer):
    """Serve a folder and `pages`: a path to a function that returns bytes, or an address to redirect to."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, folder=".", port=0):
        self.folder = str(folder)
        self.pages = {}
        self.requested = []
        super().__init__(("127.0.0.1", port), _Page)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Page(http.server.SimpleHTTPRequestHandler):
    def __init__(self, request, address, server):
        super().__init__(request, address, server, directory=server.folder)

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.server.requested.append(path)
        page = self.server.pages.get(path)
        if page is None:
            return super().do_GET()
        body = page()
        if isinstance(body, str):
            self.send_response(302)
            self.send_header("Location", body)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Type", "application/vnd.apple.mpegurl")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return self.wfile.write(body)

    def log_message(self, *_):
        pass


class LivePlaylist:
    """The playlist of a live HLS stream: the segments of a recording are published one by one in real time."""

    def __init__(self, clip, folder, segment_s=1):
        self.segment_s = segment_s
        with av.open(str(clip)) as source:
            original = source.streams.video[0]
            options = {"hls_time": str(segment_s), "hls_list_size": "0"}
            with av.open(str(Path(folder) / "all.m3u8"), "w", format="hls", options=options) as target:
                stream = target.add_stream_from_template(original)
                for packet in source.demux(original):
                    if packet.size:
                        packet.stream = stream
                        target.mux(packet)
        self.num_segments = len(list(Path(folder).glob("all*.ts")))
        self.began_s = time.monotonic() - 4 * segment_s
        self.ends_s = float("inf")

    def __call__(self):
        """Return a playlist of the four newest segments, as bytes; from `ends_s` on it ends the stream."""
        now_s = min(time.monotonic(), self.ends_s)
        newest = min(self.num_segments, int((now_s - self.began_s) / self.segment_s))
        first = max(0, newest - 4)
        lines = ["#EXTM3U", "#EXT-X-VERSION:3", f"#EXT-X-TARGETDURATION:{self.segment_s}"]
        lines.append(f"#EXT-X-MEDIA-SEQUENCE:{first}")
        for number in range(first, newest):
            lines += [f"#EXTINF:{self.segment_s:.3f},", f"all{number}.ts"]
        if time.monotonic() >= self.ends_s:
            lines.append("#EXT-X-ENDLIST")
        return "\n".join([*lines, ""]).encode()
