"""Many sessions in real time: every line once and in order, and the latency from frame to text."""

import json
import struct
import threading
import time
from dataclasses import dataclass, field

import pytest
from running_server import Running

from streamingvlm.inference.stats import percentile

FPS = 2


@dataclass
class Viewer:
    """One client: pushes frames in real time and listens to the lines, reconnecting now and then."""

    server: Running
    jpegs: list[bytes]
    duration_s: float
    by_socket: bool
    sent_s: dict[int, float] = field(default_factory=dict)
    lines: list[dict] = field(default_factory=list)
    waits_s: list[float] = field(default_factory=list)
    end: dict | None = None
    num_connections: int = 0

    def run(self):
        self.session = self.server.open(lag="coalesce")
        pushing = threading.Thread(target=self.push)
        pushing.start()
        while self.end is None:
            self.num_connections += 1
            self.listen_by_socket() if self.by_socket else self.listen_by_events()
        pushing.join()

    def push(self):
        with self.server.socket(f"/v1/sessions/{self.session}/frames") as socket:
            started_s = time.monotonic()
            for index in range(round(self.duration_s * FPS)):
                time.sleep(max(0.0, started_s + index / FPS - time.monotonic()))
                self.sent_s[index] = time.monotonic()
                socket.send(struct.pack(">d", index / FPS) + self.jpegs[index % len(self.jpegs)])
            socket.send(json.dumps({"type": "finish"}))

    def listen_by_socket(self):
        path = f"/v1/sessions/{self.session}/commentary?after={self.last_id}"
        with self.server.socket(path, max_queue=None) as socket:
            for message in map(json.loads, socket):
                self.take(message["type"], message)
                if self.is_to_reconnect(message["type"]):
                    return

    def listen_by_events(self):
        for kind, _, data in self.server.events(self.session, **{"Last-Event-ID": str(self.last_id)}):
            self.take(kind, data)
            if self.is_to_reconnect(kind):
                return

    @property
    def last_id(self):
        return self.lines[-1]["id"] if self.lines else 0

    def take(self, kind, data):
        if kind == "line":
            last_frame = round(data["end_s"] * FPS) - 1
            self.waits_s.append(time.monotonic() - self.sent_s[last_frame])
            self.lines.append(data)
        elif kind == "end":
            self.end = data
        else:
            assert kind == "state" or kind == "partial", kind

    def is_to_reconnect(self, kind):
        return kind == "line" and len(self.lines) % 25 == 0


def watch_together(server, jpegs, *, num_viewers, duration_s):
    viewers = [Viewer(server, jpegs[2 * n :] + jpegs[: 2 * n], duration_s, n % 2 == 0) for n in range(num_viewers)]
    threads = [threading.Thread(target=viewer.run) for viewer in viewers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return viewers


def check_every_line_once_and_in_order(viewers, duration_s):
    for viewer in viewers:
        assert [line["id"] for line in viewer.lines] == list(range(1, len(viewer.lines) + 1))
        assert viewer.end == {"reason": "finished", "last_id": len(viewer.lines), **kind_of(viewer.end)}
        # No second of the stream is missing: late turns are merged into a line.
        assert viewer.lines[0]["start_s"] == 0
        assert viewer.lines[-1]["end_s"] == duration_s
        for earlier, later in zip(viewer.lines, viewer.lines[1:], strict=False):
            assert later["start_s"] == earlier["end_s"]


def kind_of(message):
    return {"type": "end"} if "type" in message else {}


def test_three_viewers_get_every_line_once_and_in_order(server, match_jpegs):
    viewers = watch_together(server, match_jpegs, num_viewers=3, duration_s=4)
    check_every_line_once_and_in_order(viewers, 4)


@pytest.mark.slow
def test_eight_viewers_for_ten_minutes(serving, match_jpegs):
    duration_s = 600
    with serving() as server:
        viewers = watch_together(server, match_jpegs, num_viewers=8, duration_s=duration_s)
        metrics = server.http.get("/metrics").text
    check_every_line_once_and_in_order(viewers, duration_s)
    waits_s = [wait_s for viewer in viewers for wait_s in viewer.waits_s]
    num_lines = sum(len(viewer.lines) for viewer in viewers)
    shared_s = sum(line["coalesced_s"] for viewer in viewers for line in viewer.lines)
    print(f"{num_lines} lines over {sum(viewer.num_connections for viewer in viewers)} connections")
    print(f"{shared_s:.0f} s of {8 * duration_s} shared a line with others")
    print("frame to text:", *(f"p{share * 100:.0f} {percentile(waits_s, share):.3f} s" for share in (0.5, 0.95, 0.99)))
    assert "streamingvlm_sessions_closed_total" in metrics
    assert num_lines + shared_s == 8 * duration_s
