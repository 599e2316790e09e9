"""What an operator may set of the server, checked when it is made; no setting opens more than it says."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from streamingvlm.config import LiveConfig, above, at_least
from streamingvlm.errors import ConfigError

LEAST_KEY_CHARACTERS = 16


@dataclass(frozen=True)
class Limits:
    """How much of the server anybody may take up; what is beyond is refused in one line, or dropped and counted.

    max_sessions: sessions at a time, of all clients; max_cache_bytes: memory for the caches of all of them, allocated
        at the start (None: as much as they need); max_clips: one-shot clips at a time, max_clip_s their length.
    max_body_bytes, max_frame_bytes, max_clip_bytes: of a request, a JPEG, a request with a clip in it;
        max_frame_pixels: of a picture, told by its header before it is decoded.
    max_frames_per_s: pictures that a session looks at; more are dropped unread.
    max_waiting_s, max_waiting_bytes: video that waits for the model, a session.
    requests_per_s, burst_requests: of one address.
    max_subscribers: listeners of a session; backlog_lines: lines kept for listeners that are slow or come back.
    max_questions: that wait for an answer, a session; max_answer_tokens: of an answer.
    idle_s: a session that nothing is fed to ends after so long; session_s: any session does (None: never).
    kept_s: how long the lines of an ended session can be read.
    request_s: to send a request's body; send_s: to take what was sent; drain_s: from the signal to the end.
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
    max_questions: int = 4
    max_answer_tokens: int = 256
    idle_s: float = 300.0
    session_s: float | None = None
    kept_s: float = 60.0
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
    def room(self) -> dict[str, int | None]:
        """What the model's side is to have room for."""
        return {"num_streams": self.max_sessions + self.max_clips, "memory_bytes": self.max_cache_bytes}


@dataclass(frozen=True)
class Allowed:
    """What the server may open on a client's behalf; by default nothing.

    folder: videos below it may be watched by their name.
    hosts: addresses may be watched on these hosts; ``*.example.com`` stands for all below it, ``*`` for any. A host
        named in full may be a private one; behind a star, public addresses alone are reached.
    """

    folder: Path | None = None
    hosts: tuple[str, ...] = ()

    def __post_init__(self):
        if self.folder is not None and not self.folder.is_dir():
            raise ConfigError(f"folder={self.folder} is no folder; name one with videos in it")
        for host in self.hosts:
            if "/" in host or (":" in host.strip("[]") and not host.startswith("[")):
                raise ConfigError(f"hosts has {host!r}; give a host's name alone, as cameras.example.com")


@dataclass(frozen=True)
class ServerConfig:
    """Where the server listens and to whom.

    api_keys: any of them opens the door; sessions belong to the key that made them. Without one, only programs on this
        machine are served.
    proxies: addresses of reverse proxies whose word on the client's address is taken.
    ice_servers: STUN and TURN servers for WebRTC; none are needed on one network.
    live: how addresses are watched, and what is done when the model is late, where a session does not say.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    ice_servers: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    allowed: Allowed = field(default_factory=Allowed)
    live: LiveConfig = field(default_factory=LiveConfig)

    def __post_init__(self):
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port={self.port} is no port; give a number up to 65535, or 0 for any that is free")
        if not self.api_keys and not is_loopback(self.host):
            raise ConfigError(
                f"host={self.host} is open to the network, but there is no key; put one into STREAMINGVLM_API_KEY "
                "or api_key_file=..., or keep host=127.0.0.1"
            )
        for key in self.api_keys:
            if len(key) < LEAST_KEY_CHARACTERS or not (key.isascii() and key.isprintable() and " " not in key):
                raise ConfigError(
                    f"a key is shorter than {LEAST_KEY_CHARACTERS} characters or has spaces or signs beyond ASCII; "
                    'make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
                )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def limits_from(given: Mapping[str, Any]) -> Limits:
    """The limits of a configuration file, null standing for the usual. Raises ConfigError for a name it has not."""
    names = {limit.name for limit in fields(Limits)}
    if unknown := sorted(set(given) - names):
        raise ConfigError(f"limits has no {unknown[0]!r}; it has {', '.join(sorted(names))}")
    return Limits(**{name: value for name, value in given.items() if value is not None})


def read_keys(path: str | Path) -> tuple[str, ...]:
    """The keys of a file, one a line; empty lines and lines that begin with # are passed over. Raises ConfigError."""
    try:
        lines = Path(path).expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"api_key_file={path} cannot be read ({error}); name a text file with a key a line"
        ) from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"api_key_file={path} holds no key; put one on a line of its own")
    return keys
