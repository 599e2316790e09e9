"""A real server on loopback, and a client for it."""

import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from PIL import Image
from websockets.sync.client import ClientConnection, connect

import streamingvlm
from streamingvlm.model.loading import StreamingModel
from streamingvlm.serving.access_policy import resolve_host
from streamingvlm.serving.app import create_app
from streamingvlm.serving.jpeg import decode_jpeg
from streamingvlm.serving.server import DrainingServer, bind
from streamingvlm.serving.server_config import ServerConfig
from streamingvlm.serving.stream_pool import StreamPool
from streamingvlm.video.video_turn import VideoTurn

MATCH = Path(streamingvlm.__file__).parent / "assets" / "pitch" / "match.mp4"
KEY = "a key of more than sixteen".replace(" ", "-")
PATIENCE_S = 60
OTHER_KEY = "another key, just as long".replace(" ", "-")


@dataclass
class Running:
    """A running server and a client for it."""

    app: FastAPI
    url: str
    http: httpx.Client

    def open(self, **asked: Any) -> str:
        """Open a session; returns its id."""
        response = self.http.post("/v1/sessions", json=asked)
        assert response.status_code == 201, response.text
        return response.json()["id"]

    @contextmanager
    def socket(self, path: str, **options: Any) -> Iterator[ClientConnection]:
        with connect(self.url.replace("http", "ws") + path, **options) as socket:
            yield socket

    def lines(self, session: str, after: int = 0, **options: Any) -> tuple[list[dict], dict]:
        """All lines of a session up to its end, by WebSocket, and the end."""
        lines = []
        with self.socket(f"/v1/sessions/{session}/commentary?after={after}", **options) as socket:
            for message in map(json.loads, socket):
                if message["type"] == "line":
                    lines.append(message)
                if message["type"] == "end":
                    return lines, message
        raise AssertionError("the commentary broke off")

    def events(self, session: str, **headers: str) -> Iterator[tuple[str, str | None, dict]]:
        """Kind, id and data of server-sent events, up to the end."""
        with self.http.stream("GET", f"/v1/sessions/{session}/commentary", headers=headers) as response:
            assert response.status_code == 200, response.read()
            event: dict[str, str] = {}
            for row in response.iter_lines():
                if row:
                    name, _, value = row.partition(": ")
                    event[name] = value
                elif "data" in event:
                    yield event["event"], event.get("id"), json.loads(event["data"])
                    event = {}

    def wait_for(self, session: str, num_lines: int, headers: dict[str, str] | None = None) -> dict:
        """Wait until the session has this many lines; return it."""
        deadline_s = time.monotonic() + 120
        while (state := self.http.get(f"/v1/sessions/{session}", headers=headers).json())["num_lines"] < num_lines:
            assert time.monotonic() < deadline_s, state
            time.sleep(0.02)
        return state


@contextmanager
def running(model: StreamingModel, config: ServerConfig, *, resolve_name=resolve_host, **settings) -> Iterator[Running]:
    """Serve in a thread of this process, as the script does in its own."""
    streams = StreamPool(model, settings, **config.limits.engine_capacity)
    app = create_app(streams, config, resolve_name=resolve_name)
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
        streams.close()
        assert not run.is_alive()


class Hold:
    """Used as ``on_token``: holds the model in the middle of a turn."""

    def __init__(self):
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, _piece: str):
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)


@contextmanager
def held(server: Running, jpegs: list[bytes]) -> Iterator[None]:
    """Hold the model of a server in the middle of another stream's turn during the block."""
    hold = Hold()
    stream = server.app.state.manager.pool.open(on_token=hold)
    futures = [stream.submit(second) for second in turns_of(jpegs)]
    assert hold.begun.wait(PATIENCE_S)
    try:
        yield
    finally:
        hold.go_on.set()
        for future in futures:
            future.result(PATIENCE_S)
        stream.close()


def turns_of(jpegs: list[bytes]) -> list[VideoTurn]:
    """The turns that the server makes of JPEGs, two per turn."""
    frames = [decode_jpeg(jpeg, max_pixels=10**6) for jpeg in jpegs]
    return [VideoTurn(i, i, i + 1, torch.stack(frames[2 * i : 2 * i + 2])) for i in range(len(jpegs) // 2)]


def as_jpeg(frame) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def error_of(response: httpx.Response) -> str:
    """The one-line message of an error response."""
    message = response.json()["error"]["message"]
    assert message and "\n" not in message
    return message
