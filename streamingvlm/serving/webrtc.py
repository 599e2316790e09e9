"""Frames from a browser's camera by WebRTC: one connection per session; a new one replaces the old."""

import asyncio
import logging
import time
from functools import partial
from typing import Any

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from streamingvlm.errors import StreamingVLMError
from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.jpeg import frame_from_rgb
from streamingvlm.serving.served_session import ServedSession
from streamingvlm.video.live.live_clock import LiveClock

log = logging.getLogger(__name__)

_TRACK_TIMEOUT_S = 20.0
"""A track without a frame for this time is considered lost, even if its connection was not closed."""


class WebRTCPeers:
    """The WebRTC connections of a server."""

    def __init__(self, ice_servers: tuple[str, ...]):
        self._configuration = RTCConfiguration([RTCIceServer(urls=url) for url in ice_servers])
        self._peers: dict[str, RTCPeerConnection] = {}
        self._tasks: set[asyncio.Task] = set()

    async def answer(self, session: ServedSession, sdp: str) -> dict[str, str]:
        """Answer a browser's offer, and push the frames of its camera to the session. Raises ApiError."""
        session.check_takes_frames()
        await self.disconnect(session.id)
        peer = RTCPeerConnection(self._configuration)
        self._peers[session.id] = peer
        peer.on("track", partial(self._on_track, session, peer))
        try:
            await peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            if not any(line.kind == "video" for line in peer.getTransceivers()):
                raise ApiError(400, "the offer has no video; add the camera's track before making it")
            await peer.setLocalDescription(await peer.createAnswer())
        except ApiError:
            await self.disconnect(session.id)
            raise
        except Exception as error:  # noqa: BLE001 - aiortc's parser raises errors of many types
            await self.disconnect(session.id)
            log.info("invalid WebRTC offer", extra={"session": session.id, "reason": repr(error)})
            raise ApiError(400, "the offer cannot be read; send the browser's offer unchanged") from None
        return {"type": "answer", "sdp": peer.localDescription.sdp}

    async def disconnect(self, session_id: str):
        """Close a session's connection, if it has one."""
        peer = self._peers.pop(session_id, None)
        if peer is not None:
            await peer.close()

    async def close(self):
        """Close all connections."""
        for session_id in list(self._peers):
            await self.disconnect(session_id)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_track(self, session: ServedSession, peer: RTCPeerConnection, track: MediaStreamTrack):
        if track.kind == "video":
            task = asyncio.get_running_loop().create_task(self._push_frames(session, peer, track))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _push_frames(self, session: ServedSession, peer: RTCPeerConnection, track: MediaStreamTrack):
        """Push frames at their own times, which have no jitter, counted from the arrival of the first one."""
        clock, first_s = LiveClock(), None
        try:
            while session.is_live:
                frame = await asyncio.wait_for(track.recv(), _TRACK_TIMEOUT_S)
                session.check_size(frame.width, frame.height)
                first_s = session.clock_s() if first_s is None else first_s
                time_s = first_s + clock.to_stream_time(frame.time, time.monotonic())
                await session.push(partial(_to_tensor, frame), time_s, may_wait=False)
        except (MediaStreamError, TimeoutError):
            log.info("camera disconnected", extra={"session": session.id})
        except (ApiError, StreamingVLMError) as error:
            log.info("camera closed", extra={"session": session.id, "reason": str(error)})
        finally:
            if self._peers.get(session.id) is peer:
                await self.disconnect(session.id)


def _to_tensor(frame: Any):
    return frame_from_rgb(frame.to_ndarray(format="rgb24"))
