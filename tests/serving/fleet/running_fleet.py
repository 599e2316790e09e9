"""A frontend on loopback, and replicas in threads of this process."""

import json
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from running_server import Running
from websockets.exceptions import ConnectionClosedError

from streamingvlm.model.loading import StreamingModel
from streamingvlm.serving.fleet.fleet import Fleet
from streamingvlm.serving.fleet.frontend import create_frontend
from streamingvlm.serving.fleet.replica import ReplicaServer
from streamingvlm.serving.fleet.replica_client import ReplicaAddress
from streamingvlm.serving.fleet.session_store import stored_sessions
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.server import DrainingServer, bind
from streamingvlm.serving.server_config import ServerConfig
from streamingvlm.serving.stream_pool import StreamPool

SECRET = "the secret of a frontend and its replicas".replace(" ", "-")


@dataclass
class RunningFleet(Running):
    """A running frontend and its replicas by name."""

    replicas: dict[str, ReplicaServer]
    fleet: Fleet
    start: object

    def replica_of(self, session: str) -> str:
        """The name of a session's replica."""
        return self.fleet._sessions[session].client.address.id

    def leave(self, name: str):
        """Shut a replica down gracefully, as Ray Serve does."""
        self.replicas.pop(name).leave()

    def cut_off(self, name: str) -> ReplicaServer:
        """Cut a replica's connections, while it continues to run."""
        server = self.replicas.pop(name)
        server._server.force_exit = server._server.should_exit = True
        server._thread.join(30)
        return server


@contextmanager
def running_fleet(model: StreamingModel, config: ServerConfig, folder: Path, *names: str) -> Iterator[RunningFleet]:
    """Run a frontend in a thread of this process, and replicas of these names."""
    with ExitStack() as stack:
        replicas: dict[str, ReplicaServer] = {}

        def start(name: str):
            streams = StreamPool(model, {}, **config.limits.engine_capacity)
            stack.callback(streams.close)
            replicas[name] = server = ReplicaServer(streams, config, folder, SECRET)
            stack.callback(server.leave)

        async def find() -> list[ReplicaAddress]:
            return [ReplicaAddress(name, server.url, 0) for name, server in replicas.items()]

        for name in names:
            start(name)
        fleet = Fleet(config, Metrics(), find, SECRET, stored_sessions(folder))
        url = stack.enter_context(_serving(fleet))
        headers = {"Authorization": f"Bearer {config.api_keys[0]}"} if config.api_keys else {}
        http = stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=60))
        yield RunningFleet(None, url, http, replicas, fleet, start)


@contextmanager
def _serving(fleet: Fleet) -> Iterator[str]:
    listener = bind(replace(fleet.config, port=0))
    is_ready = threading.Event()
    server = DrainingServer(create_frontend(fleet), fleet.config, on_ready=is_ready.set)
    run = threading.Thread(target=server.run, args=([listener],))
    run.start()
    assert is_ready.wait(60)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        run.join(30)
        assert not run.is_alive()


class PushedSession:
    """A session with one WebSocket that listens all the time, and one that pushes.

    session, after: an open session, and the number of turns that it has already processed.
    """

    def __init__(self, server: Running, jpegs: list[bytes], *, headers=None, session: str = "", after: int = 0):
        self.server, self.jpegs, self._headers, self._after = server, jpegs, headers or {}, after
        self.id = session or server.open(lag="wait")
        self.path = f"/v1/sessions/{self.id}"
        self.messages: list[dict] = []
        self._listening = threading.Thread(target=self._listen)
        self._listening.start()
        self._stack = ExitStack()
        self._pusher = self._stack.enter_context(server.socket(f"{self.path}/frames", additional_headers=self._headers))
        self._pushed_s = after

    @property
    def lines(self) -> list[dict]:
        """The lines received so far."""
        return [message for message in list(self.messages) if message["type"] == "line"]

    @property
    def end(self) -> dict:
        """The end event."""
        self._listening.join(120)
        assert not self._listening.is_alive(), "the commentary does not end"
        return self.messages[-1]

    def push(self, until_s: int):
        """Push the frames before a time; they may still wait in the server."""
        for index in range(2 * self._pushed_s, 2 * until_s):
            self._pusher.send(struct.pack(">d", index / 2) + self.jpegs[index])
        self._pushed_s = until_s

    def wait_for_lines(self, until_s: int):
        """Wait for the lines before a time."""
        deadline_s = time.monotonic() + 120
        while len(self.lines) < until_s - self._after:
            assert time.monotonic() < deadline_s and self._listening.is_alive(), self.messages
            time.sleep(0.02)

    def finish(self) -> list[str]:
        """The text of all its lines; each must have arrived once and in order."""
        self.wait_for_lines(self._pushed_s)
        assert self.server.http.post(f"{self.path}/finish").status_code == 202
        end, lines = self.end, self.lines
        assert (end["type"], end["reason"], end["last_id"]) == ("end", "finished", self._pushed_s)
        assert [line["id"] for line in lines] == list(range(self._after + 1, self._pushed_s + 1))
        assert [line["end_s"] for line in lines] == list(range(self._after + 1, self._pushed_s + 1))
        self._stack.close()
        return [line["text"] for line in lines]

    def _listen(self):
        path = f"{self.path}/commentary?after={self._after}"
        with (
            suppress(ConnectionClosedError),  # the server stops under a session that is live
            self.server.socket(path, additional_headers=self._headers) as socket,
        ):
            self.messages.extend(map(json.loads, socket))
