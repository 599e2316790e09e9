"""Frames from a browser's camera by WebRTC: one connection a session, the newest takes the place of the one before."""

import asyncio
import logging
from functools import partial
from typing import Any

from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from streamingvlm.errors import StreamingVLMError
from streamingvlm.serving.pictures import frame_of
from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.sessions import LiveSession

log = logging.getLogger(__name__)

_GATHER_S = 10.0
_SILENT_S = 20.0
"""A track that gives no picture for so long has gone, even where nobody said so."""


class Cameras:
    """The WebRTC connections of a server."""

    def __init__(self, ice_servers: tuple[str, ...]):
        self._configuration = RTCConfiguration([RTCIceServer(urls=url) for url in ice_servers])
        self._peers: dict[str, RTCPeerConnection] = {}
        self._tasks: set[asyncio.Task] = set()

    async def answer(self, session: LiveSession, sdp: str) -> dict[str, str]:
        """Answer a browser's offer; its camera is watched from then on. Raises Refusal."""
        session.check_takes_frames()
        await self.hang_up(session.id)
        peer = RTCPeerConnection(self._configuration)
        self._peers[session.id] = peer
        peer.on("track", partial(self._take_track, session, peer))
        try:
            await peer.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            if not any(line.kind == "video" for line in peer.getTransceivers()):
                raise Refusal(400, "the offer has no video; add the camera's track before making it")
            await peer.setLocalDescription(await peer.createAnswer())
        except Refusal:
            await self.hang_up(session.id)
            raise
        except Exception as error:  # noqa: BLE001 - the library raises whatever its parser stumbled on
            await self.hang_up(session.id)
            log.info("an offer cannot be read", extra={"session": session.id, "reason": repr(error)})
            raise Refusal(400, "the offer cannot be read; send a browser's own, as it is") from None
        return {"type": "answer", "sdp": peer.localDescription.sdp}

    async def hang_up(self, session_id: str):
        """Close a session's connection, where there is one."""
        peer = self._peers.pop(session_id, None)
        if peer is not None:
            await peer.close()

    async def close(self):
        """Close all connections."""
        for session_id in list(self._peers):
            await self.hang_up(session_id)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take_track(self, session: LiveSession, peer: RTCPeerConnection, track: MediaStreamTrack):
        if track.kind == "video":
            task = asyncio.get_running_loop().create_task(self._watch(session, peer, track))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _watch(self, session: LiveSession, peer: RTCPeerConnection, track: MediaStreamTrack):
        """Push the pictures of a camera as they come; their own stamps begin anew with each connection."""
        try:
            while session.is_live:
                picture = await asyncio.wait_for(track.recv(), _SILENT_S)
                await session.push(partial(_to_frame, picture), None, may_wait=False)
        except (MediaStreamError, TimeoutError):
            log.info("a camera has gone", extra={"session": session.id})
        except (Refusal, StreamingVLMError) as error:
            log.info("a camera is let go", extra={"session": session.id, "reason": str(error)})
        finally:
            if self._peers.get(session.id) is peer:
                await self.hang_up(session.id)


def _to_frame(picture: Any):
    return frame_of(picture.to_ndarray(format="rgb24"))
