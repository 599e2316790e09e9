"""``streamingvlm serve serving=ray``: start replicas under Ray Serve, and the front server that clients connect to."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import socket
from typing import Any

from streamingvlm.errors import ConfigError
from streamingvlm.serving.logs import log_json
from streamingvlm.serving.server_config import ServerConfig


def serve_on_ray(options: dict[str, Any], config: ServerConfig, listener: socket, on_ready: Callable[[], None]):
    """Start the replicas, then serve on a bound port until a signal."""
    given = {name: value for name, value in options["serving"].items() if name not in ("kind", "folder")}
    _prepare_ray(given["address"])
    try:
        from streamingvlm.serving.fleet.fleet import Fleet
        from streamingvlm.serving.fleet.frontend import create_frontend
        from streamingvlm.serving.fleet.ray_serve import RayReplicas, ReplicaOptions, ReplicaPlan, new_secret
        from streamingvlm.serving.fleet.session_store import stored_sessions
    except ImportError as error:
        raise ConfigError(f'{error.name} is missing; run: pip install "streamingvlm[ray]"') from error
    from streamingvlm.serving.metrics import Metrics
    from streamingvlm.serving.server import DrainingServer

    log_json(options["log_level"])
    replica_options = ReplicaOptions(**given)
    settings = {name: options[name] for name in ("cache", "video", "sampling")}
    with _sessions_folder(options["serving"]) as folder:
        plan = ReplicaPlan(options["model"], settings, config, folder, new_secret(), options["log_level"])
        with RayReplicas(replica_options, plan) as replicas:
            fleet = Fleet(config, Metrics(), replicas.discover, plan.secret, stored_sessions(folder))
            DrainingServer(create_frontend(fleet), config, on_ready=on_ready).run(sockets=[listener])


@contextmanager
def _sessions_folder(serving: dict[str, Any]) -> Iterator[Path]:
    if serving["folder"] is not None:
        yield Path(str(serving["folder"])).expanduser().resolve()
        return
    if serving["address"] is not None:
        raise ConfigError("serving.folder is null but serving.address is set; name a folder shared by the cluster")
    with tempfile.TemporaryDirectory(prefix="streamingvlm-sessions-") as folder:
        yield Path(folder)


def _prepare_ray(address: str | None):
    """Set the environment that Ray reads at import.

    Turns usage reports off, requires token authentication, and runs workers at normal priority. A cluster of this
    machine alone binds to loopback.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_worker_niceness", "0")
    if address is None:
        # Despite its name, the setting also works on Linux: the node address becomes 127.0.0.1.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
