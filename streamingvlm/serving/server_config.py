"""Settings of the server, validated when they are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from streamingvlm.config import LiveConfig, above, at_least
from streamingvlm.errors import ConfigError

MIN_KEY_CHARACTERS = 16


@dataclass(frozen=True)
class ServerLimits:
    """Resource limits of the server. A request beyond a limit is refused; a frame beyond one is dropped and counted.

    max_sessions: concurrent sessions of all clients; max_cache_bytes: memory for all their KV caches, allocated at
        start (None: as much as they need); max_clips: concurrent one-shot clips, each at most max_clip_s long.
    max_body_bytes, max_frame_bytes, max_clip_bytes: size of a request, of a request with a JPEG, of one with a clip;
        max_frame_pixels: size of a picture, read from its header before it is decoded.
    max_frames_per_s: frames per session; more are dropped before they are decoded.
    max_waiting_s, max_waiting_bytes: video that waits for the model, per session.
    requests_per_s, burst_requests: per client address.
    max_subscribers: listeners per session; backlog_lines: lines kept for listeners that are slow or reconnect.
    max_text_tokens: length of a query, of the text before a stream, of a question, and of all text of a chat.
    max_questions: pending questions per session; max_answer_tokens: length of an answer.
    idle_s: a session without new frames ends after this time; session_s: any session does (None: never).
    retention_s: how long the lines of an ended session can be read.
    request_s: time to send a request's body; send_s: time to accept a piece of a response; drain_s: time from the
        signal to the end.
    """

    max_sessions: int = 16
    max_cache_bytes: int | None = None
    max_clips: int = 2
    max_clip_s: float = 120.0
    max_body_bytes: int = 64 * 1024
    max_frame_bytes: int = 4 * 1024 * 1024
    max_clip_bytes: int = 64 * 1024 * 1024
    max_frame_pixels: int = 3840 * 2160
    max_frames_per_s: float = 60.0
    max_waiting_s: float = 8.0
    max_waiting_bytes: int = 256 * 1024 * 1024
    requests_per_s: float = 50.0
    burst_requests: int = 200
    max_subscribers: int = 16
    backlog_lines: int = 7200
    max_text_tokens: int = 2048
    max_questions: int = 4
    max_answer_tokens: int = 256
    idle_s: float = 300.0
    session_s: float | None = None
    retention_s: float = 60.0
    request_s: float = 30.0
    send_s: float = 30.0
    drain_s: float = 20.0

    def __post_init__(self):
        for limit in fields(self):
            value = getattr(self, limit.name)
            if limit.default is None and value is None:
                continue
            if limit.name.endswith("_s"):
                above(f"limits.{limit.name}", value, 0, "a limit leaves something")
            else:
                at_least(f"limits.{limit.name}", value, 1, "a limit leaves something")

    @property
    def engine_capacity(self) -> dict[str, int | None]:
        """Arguments of ``StreamPool`` that make room for all sessions and clips."""
        return {"num_streams": self.max_sessions + self.max_clips, "memory_bytes": self.max_cache_bytes}


@dataclass(frozen=True)
class AllowedSources:
    """Files and hosts that the server may open for a client; by default none.

    folder: clients may name videos below it.
    hosts: clients may name addresses on these hosts; ``*.example.com`` matches every subdomain, ``*`` any host. A host
        named in full may have a private address; a wildcard matches public addresses only.
    """

    folder: Path | None = None
    hosts: tuple[str, ...] = ()

    def __post_init__(self):
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"folder={self.folder} is no folder; name one with videos in it")
        for host in self.hosts:
            if "/" in host or (":" in host.strip("[]") and not host.startswith("[")):
                raise ConfigError(f"hosts has {host!r}; give a host's name alone, such as cameras.example.com")


@dataclass(frozen=True)
class ServerConfig:
    """Address, authentication, limits and allowed sources of the server.

    api_keys: each gives access; a session belongs to the key that opened it. Without keys only this machine is served.
    proxies: addresses of trusted reverse proxies; their forwarded client address is used.
    ice_servers: STUN and TURN servers for WebRTC; not needed within one network.
    live: how network addresses are read, and the default policy when the model is late.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    ice_servers: tuple[str, ...] = ()
    limits: ServerLimits = field(default_factory=ServerLimits)
    allowed: AllowedSources = field(default_factory=AllowedSources)
    live: LiveConfig = field(default_factory=LiveConfig)

    def __post_init__(self):
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port={self.port} is no port; give a number up to 65535, or 0 for any free port")
        if not self.api_keys and not is_loopback(self.host):
            raise ConfigError(
                f"host={self.host} is open to the network, but there is no key; set STREAMINGVLM_API_KEY "
                "or api_key_file=..., or keep host=127.0.0.1"
            )
        for key in self.api_keys:
            if len(key) < MIN_KEY_CHARACTERS or not (key.isascii() and key.isprintable() and " " not in key):
                raise ConfigError(
                    f"an API key is shorter than {MIN_KEY_CHARACTERS} characters, or has spaces or characters beyond "
                    'ASCII; make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
                )


def is_loopback(host: str) -> bool:
    """Return True if a server that listens on this host is reachable from this machine only."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def limits_from(options: Mapping[str, Any]) -> ServerLimits:
    """Return the limits of a configuration file; null means the default. Raises ConfigError for an unknown name."""
    names = {limit.name for limit in fields(ServerLimits)}
    if unknown := sorted(set(options) - names):
        raise ConfigError(f"limits has no {unknown[0]!r}; it has {', '.join(sorted(names))}")
    return ServerLimits(**{name: value for name, value in options.items() if value is not None})


def read_keys(path: str | Path) -> tuple[str, ...]:
    """Return the API keys of a file, one per line; empty lines and lines starting with # are skipped.

    Raises ConfigError if the file cannot be read or has no key.
    """
    try:
        lines = Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"api_key_file={path} cannot be read ({error}); give a text file with one key per line"
        ) from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"api_key_file={path} holds no key; put each key on a line of its own")
    return keys
