"""The command itself under Ray Serve, with two replicas of the embedded model in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from running_fleet import PushedSession
from running_server import Running

pytestmark = pytest.mark.ray
ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'streamingvlm[ray]'")

ROOT = Path(__file__).parents[3]
KEY = "the-key-of-the-frontend"
HEADERS = {"Authorization": f"Bearer {KEY}"}
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    "STREAMINGVLM_API_KEY": KEY,
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}
SCALE = """
import sys, ray
from ray.serve._private.common import DeploymentID
from ray.serve.context import _get_global_client

ray.init(address="auto", log_to_driver=False)
deployment = DeploymentID(name="Replica", app_name="streamingvlm")
ray.get(_get_global_client()._controller.update_deployment_replicas.remote(deployment, int(sys.argv[1])))
"""
"""What Ray does on POST /api/v1/applications/streamingvlm/deployments/Replica/scale."""


@dataclass
class Cluster(Running):
    """The command under Ray, and its log."""

    entries: list[dict]

    @property
    def replicas(self) -> dict[str, int]:
        """The running replicas and their processes."""
        gone = {entry["replica"] for entry in self._logged("replica lost")}
        return {e["replica"]: e["pid"] for e in self._logged("replica joined") if e["replica"] not in gone}

    def replica_of(self, session: str) -> str:
        """The name of a session's replica."""
        had = self._logged("session opened") + self._logged("session moved")
        return [entry["replica"] for entry in had if entry["session"] == session][-1]

    def wait_for_replicas(self, count: int):
        """Wait until exactly this many replicas accept sessions."""
        deadline_s = time.monotonic() + 300
        while not len(self.replicas) == len(self.with_metrics) == count:
            assert time.monotonic() < deadline_s, self.entries
            time.sleep(0.2)

    @property
    def with_metrics(self) -> set[str]:
        """The replicas with metrics."""
        rows = self.http.get("/metrics").text.splitlines()
        metrics = [row for row in rows if row.startswith("streamingvlm_lines_total")]
        return {row.split('replica="')[1].split('"')[0] for row in metrics} - {"frontend"}

    def _logged(self, message: str) -> list[dict]:
        return [entry for entry in list(self.entries) if entry["message"] == message]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    words = ["serving=ray", "serving.num_cpus=0.1", "port=0", "limits.max_sessions=4", "limits.requests_per_s=1000"]
    entries: list[dict] = []
    others: list[str] = []
    process, url = _started(words, tmp_path_factory.mktemp("cluster"), entries, others)
    try:
        with httpx.Client(base_url=url, headers=HEADERS, timeout=120) as http:
            yield Cluster(None, url, http, entries)
        process.terminate()
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()


def _started(words, folder: Path, entries: list[dict], others: list[str]) -> tuple[subprocess.Popen, str]:
    """Run the command until it serves. Ray gives up on its own parts after 15 s, busy machine or not: three goes."""
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "streamingvlm", "serve", *words],
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=_read, args=(process.stderr, entries, others), daemon=True).start()
        if " is ready; " in (announced := process.stdout.readline()):
            return process, announced.split()[0]
        process.wait(60)
    raise AssertionError("".join(others))


def _read(rows, entries: list[dict], others: list[str]):
    """Read JSON logs; Ray writes other lines to the same stream."""
    for row in rows:
        try:
            entries.append(json.loads(row))
        except ValueError:
            others.append(row)


def two_sessions(cluster: Cluster, jpegs: list[bytes]) -> list[PushedSession]:
    """One on each replica."""
    cluster.wait_for_replicas(2)
    watched = [PushedSession(cluster, jpegs, headers=HEADERS) for _ in range(2)]
    assert {cluster.replica_of(session.id) for session in watched} == set(cluster.replicas)
    return watched


def test_the_session_of_a_killed_replica_moves(cluster, match_jpegs, unmoved):
    first, second = two_sessions(cluster, match_jpegs)
    for session in (first, second):
        session.push(5)
    first.wait_for_lines(2)
    os.kill(cluster.replicas[cluster.replica_of(first.id)], signal.SIGKILL)
    for session in (first, second):
        session.push(9)
    assert (first.finish(), second.finish()) == (unmoved[:9], unmoved[:9])
    assert cluster.replica_of(first.id) == cluster.replica_of(second.id)


def test_the_session_of_a_drained_replica_moves(cluster, match_jpegs, unmoved):
    sessions = two_sessions(cluster, match_jpegs)
    before = dict(cluster.replicas)
    for session in sessions:
        session.push(4)
    subprocess.run([sys.executable, "-c", SCALE, "1"], check=True, env=ENVIRONMENT, timeout=300)
    for session in sessions:
        session.push(9)
        assert session.finish() == unmoved[:9]
    cluster.wait_for_replicas(1)
    assert {cluster.replica_of(session.id) for session in sessions} == set(cluster.replicas) < set(before)


def test_metrics_cover_the_running_replicas_and_need_the_key(cluster):
    assert cluster.with_metrics == set(cluster.replicas)
    assert cluster.http.get("/metrics", headers={"Authorization": "Bearer wrong"}).status_code == 401
