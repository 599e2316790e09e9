"""The server as a process: listening before the model is loaded, draining before it stops."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from streamingvlm.errors import ConfigError
from streamingvlm.serving.config import ServerConfig

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1024
_PING_S = 20.0
_MESSAGE_SLACK_BYTES = 1024


def bind(config: ServerConfig) -> socket.socket:
    """Take the port, so that what is wrong with it shows before a model is loaded. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host.strip("[]"), config.port))
    except OSError as error:
        raise ConfigError(
            f"host={config.host} port={config.port} cannot be listened on ({error.strerror}); choose another"
        ) from error
    return listener


def serve(app: FastAPI, config: ServerConfig, listener: socket.socket, *, on_ready: Callable[[], None]):
    """Serve until SIGTERM or Ctrl-C; then drain, and return. A second signal ends it at once."""
    limits = config.limits
    settings = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(config.proxies),
        forwarded_allow_ips=list(config.proxies),
        ws_max_size=limits.max_frame_bytes + _MESSAGE_SLACK_BYTES,
        ws_max_queue=4,
        ws_ping_interval=_PING_S,
        ws_ping_timeout=_PING_S,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=2,
    )
    _DrainingServer(settings, app, on_ready).run(sockets=[listener])


class _DrainingServer(uvicorn.Server):
    def __init__(self, settings: uvicorn.Config, app: FastAPI, on_ready: Callable[[], None]):
        super().__init__(settings)
        self._app, self._on_ready = app, on_ready
        self._draining: asyncio.Task | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None):
        """Begin to accept, and say so."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None):
        """The first signal lets the sessions end; the second does not wait for them."""
        if self._draining is not None or self._loop is None:
            super().handle_exit(sig, frame)
            return
        log.info("signal", extra={"signal": signal.Signals(sig).name})
        self._draining = asyncio.run_coroutine_threadsafe(self._drain(), self._loop)

    async def _drain(self):
        await self._app.state.hub.drain()
        self.should_exit = True
