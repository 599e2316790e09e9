"""The server under Ray Serve: two replicas of the embedded model on this machine, the command itself in front of them."""

import itertools
import json
import os
import struct
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from running_server import Running

from streamingvlm import StreamingSession

ray = pytest.importorskip("ray", reason="Ray is not installed")

ROOT = Path(__file__).parents[3]
KEY = "the-key-of-the-front-door"
NUM_SECONDS = 12

pytestmark = pytest.mark.ray


@dataclass
class Cluster(Running):
    """The command under Ray: its log, and the replicas that it tells of there."""

    process: subprocess.Popen
    entries: list[dict]

    def told(self, message: str) -> list[dict]:
        return [entry for entry in list(self.entries) if entry["message"] == message]

    @property
    def replicas(self) -> dict[str, int]:
        """The replicas that are there, and their processes."""
        gone = {entry["replica"] for entry in self.told("a replica has gone")}
        return {e["replica"]: e["pid"] for e in self.told("a replica has come") if e["replica"] not in gone}

    def replica_of(self, session: str) -> str:
        moves = [e for e in self.told("session opened") + self.told("session moved") if e["session"] == session]
        return moves[-1]["replica"]

    def wait_for_replicas(self, count: int):
        deadline_s = time.monotonic() + 300
        while len(self.replicas) != count:
            assert time.monotonic() < deadline_s, self.entries
            time.sleep(0.1)


def scale(num_replicas: int):
    """What Ray's own command for it does: `POST /api/v1/applications/streamingvlm/deployments/Replica/scale`."""
    script = f"""
import ray
from ray.serve._private.common import DeploymentID
from ray.serve.context import _get_global_client
ray.init(address="auto", configure_logging=False, log_to_driver=False)
controller = _get_global_client()._controller
ray.get(controller.update_deployment_replicas.remote(DeploymentID("Replica", "streamingvlm"), {num_replicas}))
"""
    subprocess.run([sys.executable, "-c", script], check=True, env=environment(), timeout=300)


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "STREAMINGVLM_API_KEY": KEY,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    words = ["serving=ray", "serving.num_cpus=0.1", "port=0", "limits.max_sessions=4", "limits.requests_per_s=1000"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "serve.py", *words],
        cwd=tmp_path_factory.mktemp("cluster"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    entries: list[dict] = []
    others: list[str] = []

    def read():
        for row in process.stderr:
            try:
                entries.append(json.loads(row))
            except ValueError:
                others.append(row)

    reading = threading.Thread(target=read)
    reading.start()
    try:
        announced = process.stdout.readline()
        assert " is ready; " in announced, "".join(others)
        url = announced.split()[0]
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=120) as http:
            cluster = Cluster(None, url, http, process, entries)
            cluster.wait_for_replicas(2)
            yield cluster
    finally:
        process.terminate()
        try:
            process.wait(120)
        finally:
            process.kill()
            reading.join()


@pytest.fixture(scope="module")
def expected(pitch, match_jpegs):
    """The lines of a stream that is never moved."""
    import torch

    from streamingvlm.serving.pictures import decode_jpeg

    frames = [decode_jpeg(jpeg, max_pixels=10**7) for jpeg in match_jpegs]
    session = StreamingSession(pitch)
    return [session.step(torch.stack(pair)).text for pair in itertools.batched(frames[: 2 * NUM_SECONDS], 2)]


class Watched:
    """A session that is pushed to by one socket and listened to by another, both open all the time."""

    def __init__(self, cluster: Cluster, jpegs: list[bytes]):
        self.cluster, self.jpegs = cluster, jpegs
        self.id = cluster.open(lag="wait")
        self.messages: list[dict] = []
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self):
        with self.cluster.socket(f"/v1/sessions/{self.id}/commentary", additional_headers=HEADERS) as socket:
            self.messages.extend(map(json.loads, socket))

    def push(self, first_s: int, last_s: int):
        with self.cluster.socket(f"/v1/sessions/{self.id}/frames", additional_headers=HEADERS) as socket:
            for index in range(2 * first_s, 2 * last_s):
                socket.send(struct.pack(">d", index / 2) + self.jpegs[index])
            self.cluster.wait_for(self.id, last_s)

    def finish(self) -> list[str]:
        """The text of its lines, each of which came once and in order."""
        assert self.cluster.http.post(f"/v1/sessions/{self.id}/finish").status_code == 202
        self._thread.join(120)
        lines = [message for message in self.messages if message["type"] == "line"]
        assert self.messages[-1] == {"type": "end", "reason": "finished", "last_id": len(lines)}
        assert [line["id"] for line in lines] == list(range(1, len(lines) + 1))
        assert [line["end_s"] for line in lines] == list(range(1, len(lines) + 1))
        return [line["text"] for line in lines]


HEADERS = {"Authorization": f"Bearer {KEY}"}
