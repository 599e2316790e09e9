"""The server process: it binds its port before the model is loaded, and drains before it stops."""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType

import uvicorn
from fastapi import FastAPI

from streamingvlm.errors import ConfigError
from streamingvlm.serving.server_config import ServerConfig

log = logging.getLogger(__name__)

_MAX_CONNECTIONS = 1024
_PING_S = 20.0
_MESSAGE_SLACK_BYTES = 1024
_MAX_QUEUED_MESSAGES = 4
_SHUTDOWN_S = 2


def bind(config: ServerConfig) -> socket.socket:
    """Bind the port, so that an error shows before a model is loaded. Raises ConfigError."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is given.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((config.host.strip("[]"), config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"host={config.host} port={config.port} cannot be listened on ({error.strerror}); choose another"
        ) from error
    return listener


class DrainingServer(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C, then drains its sessions; a second signal stops it immediately.

    on_ready: called as soon as requests are accepted.
    """

    def __init__(self, app: FastAPI, config: ServerConfig, on_ready: Callable[[], None]):
        super().__init__(_uvicorn_config(app, config))
        self._app, self._on_ready = app, on_ready
        self._draining: Future | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None):
        """Start to accept requests, and call ``on_ready``."""
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None):
        """Drain at the first signal, stop at the second."""
        if self._draining is not None or self._loop is None:
            super().handle_exit(sig, frame)
            return
        log.info("signal", extra={"signal": signal.Signals(sig).name})
        self._draining = asyncio.run_coroutine_threadsafe(self._drain(), self._loop)

    async def _drain(self):
        await self._app.state.manager.drain()
        self.should_exit = True


def _uvicorn_config(app: FastAPI, config: ServerConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=bool(config.proxies),
        forwarded_allow_ips=list(config.proxies),
        ws_max_size=config.limits.max_frame_bytes + _MESSAGE_SLACK_BYTES,
        ws_max_queue=_MAX_QUEUED_MESSAGES,
        ws_ping_interval=_PING_S,
        ws_ping_timeout=_PING_S,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=_SHUTDOWN_S,
    )
