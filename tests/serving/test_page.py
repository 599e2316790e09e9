"""The page in a real Chromium, against the real server and the embedded model."""

import json
import re
import shutil

import av
import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running_server import KEY, MATCH

from streamingvlm import StreamingSession
from streamingvlm.provenance import is_generated_text
from streamingvlm.serving.server_config import AllowedSources

pytestmark = pytest.mark.browser

PATIENCE_MS = 180_000  # for a busy machine without a GPU
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium on this machine; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser):
    """Open the page of a server; any error of the page fails the test."""
    complaints, contexts = [], []

    def open_at(url: str, **options) -> Page:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.goto(url)
        return page

    expect.set_options(timeout=PATIENCE_MS)
    yield open_at
    for context in contexts:
        context.close()
    assert [complaint for complaint in complaints if "status of 4" not in complaint] == []


def lines(page):
    return page.locator(".line")


def saved(page, name) -> str:
    with page.expect_download() as download:
        page.get_by_role("button", name=name).click()
    return download.value.path().read_text()


def nameless(page) -> list[str]:
    """Elements without a name for screen readers."""
    roles = "button|link|textbox|slider|img|dialog|group|region|log|list"
    shown = page.locator("body").aria_snapshot().splitlines()
    return [line for line in shown if re.match(rf"\s*- (?:{roles})(?! \"[^\"])(?=[: \[]|$)", line)]


def overflow_px(page) -> int:
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_a_file_is_played_asked_about_sought_in_and_exported(server, open_page):
    page = open_page(server.url, viewport={"width": 1280, "height": 800})
    expect(page.get_by_text("pitch", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="VTT")).to_be_disabled()
    page.set_input_files("#file", MATCH)
    expect(page.get_by_role("status")).to_have_text("Watching")
    expect(lines(page).nth(2)).to_be_visible()
    expect(page.locator(".caption.shown")).not_to_be_empty()

    page.get_by_label("Ask about the video").fill("Who leads?")
    page.get_by_role("button", name="Ask").click()
    expect(page.locator(".exchange .question")).to_contain_text("Who leads?")
    expect(page.locator(".exchange .answer")).to_have_text(re.compile(r"\w"))

    assert nameless(page) == []
    cache = page.get_by_role("img", name=re.compile("The cache holds .* tokens"))
    expect(cache).to_have_accessible_name(re.compile(r"\d+ s of video \d+ tokens"))
    expect(page.locator("#pace")).to_contain_text("× real time")

    expect(lines(page).nth(4)).to_be_visible()
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped")
    first = lines(page).first
    first.click()
    expect(first).to_have_attribute("aria-current", "true")
    assert page.evaluate("document.querySelector('video').currentTime") < 2
    expect(page.locator(".caption")).to_have_text(first.locator("span").inner_text())

    spoken = lines(page).locator("span").all_inner_texts()
    exports = {name: saved(page, name) for name in ("JSONL", "VTT", "SRT")}
    assert [name for name, text in exports.items() if not is_generated_text(text)] == []
    origin, *rows = [json.loads(row) for row in exports["JSONL"].splitlines()]
    assert origin["streamingvlm"] == {"model": "pitch"}
    assert [row["text"] for row in rows if row["text"]] == spoken
    assert [row["start_s"] for row in rows] == sorted({row["start_s"] for row in rows})
    vtt, srt = exports["VTT"], exports["SRT"]
    assert vtt.startswith("WEBVTT\n\nNOTE streamingvlm\n")
    assert vtt.count(" --> ") == srt.count(" --> ") == len(spoken)
    assert srt.startswith("1\n00:00:0")

    page.get_by_role("button", name="Choose another source").click()
    expect(page.get_by_role("button", name="Camera")).to_be_focused()
    expect(lines(page)).to_have_count(0)


@pytest.mark.slow
def test_the_page_says_what_the_command_says_about_the_sample_match(server, open_page):
    session = StreamingSession.from_pretrained("pitch", previous_text=MATCH.with_suffix(".txt").read_text())
    expected = {line.start_s: line.text for line in session.stream(MATCH)}
    page = open_page(server.url)
    page.get_by_role("button", name="Watch the sample match").click()
    expect(page.get_by_role("status")).to_have_text("The video has ended")
    _, *rows = map(json.loads, saved(page, "JSONL").splitlines())
    told = {row["start_s"]: row["text"] for row in rows}
    num_same = sum(told.get(start_s) == text for start_s, text in expected.items())
    print(f"{num_same} of {len(expected)} lines are those of the command")
    assert num_same >= 0.97 * len(expected) > 80


def test_the_sample_match_is_usable_by_keyboard_only(server, open_page):
    page = open_page(server.url)
    expect(page.get_by_text("pitch", exact=True)).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the question box")).to_be_focused()
    for name in ("Camera", "File", "Watch the sample match"):
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name=name)).to_be_focused()
    page.keyboard.press("Enter")
    expect(lines(page).nth(1)).to_be_visible()
    expect(page.get_by_role("button", name="Stop")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Pause")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_role("button", name="Play")).to_be_focused()
    first, second = lines(page).nth(0), lines(page).nth(1)
    first.focus()
    page.keyboard.press("ArrowDown")
    expect(second).to_be_focused()
    page.keyboard.press("Enter")
    expect(second).to_have_attribute("aria-current", "true")
    page.get_by_label("Ask about the video").focus()
    page.keyboard.type("Who leads?")
    page.keyboard.press("Enter")
    expect(page.locator(".exchange .answer")).to_have_text(re.compile(r"\w"))


def test_a_camera_works_on_a_phone(server, open_page):
    page = open_page(
        server.url, viewport={"width": 390, "height": 844}, color_scheme="dark", has_touch=True, is_mobile=True
    )
    expect(page.get_by_text("Choose a video source")).to_be_visible()
    assert overflow_px(page) == 0
    assert nameless(page) == []
    page.get_by_role("button", name="Camera").tap()
    expect(page.get_by_role("status")).to_have_text("Watching (WebRTC)")
    expect(page.locator("#fill")).to_contain_text("tokens")
    assert overflow_px(page) == 0
    assert page.evaluate("document.getElementById('ask-button').offsetHeight") >= 36
    page.get_by_role("button", name="Stop").tap()
    expect(page.get_by_role("button", name="Choose another source")).to_be_visible()


def test_a_server_with_a_key_asks_for_it_once(serving, open_page):
    with serving(api_keys=(KEY,)) as server:
        page = open_page(server.url)
        dialog = page.get_by_role("dialog", name="This server requires a key")
        expect(dialog).to_be_visible()
        page.get_by_label("Key", exact=True).fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog.get_by_role("alert")).to_have_text("This key is not valid.")
        page.get_by_label("Key", exact=True).fill(KEY)
        page.keyboard.press("Enter")
        expect(dialog).to_be_hidden()
        page.get_by_role("button", name="Watch the sample match").click()
        expect(lines(page).nth(0)).to_be_visible()
        page.reload()
        expect(page.get_by_text("pitch", exact=True)).to_be_visible()
        expect(dialog).to_be_hidden()


def test_a_video_of_the_servers_folder_is_picked(serving, open_page, tmp_path):
    (tmp_path / "games").mkdir()
    (tmp_path / "games" / "final.mp4").write_bytes(MATCH.read_bytes())
    (tmp_path / "notes.txt").touch()
    with serving(allowed=AllowedSources(folder=tmp_path)) as server:
        page = open_page(server.url, reduced_motion="reduce")  # axe measures a line that fades in as too pale
        page.get_by_role("button", name="Address").click()
        address = page.get_by_role("combobox", name="Name of a video on the server")
        expect(address).to_be_focused()
        listed = page.locator("#videos option")
        assert [option.get_attribute("value") for option in listed.all()] == ["games/final.mp4"]
        address.fill("games/final.mp4")
        page.get_by_role("button", name="Watch", exact=True).click()
        expect(lines(page).nth(1)).to_be_visible()
        assert findings(page) == []
        page.close()  # before the server, which it would go on asking


def test_what_cannot_be_watched_is_said_where_it_was_chosen(serving, open_page, tmp_path):
    with av.open(str(tmp_path / "song.mp3"), "w") as song:
        stream = song.add_stream("mp3", rate=44100, layout="mono")
        for _ in range(40):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16p", layout="mono")
            silence.rate = 44100
            song.mux(stream.encode(silence))
    with serving(allowed=AllowedSources(folder=tmp_path)) as server:
        page = open_page(server.url, viewport={"width": 1280, "height": 600})
        page.set_input_files("#file", tmp_path / "song.mp3")
        expect(page.locator("#trouble")).to_have_text("The file has no picture; choose a video.")
        page.get_by_role("button", name="Address").click()
        watch, trouble = page.get_by_role("button", name="Watch", exact=True), page.locator("#address-trouble")
        watch.click()
        expect(trouble).to_have_text("Enter an address or the name of a video.")
        for name, told in (("none.mp4", "none.mp4"), ("song.mp3", "holds audio only")):
            page.locator("#address").fill(name)
            watch.click()
            expect(trouble).to_contain_text(told)
            expect(trouble).to_be_in_viewport()
        assert lines(page).count() == 0
        page.close()


def findings(page) -> list[str]:
    """What axe-core finds against WCAG and its own best practices: rule, and the first element."""
    violations = Axe().run(page).response["violations"]
    return [f"{found['id']} ({found['impact']}): {found['nodes'][0]['html']}" for found in violations]


@pytest.mark.parametrize("colour_scheme", ["light", "dark"])
@pytest.mark.parametrize("source", ["Watch the sample match", "Camera"])
def test_axe_finds_nothing_before_while_and_after_a_video_is_watched(server, open_page, source, colour_scheme):
    page = open_page(server.url, color_scheme=colour_scheme, reduced_motion="reduce", permissions=["camera"])
    expect(page.get_by_text("pitch", exact=True)).to_be_visible()
    page.locator("summary", has_text="Options").click()
    assert findings(page) == []
    page.get_by_role("button", name=source).click()
    expect(page.get_by_role("status")).to_have_text(re.compile("Watching|Live"))
    expect(lines(page).nth(0)).to_be_visible()
    assert findings(page) == []
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_have_text("Stopped")
    assert findings(page) == []
