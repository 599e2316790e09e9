"""A front and its replicas, all on loopback: in threads of this process, or under Ray."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
from running_server import Running

from streamingvlm.model.loading import StreamingModel
from streamingvlm.serving.config import ServerConfig
from streamingvlm.serving.fleet.fleet import Find, Fleet
from streamingvlm.serving.fleet.front import create_front
from streamingvlm.serving.fleet.link import Address
from streamingvlm.serving.fleet.replica import ReplicaServer
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.server import DrainingServer, bind
from streamingvlm.serving.streams import Streams

SECRET = "the secret of a front and its replicas".replace(" ", "-")


@contextmanager
def fronting(find: Find, config: ServerConfig, secret: str = SECRET) -> Iterator[Running]:
    """Run a front in a thread of this process, until it is ready."""
    fleet = Fleet(config, Metrics(), find, secret)
    app = create_front(fleet)
    listener = bind(replace(config, port=0))
    is_ready = threading.Event()
    server = DrainingServer(app, config, on_ready=is_ready.set)
    run = threading.Thread(target=server.run, args=([listener],))
    run.start()
    assert is_ready.wait(60)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    headers = {"Authorization": f"Bearer {config.api_keys[0]}"} if config.api_keys else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=60) as http:
            yield Running(app, url, http)
    finally:
        server.should_exit = True
        run.join(30)
        assert not run.is_alive()


class LocalReplicas:
    """Replicas in threads of this process."""

    def __init__(self, model: StreamingModel, config: ServerConfig, folder: Path, stack: ExitStack):
        self._model, self._config, self._folder, self._stack = model, config, folder, stack
        self.servers: dict[str, ReplicaServer] = {}

    def start(self, name: str) -> ReplicaServer:
        streams = Streams(self._model, {})
        self._stack.callback(streams.close)
        self.servers[name] = server = ReplicaServer(streams, self._config, self._folder, SECRET)
        self._stack.callback(server.leave)
        return server

    async def find(self) -> list[Address]:
        return [Address(name, server.url, 0) for name, server in self.servers.items()]
