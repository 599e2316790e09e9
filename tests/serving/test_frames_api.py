"""Frames pushed as JPEG: the lines are those of the model itself, and invalid frames do no harm."""

import contextlib
import io
import json
import math
import struct
import time
from itertools import islice

import pytest
from PIL import Image
from running_server import MATCH, as_jpeg, error_of, turns_of
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from streamingvlm import StreamingSession
from streamingvlm.serving.jpeg import decode_jpeg
from streamingvlm.video.reader import open_video


def at(time_s, jpeg):
    return struct.pack(">d", time_s) + jpeg


def jpeg_of(width, height, **options):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "green").save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def expected(pitch, match_jpegs):
    """What the embedded model itself says of the first ten seconds."""
    session = StreamingSession(pitch)
    return [session.step(second).text for second in turns_of(match_jpegs[:20])]


def test_frames_by_socket_give_the_models_own_lines(server, match_jpegs, expected):
    session = server.open(lag="wait")
    with server.socket(f"/v1/sessions/{session}/frames") as socket:
        for index, jpeg in enumerate(match_jpegs[:20]):
            socket.send(at(index / 2, jpeg))
        socket.send(json.dumps({"type": "finish"}))
        lines, end = server.lines(session)
    assert [line["text"] for line in lines] == expected
    assert any(expected)
    assert end["reason"] == "finished"
    assert all(line["age_s"] > 0 for line in lines)


@pytest.fixture(scope="module")
def quick_server(serving):
    """A server that takes frames faster than a camera sends them, where others would drop them beyond their limit."""
    with serving(limits={"max_frames_per_s": 10_000}) as running_server:
        yield running_server


@pytest.mark.parametrize("fps", [8, 12, 24])
@pytest.mark.parametrize("lag", ["wait", "drop"])
@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_frames_at_any_rate_give_the_lines_of_the_file(quick_server, pitch, fps, lag, seconds):
    server = quick_server
    with open_video(MATCH) as video:
        file_session = StreamingSession(pitch)
        of_file = [file_session.step(turn).text for turn in islice(video, seconds)]
    session = server.open(lag=lag)
    with open_video(MATCH, fps=fps) as video, server.socket(f"/v1/sessions/{session}/frames") as socket:
        for second, turn in enumerate(islice(video, seconds)):
            for index, frame in enumerate(turn.frames):
                socket.send(at(second + index / fps, as_jpeg(frame)))
            server.wait_for(session, second)  # the model keeps up: nothing is dropped
        socket.send(json.dumps({"type": "finish"}))
        lines, _ = server.lines(session)
    assert 'outcome="rate_limited"' not in server.http.get("/metrics").text
    assert [line["start_s"] for line in lines] == list(range(len(of_file)))
    same = sum(line["text"] == text for line, text in zip(lines, of_file, strict=True))
    assert same >= 0.97 * len(of_file)
    assert any(of_file)


def test_frames_by_request_give_the_models_own_lines(server, match_jpegs, expected):
    session = server.open(lag="wait")
    path = f"/v1/sessions/{session}/frames"
    for index, jpeg in enumerate(match_jpegs[:20]):
        while (response := server.http.post(path, content=jpeg, params={"time_s": index / 2})).status_code == 503:
            assert response.headers["Retry-After"] == "1"
            time.sleep(0.05)
        assert response.json() == {"object": "frame", "accepted": True}
    server.http.post(f"/v1/sessions/{session}/finish")
    assert [line["text"] for line in server.lines(session)[0]] == expected


def test_a_late_frame_is_not_accepted(server, match_jpegs):
    path = f"/v1/sessions/{server.open()}/frames"
    for time_s, accepted in ((4.0, True), (4.0, False), (2.0, False), (4.1, True)):
        response = server.http.post(path, content=match_jpegs[0], params={"time_s": time_s})
        assert response.json()["accepted"] is accepted


def test_frames_without_a_time_get_their_time_of_arrival(server, match_jpegs):
    session = server.open()
    with server.socket(f"/v1/sessions/{session}/frames") as socket:
        for jpeg in match_jpegs[:4]:
            socket.send(jpeg)
            time.sleep(0.5)
        server.wait_for(session, 1)
        socket.send(json.dumps({"type": "finish"}))
        lines, _ = server.lines(session)
    assert lines[0]["start_s"] == 0
    assert lines[-1]["end_s"] <= 3


def test_the_newest_frame_can_be_fetched(server, match_jpegs):
    session = server.open()
    assert server.http.get(f"/v1/sessions/{session}/frame").status_code == 404
    for index, jpeg in enumerate(match_jpegs[:2]):
        server.http.post(f"/v1/sessions/{session}/frames", content=jpeg, params={"time_s": index / 2})
    server.wait_for(session, 1)
    response = server.http.get(f"/v1/sessions/{session}/frame")
    assert response.headers["content-type"] == "image/jpeg"
    shown = decode_jpeg(response.content, max_pixels=10**6).float()
    assert (shown - decode_jpeg(match_jpegs[1], max_pixels=10**6).float()).abs().mean() < 10


BAD = {
    "nothing": b"",
    "text": b"hello",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "a header alone": jpeg_of(64, 64)[:20],
    "cut off": jpeg_of(64, 64)[:300],
    "wrong bytes": b"\xff\xd8\xff" + bytes(5000),
    "too many pixels": jpeg_of(3000, 3000),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_an_invalid_frame_is_reported_in_one_line(serving, data):
    with serving(limits={"max_frame_pixels": 4_000_000}) as server:
        session = server.open()
        response = server.http.post(f"/v1/sessions/{session}/frames", content=data)
        assert response.status_code == 400
        assert "frame" in error_of(response)
        with server.socket(f"/v1/sessions/{session}/frames") as socket:
            socket.send(data if len(data) < 8 else at(1.0, data))
            assert "frame" in json.loads(socket.recv(timeout=30))["message"]
            socket.send(at(1.0, jpeg_of(64, 64)))
            socket.send(at(1.5, jpeg_of(64, 64)))
        server.wait_for(session, 1)


def test_a_client_that_sends_only_bad_frames_is_disconnected(server):
    session = server.open()
    with server.socket(f"/v1/sessions/{session}/frames") as socket:
        for _ in range(10):
            socket.send(b"hello, world")
        messages = [json.loads(message) for message in iter_until_closed(socket)]
    assert [message["type"] for message in messages] == ["error"] * 10
    assert socket.close_code == 1008
    assert server.http.get(f"/v1/sessions/{session}").json()["status"] == "live"


def iter_until_closed(socket):
    with contextlib.suppress(ConnectionClosedError):
        yield from socket


@pytest.mark.parametrize("time_s", [math.nan, math.inf, -1.0, 1e12])
def test_an_invalid_time_is_refused(server, match_jpegs, time_s):
    session = server.open()
    response = server.http.post(
        f"/v1/sessions/{session}/frames", content=match_jpegs[0], params={"time_s": str(time_s)}
    )
    assert response.status_code == 400
    assert "time_s" in error_of(response)
    with server.socket(f"/v1/sessions/{session}/frames") as socket:
        socket.send(at(time_s, match_jpegs[0]))
        assert "time_s" in json.loads(socket.recv(timeout=30))["message"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"type": "dance"}', "[" * 60_000])
def test_an_invalid_text_message_is_reported(server, text):
    with server.socket(f"/v1/sessions/{server.open()}/frames") as socket:
        socket.send(text)
        assert "neither a frame nor" in json.loads(socket.recv(timeout=30))["message"]


def test_a_message_beyond_the_limit_ends_the_socket_and_not_the_session(serving, match_jpegs):
    with serving(limits={"max_frame_bytes": 20_000}) as server:
        session = server.open()
        with server.socket(f"/v1/sessions/{session}/frames") as socket:
            socket.send(bytes(30_000))
            assert list(iter_until_closed(socket)) == []
        assert socket.close_code == 1009
        assert server.http.get(f"/v1/sessions/{session}").json()["status"] == "live"


def test_frames_beyond_the_rate_are_dropped(serving, match_jpegs):
    with serving(limits={"max_frames_per_s": 2}) as server:
        session = server.open()
        with server.socket(f"/v1/sessions/{session}/frames") as socket:
            for index in range(20):
                socket.send(at(index / 2, match_jpegs[index]))
            socket.send(json.dumps({"type": "finish"}))
            server.lines(session)
        assert 'streamingvlm_frames_total{outcome="rate_limited"}' in server.http.get("/metrics").text


def test_a_lost_connection_does_not_end_the_session(server, match_jpegs):
    session = server.open(lag="wait")
    with server.socket(f"/v1/sessions/{session}/frames") as socket:
        for index in range(4):
            socket.send(at(index / 2, match_jpegs[index]))
        server.wait_for(session, 1)
        socket.socket.close()
    with server.socket(f"/v1/sessions/{session}/frames") as socket:
        for index in range(4, 8):
            socket.send(at(index / 2, match_jpegs[index]))
        socket.send(json.dumps({"type": "finish"}))
        assert [line["start_s"] for line in server.lines(session)[0]] == [0, 1, 2, 3]


def test_frames_for_an_unknown_or_ended_session_are_refused(server, match_jpegs):
    with pytest.raises(InvalidStatus, match="404"), server.socket("/v1/sessions/ses_none/frames"):
        pass
    session = server.open()
    server.http.delete(f"/v1/sessions/{session}")
    server.lines(session)
    response = server.http.post(f"/v1/sessions/{session}/frames", content=match_jpegs[0])
    assert response.status_code == 409
    assert "has ended (deleted)" in error_of(response)
