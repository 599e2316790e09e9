"""A camera by WebRTC: a real peer in this process, sending real video."""

import asyncio
import fractions
import time

import av
import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription, VideoStreamTrack
from numbered_pictures import picture, read_number
from running_server import MATCH, error_of

from streamingvlm.serving.stream_pool import StreamHandle
from streamingvlm.video.reader import open_video


class Film(VideoStreamTrack):
    """The bundled match, from its beginning."""

    def __init__(self):
        super().__init__()
        with open_video(MATCH, fps=10) as video:
            self.frames = [frame for _, second in zip(range(4), video, strict=False) for frame in second.frames]
        self.index = 0

    async def recv(self):
        await asyncio.sleep(0.1)
        rgb = self.frames[self.index % len(self.frames)].permute(1, 2, 0).numpy()
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        picture.pts, picture.time_base = self.index, fractions.Fraction(1, 10)
        self.index += 1
        return picture


class Numbers(VideoStreamTrack):
    """A camera of 25 frames/s whose pictures show their number."""

    def __init__(self):
        super().__init__()
        self.index, self.began_s = 0, time.monotonic()

    async def recv(self):
        await asyncio.sleep(self.began_s + self.index / 25 - time.monotonic())
        shown = av.VideoFrame.from_ndarray(picture(self.index, 320, 240), format="rgb24")
        shown.pts, shown.time_base = self.index, fractions.Fraction(1, 25)
        self.index += 1
        return shown


async def offer_from(peer, track=Film):
    peer.addTrack(track())
    await peer.setLocalDescription(await peer.createOffer())
    return peer.localDescription.sdp


async def film(server, session, num_lines, track=Film):
    """Send the film until so much has been said of it."""
    peer = RTCPeerConnection()
    try:
        body = {"sdp": await offer_from(peer, track)}
        answer = await asyncio.to_thread(server.http.post, f"/v1/sessions/{session}/webrtc", json=body)
        assert answer.status_code == 200, answer.text
        await peer.setRemoteDescription(RTCSessionDescription(**answer.json()))
        return await asyncio.to_thread(server.wait_for, session, num_lines)
    finally:
        await peer.close()


def test_a_camera_runs_in_real_time_and_may_reconnect(server):
    session = server.open()
    asyncio.run(film(server, session, 2))
    asyncio.run(film(server, session, 3))
    server.http.post(f"/v1/sessions/{session}/finish")
    lines, _ = server.lines(session)
    starts = [line["start_s"] for line in lines]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert "kick-off" in lines[0]["text"]


def test_the_model_sees_the_newest_frame_at_or_before_each_moment(server, monkeypatch):
    shown, submit = [], StreamHandle.submit

    def record(stream, turn, *args, **options):
        shown.extend(map(read_number, turn.frames))
        return submit(stream, turn, *args, **options)

    monkeypatch.setattr(StreamHandle, "submit", record)
    asyncio.run(film(server, server.open(), 5, Numbers))
    # Moments are half a second apart, 12 or 13 frames, wherever the first one falls.
    assert [later - number for number, later in zip(shown, shown[2:], strict=False)] == [25] * (len(shown) - 2)
    assert len(shown) >= 10


@pytest.mark.parametrize(
    "sdp", ["nonsense", "v=0\r\n", "v=0\r\nm=video x y z\r\n", "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"]
)
def test_an_invalid_offer_is_refused(server, sdp):
    session = server.open()
    response = server.http.post(f"/v1/sessions/{session}/webrtc", json={"sdp": sdp})
    assert response.status_code == 400
    assert "the offer" in error_of(response)
    assert server.http.get(f"/v1/sessions/{session}").json()["status"] == "live"


def test_deleting_the_session_closes_the_connection(server):
    session = server.open()

    async def hung_up():
        peer = RTCPeerConnection()
        answer = await asyncio.to_thread(
            server.http.post, f"/v1/sessions/{session}/webrtc", json={"sdp": await offer_from(peer)}
        )
        closed = asyncio.Event()
        peer.on("connectionstatechange", lambda: peer.connectionState in ("closed", "failed") and closed.set())
        await peer.setRemoteDescription(RTCSessionDescription(**answer.json()))
        await asyncio.to_thread(server.wait_for, session, 1)
        await asyncio.to_thread(server.http.delete, f"/v1/sessions/{session}")
        await asyncio.wait_for(closed.wait(), 60)
        await peer.close()

    asyncio.run(hung_up())
