"""A session as the frontend sees it: on one replica, or on its way to another.

The frontend keeps each pushed frame until a snapshot covers it. When the session moves to another replica, the frames
are sent again, and each listener continues after the last line that it has received.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import httpx

from streamingvlm.serving.api_errors import ApiError
from streamingvlm.serving.commentary_log import CommentaryEvent
from streamingvlm.serving.fleet.replica_client import ReplicaClient, UnreachableError
from streamingvlm.serving.server_config import ServerLimits

_RETRY_S = 0.05
_MARGIN_S = 1.0

Recheck = Callable[[ReplicaClient], Awaitable[None]]
"""Checks a replica that did not answer; starts the move of its sessions if it has failed."""


@dataclass(eq=False)
class PendingFrame:
    """A JPEG that no snapshot covers yet. is_accepted: True if a replica has used it."""

    time_s: float
    jpeg: bytes
    is_accepted: bool = False


class RemoteSession:
    """The interface of a session that the routes for frames and commentary use, forwarded to its replica.

    client: its replica, None if it has none yet; saved_s: stream time up to which it is stored.
    """

    def __init__(
        self,
        session_id: str,
        owner: str,
        is_pushed: bool,
        limits: ServerLimits,
        recheck: Recheck,
        client: ReplicaClient | None,
        saved_s: float = 0.0,
    ):
        self.id, self.owner, self.is_pushed = session_id, owner, is_pushed
        self.client = client
        self.log = RemoteLog(self, recheck)
        self.is_live = True
        self.has_finished = False
        self._limits, self._recheck = limits, recheck
        self._failure: str | None = None  # why it cannot be resumed
        self._is_placed = asyncio.Event()  # cleared while it moves
        self._is_placed.set()
        self._push_lock = asyncio.Lock()
        self._frames: deque[PendingFrame] = deque()
        self._start_s, self._first_frame_at_s = saved_s, None
        self._tasks: set[asyncio.Task] = set()

    @property
    def path(self) -> str:
        """Return its path on any replica."""
        return f"/v1/sessions/{self.id}"

    async def replica(self, timeout_s: float | None) -> ReplicaClient:
        """Return its replica, after a move in progress is complete. Raises ApiError if it is lost, or on timeout."""
        try:
            await asyncio.wait_for(self._is_placed.wait(), timeout_s)
        except TimeoutError:
            raise ApiError(503, "the session is being moved to another replica; try again", retry_after_s=2) from None
        if self._failure is not None:
            raise ApiError(410, f"the session is lost: {self._failure}; open another")
        return self.client

    async def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Send a request to its replica, and again to the next one if the first fails. Raises ApiError."""
        while True:
            client = await self.replica(self._limits.request_s)
            try:
                return await client.request(method, path, self.owner, **content)
            except UnreachableError:
                await self._recheck(client)

    def check_takes_frames(self):
        """Raise ApiError if no frame can be pushed."""
        if not self.is_pushed:
            raise ApiError(409, "this session has a source of its own; open one with source push to send frames")

    async def push_jpeg(self, data: bytes, time_s: float | None, *, may_wait: bool) -> bool:
        """Push a JPEG and return True if it is used; it is kept until a snapshot covers it.

        time_s: stream time; None for the time of arrival, counted from the first frame. may_wait: under the policy
        ``wait``, wait for room. Raises ApiError.
        """
        async with self._push_lock:
            frame = PendingFrame(self._clock_s() if time_s is None else time_s, data)
            self._keep(frame)
            try:
                await self._send(frame, may_wait)
            except BaseException:
                self._forget(frame)
                raise
            if not frame.is_accepted:
                self._forget(frame)
            return frame.is_accepted

    def finish(self):
        """Accept no more frames; the frames that were pushed are still processed."""
        self.has_finished = True
        task = asyncio.create_task(self._finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def begin_move(self):
        """Hold requests back: its replica is leaving or has failed."""
        self._is_placed.clear()

    async def complete_move(self, client: ReplicaClient, saved_s: float):
        """Send the pending frames to the new replica, and release the requests that were held back.

        saved_s: stream time at which the new replica continues. Raises UnreachableError.
        """
        if self._first_frame_at_s is None:
            self._start_s = saved_s
        for frame in list(self._frames):
            while (await self._post(client, frame)).status_code == 503:
                await asyncio.sleep(_RETRY_S)
        if self.has_finished:
            await client.request("POST", f"{self.path}/finish", self.owner)
        self.client = client
        self._is_placed.set()

    def fail(self, reason: str):
        """Mark the session as lost; every later request raises ApiError with the reason."""
        self._failure, self.is_live = reason, False
        self._frames.clear()
        self._is_placed.set()

    def update(self, reported: dict[str, Any]):
        """Apply a report of its replica: drop the frames that a snapshot covers."""
        self.is_live = reported["is_live"]
        while self._frames and (not self.is_live or self._frames[0].time_s < reported["saved_s"] - _MARGIN_S):
            self._frames.popleft()

    async def _send(self, frame: PendingFrame, may_wait: bool):
        while True:
            client = await self.replica(self._limits.request_s)
            try:
                response = await self._post(client, frame)
            except UnreachableError:
                await self._recheck(client)
                continue
            if response.status_code == 202:
                return
            if response.status_code != 503:
                raise replica_error(response)
            if may_wait:
                await asyncio.sleep(_RETRY_S)
                continue
            await self._recheck(client)  # a leaving replica answers 503, too
            if not client.is_leaving:
                raise replica_error(response)

    async def _post(self, client: ReplicaClient, frame: PendingFrame) -> httpx.Response:
        response = await client.request(
            "POST", f"{self.path}/frames", self.owner, params={"time_s": frame.time_s}, content=frame.jpeg
        )
        if response.status_code == 202:
            frame.is_accepted = response.json()["accepted"] or frame.is_accepted
        return response

    async def _finish(self):
        await self.request("POST", f"{self.path}/finish")

    def _keep(self, frame: PendingFrame):
        self._frames.append(frame)
        while sum(len(kept.jpeg) for kept in self._frames) > self._limits.max_waiting_bytes:
            self._frames.popleft()

    def _forget(self, frame: PendingFrame):
        if frame in self._frames:
            self._frames.remove(frame)

    def _clock_s(self) -> float:
        now_s = time.monotonic()
        self._first_frame_at_s = self._first_frame_at_s or now_s
        return self._start_s + now_s - self._first_frame_at_s


class RemoteLog:
    """The commentary of a session, read from its replica."""

    def __init__(self, session: RemoteSession, recheck: Recheck):
        self._session, self._recheck = session, recheck
        self.num_listeners = 0

    async def follow(self, after: int) -> AsyncIterator[CommentaryEvent]:
        """Yield the lines after number ``after`` and the other events, until the end, across moves of the session."""
        self.num_listeners += 1
        try:
            while True:
                client = await self._session.replica(timeout_s=None)
                path = f"{self._session.path}/commentary?after={after}"
                try:
                    async with client.websocket(path, self._session.owner) as messages:
                        async for message in messages:
                            event = _parse_event(message)
                            after = _last_id(event, after)
                            yield event
                            if event.kind == "end":
                                return
                except UnreachableError:
                    pass
                await self._recheck(client)
        except ApiError as error:
            yield CommentaryEvent("end", {"reason": error.detail, "last_id": after})
        finally:
            self.num_listeners -= 1


def replica_error(response: httpx.Response) -> ApiError:
    """Return the error response of a replica as an ApiError."""
    wait_s = response.headers.get("retry-after")
    retry_after_s = None if wait_s is None else float(wait_s)
    return ApiError(response.status_code, error_message(response), retry_after_s=retry_after_s)


def error_message(response: httpx.Response) -> str:
    """Return the message of an error response."""
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"the replica answered with status {response.status_code}"


def _parse_event(message: str | bytes) -> CommentaryEvent:
    data = json.loads(message)
    return CommentaryEvent(data.pop("type"), data, data.get("id"))


def _last_id(event: CommentaryEvent, before: int) -> int:
    """Return the number of the last line that the listener has received or missed."""
    if event.kind == "gap":
        return event.data["next_id"] - 1
    return event.id if event.kind == "line" else before
