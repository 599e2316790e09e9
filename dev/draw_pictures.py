"""Draw the pictures of the README from the embedded model: ``python dev/draw_pictures.py``. The page needs Chromium.

docs/match.png: a goal of the embedded match. docs/demo.svg: the terminal after 30 s of it. docs/page.png: the server's
page after 40 s of it.
"""

import io
import shutil
import socket
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console

from streamingvlm import StreamingSession
from streamingvlm.cli.terminal import LiveView
from streamingvlm.model.checkpoint import EMBEDDED
from streamingvlm.video.reader import open_video

DOCS = Path(__file__).resolve().parents[1] / "docs"
MATCH = EMBEDDED["pitch"] / "match.mp4"
DEMO_S, PAGE_S, WAIT_S = 30, 40, 60
CHROMIUM_FLAGS = ["--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]


def new_session() -> StreamingSession:
    """Return a session that knows what is said before the match."""
    return StreamingSession.from_pretrained("pitch", previous_text=MATCH.with_suffix(".txt").read_text())


def draw_match(target: Path):
    """Save the frame in the middle of the second of the first goal."""
    session = new_session()
    with open_video(MATCH) as turns:
        goal = next(turn for turn in turns if session.step(turn).text.startswith("goal"))
    Image.fromarray(goal.frames[1].permute(1, 2, 0).numpy()).save(target, optimize=True)


def draw_demo(target: Path):
    """Save the terminal as the stream command leaves it."""
    # Not a terminal, so that the bar is drawn once, at the end.
    console = Console(file=io.StringIO(), record=True, width=100, force_terminal=False, color_system="truecolor")
    session = new_session()
    with open_video(MATCH) as video, LiveView(console, video.info.duration_s) as view:
        for line in takewhile(lambda line: line.end_s <= DEMO_S, session.stream(video)):
            view.show(line, session)
    console.save_svg(str(target), title="streamingvlm stream", clear=False, unique_id="demo")


def draw_page(target: Path):
    """Save the server's page while the sample match plays."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "streamingvlm", "serve", f"port={port}"])
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}")
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"http://127.0.0.1:{port}")
            page.get_by_role("button", name="Watch the sample match").click()
            while page.evaluate("document.querySelector('video').currentTime") < PAGE_S:
                page.wait_for_timeout(100)
            page.screenshot(path=target)
            browser.close()
    finally:
        server.terminate()
        server.wait()


def _wait_until_ready(url: str):
    deadline_s = time.monotonic() + WAIT_S
    while True:
        try:
            if httpx.get(f"{url}/ready").is_success:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{url} is not ready after {WAIT_S} s; start `streamingvlm serve` and read its log")
        time.sleep(0.2)


if __name__ == "__main__":
    draw_match(DOCS / "match.png")
    draw_demo(DOCS / "demo.svg")
    draw_page(DOCS / "page.png")
