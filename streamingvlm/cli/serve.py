"""``streamingvlm serve``: bind the port, load the model, serve."""

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


def serve(options: dict[str, Any]):
    """Check the options and bind the port before slow imports and the model load, then serve until a signal."""
    config = server_config(options)
    try:
        from streamingvlm.serving.server import bind
    except ImportError as error:
        raise ConfigError(f'{error.name} is missing; run: pip install "streamingvlm[serve]"') from error
    with bind(config) as listener:
        # FFmpeg bypasses its proxy for hosts in no_proxy; all outgoing connections have to go through the proxy.
        os.environ.pop("no_proxy", None)
        on_ready = partial(print_url, config.host, listener.getsockname()[1])
        if options["serving"]["kind"] == "ray":
            from streamingvlm.cli.serve_on_ray import serve_on_ray

            serve_on_ray(options, config, listener, on_ready)
        else:
            serve_alone(options, config, listener, on_ready)


def serve_alone(options: dict[str, Any], config: ServerConfig, listener: socket, on_ready: Callable[[], None]):
    """Load one model in this process and serve on a bound port."""
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
    """Return the server settings of the options. Raises ConfigError."""
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


def print_url(host_name: str, port: int):
    """Print the URL of the page."""
    shown = f"[{host_name}]" if ":" in host_name else host_name
    print(f"http://{shown}:{port} is ready; Ctrl-C stops it", file=sys.stdout, flush=True)
