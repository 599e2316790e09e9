"""A session as the front has it: wherever its replica is, and wherever it goes on when that one is no more.

The front keeps the pushed frames that no snapshot holds yet. When the session is taken up by another replica, they are
sent anew, and the commentary is listened to from the last line that each listener was told.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx

from streamingvlm.serving.commentary import Event
from streamingvlm.serving.fleet.link import Link, UnreachableError
from streamingvlm.serving.refusals import Refusal

if TYPE_CHECKING:
    from streamingvlm.serving.fleet.fleet import Fleet

_AGAIN_S = 0.05
_MARGIN_S = 1.0


@dataclass(eq=False)
class Frame:
    """A JPEG on its way to the model. is_taken: whether a replica had use for it."""

    time_s: float
    jpeg: bytes
    is_taken: bool = False


class RemoteSession:
    """What the routes for frames and commentary need of a session, done by the replica that has it."""

    def __init__(
        self, session_id: str, owner: str, is_pushed: bool, fleet: "Fleet", link: Link | None, kept_s: float = 0.0
    ):
        self.id, self.owner, self.is_pushed = session_id, owner, is_pushed
        self.link = link
        self.log = RemoteLog(self, fleet)
        self.is_live = True
        self.has_finished = False
        self._fleet = fleet
        self._lost: str | None = None  # why it cannot go on
        self._settled = asyncio.Event()
        self._settled.set()
        self._pushing = asyncio.Lock()
        self._frames: deque[Frame] = deque()
        self._began_s, self._first_frame_s = kept_s, None
        self._tasks: set[asyncio.Task] = set()

    @property
    def path(self) -> str:
        """Where it is on any replica."""
        return f"/v1/sessions/{self.id}"

    async def place(self, within_s: float | None) -> Link:
        """The replica that has it, once one has it. Raises Refusal where it is lost, or is being moved for too long."""
        try:
            await asyncio.wait_for(self._settled.wait(), within_s)
        except TimeoutError:
            raise Refusal(503, "the session is being moved to another replica; try again", retry_after_s=2) from None
        if self._lost is not None:
            raise Refusal(410, f"the session is lost: {self._lost}; open another")
        return self.link

    async def request(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Ask the replica that has it, and the next one where that is gone before it has answered. Raises Refusal."""
        while True:
            link = await self.place(self._fleet.config.limits.request_s)
            try:
                return await link.request(method, path, self.owner, **content)
            except UnreachableError:
                await self._fleet.doubt(link)

    def check_takes_frames(self):
        """Raise Refusal where no frame can be pushed."""
        if not self.is_pushed:
            raise Refusal(409, "this session watches a source of its own; open one with source push to send frames")

    async def push_jpeg(self, data: bytes, time_s: float | None, *, may_wait: bool) -> bool:
        """Have the replica take a picture, and remember it until a snapshot holds what was seen in it.

        time_s: its stream time; None for now, the first frame being at 0. May_wait: under the policy ``wait``, take it
        once there is room. Raises Refusal.
        """
        async with self._pushing:
            frame = Frame(self._clock_s() if time_s is None else time_s, data)
            self._remember(frame)
            try:
                await self._send(frame, may_wait)
            except BaseException:
                self._forget(frame)
                raise
            if not frame.is_taken:
                self._forget(frame)
            return frame.is_taken

    def finish(self):
        """Nothing more is fed; what came is still spoken of."""
        self.has_finished = True
        task = asyncio.create_task(self._finish())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def unsettle(self):
        """Its replica leaves or is gone: have what is asked of it wait."""
        self._settled.clear()

    async def settle(self, link: Link, kept_s: float):
        """Go on at another replica, with the frames that the one before has not spoken of.

        kept_s: stream time from which it goes on. Raises UnreachableError.
        """
        if self._first_frame_s is None:
            self._began_s = kept_s
        for frame in list(self._frames):
            while (await self._post(link, frame)).status_code == 503:
                await asyncio.sleep(_AGAIN_S)
        if self.has_finished:
            await link.request("POST", f"{self.path}/finish", self.owner)
        self.link = link
        self._settled.set()

    def lose(self, why: str):
        """It cannot go on; whoever asks is told why."""
        self._lost, self.is_live = why, False
        self._frames.clear()
        self._settled.set()

    def note(self, reported: dict[str, Any]):
        """What its replica says of it."""
        self.is_live = reported["is_live"]
        while self._frames and (not self.is_live or self._frames[0].time_s < reported["kept_s"] - _MARGIN_S):
            self._frames.popleft()

    async def _send(self, frame: Frame, may_wait: bool):
        while True:
            link = await self.place(self._fleet.config.limits.request_s)
            try:
                response = await self._post(link, frame)
            except UnreachableError:
                await self._fleet.doubt(link)
                continue
            if response.status_code == 202:
                return
            if response.status_code != 503:
                raise refused_there(response)
            if may_wait:
                await asyncio.sleep(_AGAIN_S)
                continue
            await self._fleet.doubt(link)  # one that leaves has no room, either
            if not link.is_leaving:
                raise refused_there(response)

    async def _post(self, link: Link, frame: Frame) -> httpx.Response:
        response = await link.request(
            "POST", f"{self.path}/frames", self.owner, params={"time_s": frame.time_s}, content=frame.jpeg
        )
        if response.status_code == 202:
            frame.is_taken = response.json()["taken"] or frame.is_taken
        return response

    async def _finish(self):
        await self.request("POST", f"{self.path}/finish")

    def _remember(self, frame: Frame):
        self._frames.append(frame)
        while sum(len(kept.jpeg) for kept in self._frames) > self._fleet.config.limits.max_waiting_bytes:
            self._frames.popleft()

    def _forget(self, frame: Frame):
        if frame in self._frames:
            self._frames.remove(frame)

    def _clock_s(self) -> float:
        now_s = time.monotonic()
        self._first_frame_s = self._first_frame_s or now_s
        return self._began_s + now_s - self._first_frame_s


class RemoteLog:
    """The commentary of a session, from whichever replica has it."""

    def __init__(self, session: RemoteSession, fleet: "Fleet"):
        self._session, self._fleet = session, fleet
        self.num_listeners = 0

    async def follow(self, after: int) -> AsyncIterator[Event]:
        """Yield the lines after number ``after``, and whatever else is to tell, until the end."""
        self.num_listeners += 1
        try:
            while True:
                link = await self._session.place(within_s=None)
                path = f"{self._session.path}/commentary?after={after}"
                try:
                    async with link.socket(path, self._session.owner) as told:
                        async for message in told:
                            event = _event(message)
                            after = _last_id(event, after)
                            yield event
                            if event.kind == "end":
                                return
                except UnreachableError:
                    pass
                await self._fleet.doubt(link)
        except Refusal as refusal:
            yield Event("end", {"reason": refusal.detail, "last_id": after})
        finally:
            self.num_listeners -= 1


def refused_there(response: httpx.Response) -> Refusal:
    """What a replica refused, to be refused likewise."""
    wait_s = response.headers.get("retry-after")
    return Refusal(response.status_code, error_of(response), retry_after_s=None if wait_s is None else float(wait_s))


def error_of(response: httpx.Response) -> str:
    """The line that a refusal has."""
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"its replica answered {response.status_code}"


def _event(message: str | bytes) -> Event:
    data = json.loads(message)
    return Event(data.pop("type"), data, data.get("id"))


def _last_id(event: Event, before: int) -> int:
    """The number of the last line that a listener needs no more."""
    if event.kind == "gap":
        return event.data["next_id"] - 1
    return event.id if event.kind == "line" else before
