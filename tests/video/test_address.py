"""Parsing of sources, and that nothing secret in them is ever shown."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamingvlm.errors import VideoError
from streamingvlm.video.address import parse_address, redacted
from streamingvlm.video.reader import open_video

UNSUPPORTED = ["concat://a|b", "ftp://host/x", "gopher://host/x", "data://x", "subfile://x", "tcp://h:1", "udp://h:1"]
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=6, max_size=20)


@pytest.mark.parametrize(
    ("source", "kind", "target"),
    [
        ("match.mp4", "file", "match.mp4"),
        (Path("webcam"), "file", "webcam"),
        ("./-", "file", "./-"),
        ("concat:a.mp4|b.mp4", "file", "concat:a.mp4|b.mp4"),
        ("C:\\match.mp4", "file", "C:\\match.mp4"),
        ("file:///tmp/my%20match.mp4", "file", "/tmp/my match.mp4"),
        ("-", "pipe", "-"),
        ("webcam", "webcam", "0"),
        (0, "webcam", "0"),
        (2, "webcam", "2"),
        ("webcam:2", "webcam", "2"),
        ("webcam:/dev/video4", "webcam", "/dev/video4"),
        ("rtsp://host:554/stream", "rtsp", "rtsp://host:554/stream"),
        ("RTSPS://user:word@host/stream", "rtsp", "RTSPS://user:word@host/stream"),
        ("rtmp://host/live/key", "rtmp", "rtmp://host/live/key"),
        ("http://[::1]:8080/a.m3u8?x=1", "http", "http://[::1]:8080/a.m3u8?x=1"),
        ("https://host/match.mp4", "http", "https://host/match.mp4"),
    ],
)
def test_sources_parse(source, kind, target):
    address = parse_address(source)
    assert (address.kind, address.target) == (kind, target)
    assert parse_address(address.source).kind == kind


@pytest.mark.parametrize("address", UNSUPPORTED)
def test_other_schemes_are_rejected_with_a_list_of_those_supported(address):
    with pytest.raises(VideoError, match="file, rtsp, rtsps, rtmp, http, https"):
        parse_address(address)


@pytest.mark.parametrize(
    "address", ["rtsp://", "rtsp:///stream", "http://host:port/", "http://[::1/", "rtsp://a:b/c@h"]
)
def test_an_address_without_a_host_is_rejected_in_one_line(address):
    with pytest.raises(VideoError, match=r"host:port") as caught:
        parse_address(address)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["http://host/a b", "rtsp://host/\r\nCSeq: 1", "rtsp://host/\tx", "http://h/\x7f"])
def test_control_characters_and_spaces_are_rejected(address):
    with pytest.raises(VideoError, match="%20"):
        parse_address(address)


@given(user=WORDS, password=WORDS, token=WORDS)
def test_neither_password_nor_token_is_shown_whatever_their_characters(user, password, token):
    for url in (
        f"rtsp://{user}:{password}@camera.example:554/stream",
        f"https://camera.example/live.m3u8?token={token}#{password}",
        f"rtsp://{user}:{password}@camera.example/user={user}_password={password}_channel=1?token={token}",
    ):
        shown = [redacted(url)]
        try:
            address = parse_address(url)
            shown += [address.shown, address.name, repr(address)]
        except VideoError as error:
            shown += [str(error)]
        assert not [text for text in shown for word in (password, token) if word in text.replace("camera.example", "")]


def test_the_shown_address_still_identifies_the_camera():
    address = parse_address("rtsp://me:secret@camera.example:554/garden/2?token=abc")
    assert address.shown == "rtsp://***@camera.example:554/garden/2..."
    assert address.name == "rtsp-camera.example-554-garden-2"


def test_open_video_does_not_show_a_password_either():
    with pytest.raises(VideoError) as caught:
        open_video("https://me:secret@example.org/match.mp4")
    assert "secret" not in str(caught.value)
