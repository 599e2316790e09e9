"""The embedded model behind a real server, and frames of the sample match to push."""

from collections.abc import Iterator

import pytest
from running_server import MATCH, Running, as_jpeg, running

from streamingvlm.model.loading import StreamingModel, load_model
from streamingvlm.serving.access_policy import resolve_host
from streamingvlm.serving.server_config import ServerConfig, ServerLimits
from streamingvlm.video.reader import open_video


@pytest.fixture(scope="session")
def pitch() -> StreamingModel:
    """The embedded model."""
    return load_model("pitch")


@pytest.fixture(scope="session")
def serving(pitch):
    """Give a context manager that runs a server with these limits and other settings."""

    def start(*, limits: dict | None = None, resolve_name=resolve_host, settings: dict | None = None, **config):
        chosen = ServerLimits(**{"requests_per_s": 10_000, "burst_requests": 10_000, **(limits or {})})
        return running(pitch, ServerConfig(limits=chosen, **config), resolve_name=resolve_name, **(settings or {}))

    return start


@pytest.fixture(scope="module")
def server(serving) -> Iterator[Running]:
    """One server for the tests of a file that do not change it."""
    with serving() as running_server:
        yield running_server


@pytest.fixture(scope="session")
def match_jpegs() -> list[bytes]:
    """The first 20 s of the sample match, two frames per second."""
    with open_video(MATCH) as video:
        return [as_jpeg(frame) for _, second in zip(range(20), video, strict=False) for frame in second.frames]
