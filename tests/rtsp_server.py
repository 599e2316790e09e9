"""A camera: a small RTSP server (RFC 2326) that loops an H.264 file in real time, over TCP (RFC 6184).

    python rtsp_server.py clip.mp4 8554 [epoch_s]

The stream follows the wall clock across clients and restarts: frame n of the endless stream appears at
`epoch_s + n / fps`. A client begins with the newest keyframe.
"""

import base64
import socketserver
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import av

CLOCK_HZ = 90_000
PAYLOAD_TYPE = 96
MAX_PAYLOAD = 1400
FU_A = 28


@dataclass(frozen=True)
class AccessUnit:
    """One coded frame: its time, and its NAL units without start codes."""

    time_s: float
    is_key: bool
    nals: tuple[bytes, ...]


class Clip:
    """An H.264 file without B-frames, in memory."""

    def __init__(self, path):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            extradata = stream.codec_context.extradata
            self.parameter_sets = _parameter_sets(extradata)
            size = (extradata[4] & 3) + 1
            self.units = [
                AccessUnit(float(packet.pts * packet.time_base), packet.is_keyframe, _nals(bytes(packet), size))
                for packet in container.demux(stream)
                if packet.size
            ]
            self.duration_s = float(stream.duration * stream.time_base)

    def from_newest_key(self, shown_s):
        """Yield times in the endless stream and access units, from the newest keyframe at or before `shown_s`."""
        loop, within_s = divmod(shown_s, self.duration_s)
        first = max(i for i, unit in enumerate(self.units) if unit.is_key and unit.time_s <= within_s)
        while True:
            for unit in self.units[first:]:
                yield loop * self.duration_s + unit.time_s, unit
            loop, first = loop + 1, 0


class RtspServer(socketserver.ThreadingTCPServer):
    """Serve one clip to many clients; `close` ends all connections at once."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, path, port=0, *, epoch_s=0.0, credentials=None):
        """`epoch_s`: the start of the stream by `time.time()`; `credentials`: the required "user:password"."""
        self.clip = Clip(path)
        self.epoch_s = epoch_s
        self.credentials = credentials
        self.is_stalled = threading.Event()
        self.num_plays = 0
        self._sockets = set()
        super().__init__(("127.0.0.1", port), _Client)

    @property
    def port(self):
        return self.server_address[1]

    def start(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def close(self):
        self.shutdown()
        self.server_close()
        self.disconnect_clients()

    def disconnect_clients(self):
        """End all connections, like a camera that is switched off; accept new ones."""
        for connection in list(self._sockets):
            self.shutdown_request(connection)

    def get_request(self):
        connection, address = super().get_request()
        self._sockets.add(connection)
        return connection, address

    def shutdown_request(self, request):
        self._sockets.discard(request)
        super().shutdown_request(request)


class _Client(socketserver.StreamRequestHandler):
    """One connection: it answers requests while another thread sends the frames."""

    disable_nagle_algorithm = True

    def handle(self):
        self.ended = threading.Event()
        self.sending = threading.Lock()
        try:
            while (request := self._request()) is not None:
                self._answer(*request)
        except OSError:
            pass  # the client has disconnected, or was disconnected
        finally:
            self.ended.set()

    def _request(self):
        """Read the method, address and headers of the next request, skipping RTCP; None at the end."""
        while (first := self.rfile.read(1)) == b"$":
            _, size = struct.unpack(">BH", self.rfile.read(3))
            self.rfile.read(size)
        if not first:
            return None
        method, address, _ = (first + self.rfile.readline()).decode().split()
        headers = {}
        while line := self.rfile.readline().decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return method, address, headers

    def _answer(self, method, address, headers):
        required = self.server.credentials
        received = headers.get("authorization", "").removeprefix("Basic ")
        if required and received != base64.b64encode(required.encode()).decode() and method != "OPTIONS":
            return self._reply(headers, "401 Unauthorized", {"WWW-Authenticate": 'Basic realm="camera"'})
        if method == "DESCRIBE":
            return self._reply(headers, "200 OK", {"Content-Base": f"{address}/"}, self._sdp())
        if method == "SETUP" and "TCP" not in headers["transport"]:
            return self._reply(headers, "461 Unsupported Transport", {})
        extra = {
            "OPTIONS": {"Public": "OPTIONS, DESCRIBE, SETUP, PLAY, GET_PARAMETER, TEARDOWN"},
            "SETUP": {"Transport": "RTP/AVP/TCP;unicast;interleaved=0-1"},
        }.get(method, {})
        self._reply(headers, "200 OK", {"Session": "1;timeout=60", **extra})
        if method == "PLAY":
            self.server.num_plays += 1
            threading.Thread(target=self._play, daemon=True).start()
        elif method == "TEARDOWN":
            self.ended.set()

    def _reply(self, headers, status, extra, body=""):
        lines = [f"RTSP/1.0 {status}", f"CSeq: {headers.get('cseq', 0)}", *(f"{k}: {v}" for k, v in extra.items())]
        if body:
            lines += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        with self.sending:
            self.wfile.write("\r\n".join([*lines, "", body]).encode())

    def _sdp(self):
        sets = ",".join(base64.b64encode(each).decode() for each in self.server.clip.parameter_sets)
        profile = self.server.clip.parameter_sets[0][1:4].hex()
        lines = [
            "v=0",
            "o=- 0 0 IN IP4 127.0.0.1",
            "s=camera",
            "c=IN IP4 0.0.0.0",
            "t=0 0",
            f"m=video 0 RTP/AVP {PAYLOAD_TYPE}",
            f"a=rtpmap:{PAYLOAD_TYPE} H264/{CLOCK_HZ}",
            f"a=fmtp:{PAYLOAD_TYPE} packetization-mode=1;profile-level-id={profile};sprop-parameter-sets={sets}",
            "a=control:track0",
        ]
        return "\r\n".join([*lines, ""])

    def _play(self):
        server, sequence = self.server, 0
        try:
            for shown_s, unit in server.clip.from_newest_key(time.time() - server.epoch_s):
                if self.ended.wait(max(0.0, server.epoch_s + shown_s - time.time())):
                    return
                while server.is_stalled.is_set():
                    time.sleep(0.01)
                nals = (*server.clip.parameter_sets, *unit.nals) if unit.is_key else unit.nals
                for packet in _rtp_packets(nals, round(shown_s * CLOCK_HZ) & 0xFFFFFFFF, sequence):
                    sequence += 1
                    with self.sending:
                        self.wfile.write(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
        except OSError:
            pass  # the client has disconnected, or was disconnected


def _rtp_packets(nals, timestamp, sequence):
    """Yield the RTP packets of one frame; the last one has the marker bit."""
    payloads = [payload for nal in nals for payload in _payloads(nal)]
    for i, payload in enumerate(payloads):
        marked = PAYLOAD_TYPE | (0x80 if i == len(payloads) - 1 else 0)
        yield struct.pack(">BBHII", 0x80, marked, (sequence + i) & 0xFFFF, timestamp, 0x5EED) + payload


def _payloads(nal):
    """Yield a NAL unit whole, or in fragments (FU-A)."""
    if len(nal) <= MAX_PAYLOAD:
        yield nal
        return
    indicator, kind, body = nal[0] & 0xE0 | FU_A, nal[0] & 0x1F, nal[1:]
    for start in range(0, len(body), MAX_PAYLOAD):
        is_first, is_last = start == 0, start + MAX_PAYLOAD >= len(body)
        yield bytes([indicator, kind | is_first << 7 | is_last << 6]) + body[start : start + MAX_PAYLOAD]


def _parameter_sets(extradata):
    """Return the sequence and picture parameter sets of an AVC decoder configuration record (ISO 14496-15)."""
    sets, offset = [], 5
    for mask in (0x1F, 0xFF):
        count, offset = extradata[offset] & mask, offset + 1
        for _ in range(count):
            size = int.from_bytes(extradata[offset : offset + 2], "big")
            sets.append(extradata[offset + 2 : offset + 2 + size])
            offset += 2 + size
    return tuple(sets)


def _nals(data, size_bytes):
    nals, offset = [], 0
    while offset < len(data):
        size = int.from_bytes(data[offset : offset + size_bytes], "big")
        nals.append(data[offset + size_bytes : offset + size_bytes + size])
        offset += size_bytes + size
    return tuple(nals)


if __name__ == "__main__":
    server = RtspServer(Path(sys.argv[1]), int(sys.argv[2]), epoch_s=float((sys.argv[3:] or [0])[0]))
    print(server.port, flush=True)
    server.serve_forever()
