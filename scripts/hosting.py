"""What ``serve.py`` does once its command line is understood: take the port, load the model, serve."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from socket import socket
from typing import Any

from streamingvlm.config import LiveConfig, resolve
from streamingvlm.errors import ConfigError
from streamingvlm.serving.server_config import AllowedSources, ServerConfig, limits_from, read_keys


def host(options: dict[str, Any]):
    """Check what was given before anything that takes seconds is imported or loaded, then serve until told to stop."""
    config = server_config(options)
    try:
        from streamingvlm.serving.server import bind
    except ImportError as error:
        raise ConfigError(f'{error.name} is missing; run: pip install "streamingvlm[serve]"') from error
    with bind(config) as listener:
        # FFmpeg would go past the gateway to the hosts that are listed there.
        os.environ.pop("no_proxy", None)
        on_ready = partial(announce, config.host, listener.getsockname()[1])
        if options["serving"]["kind"] == "ray":
            from hosting_replicas import serve_replicas

            serve_replicas(options, config, listener, on_ready)
        else:
            serve(options, config, listener, on_ready)


def serve(options: dict[str, Any], config: ServerConfig, listener: socket, on_ready: Callable[[], None]):
    """Load the model and serve on a port that was taken."""
    from streamingvlm.model.loading import load_model
    from streamingvlm.serving.app import create_app
    from streamingvlm.serving.logs import log_json
    from streamingvlm.serving.server import DrainingServer
    from streamingvlm.serving.stream_pool import StreamPool

    log_json(options["log_level"])
    model = load_model(**options["model"])
    settings = {name: options[name] for name in ("cache", "video", "sampling")}
    streams = StreamPool(model, settings, **config.limits.engine_capacity)
    try:
        app = create_app(streams, config)
        DrainingServer(app, config, on_ready=on_ready).run(sockets=[listener])
    finally:
        streams.close()


def server_config(options: dict[str, Any]) -> ServerConfig:
    """What the options say of the server. Raises ConfigError."""
    keys = (options["api_key"],) if options["api_key"] else ()
    if options["api_key_file"]:
        keys += read_keys(options["api_key_file"])
    folder = options["folder"] and Path(str(options["folder"])).expanduser()
    return ServerConfig(
        host=options["host"],
        port=options["port"],
        api_keys=keys,
        proxies=tuple(options["proxies"]),
        ice_servers=tuple(options["ice_servers"]),
        limits=limits_from(options["limits"]),
        allowed=AllowedSources(folder or None, tuple(options["hosts"])),
        live=resolve(LiveConfig, options["live"], {}),
    )


def announce(host_name: str, port: int):
    """Tell people where to look."""
    shown = f"[{host_name}]" if ":" in host_name else host_name
    print(f"http://{shown}:{port} is ready; Ctrl-C ends it", file=sys.stdout, flush=True)
