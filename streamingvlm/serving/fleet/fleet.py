"""All replicas and all their sessions, as the front has them: where a session begins, and where it goes on.

Each replica is looked at a few times a second. One that leaves says so, lets its sessions come to rest after the turn
that they are in, and goes; one that dies is just gone. Either way its connections are refused from then on, and its
sessions are taken up by others from what it kept: there is one way to move, and it is tried out with every kill.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from streamingvlm.serving.config import ServerConfig
from streamingvlm.serving.fleet.kept import KeptAsked
from streamingvlm.serving.fleet.link import Address, Link, UnreachableError, read
from streamingvlm.serving.fleet.remote import RemoteSession, error_of, refused_there
from streamingvlm.serving.fleet.replica import REPORT_PATH
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.refusals import Refusal
from streamingvlm.serving.requests import SessionAsked
from streamingvlm.serving.sessions import new_id

log = logging.getLogger(__name__)

_LOOK_S, _FIND_S = 0.25, 1.0
_AGAIN_S = 0.1
_SILENT_S = 10.0
"""A replica that is connected to and says nothing for so long is given up; should it wake, its saves are refused."""

_NO_ROOM = (429, 503)
_SHUTTING_DOWN = "the server is shutting down"

Find = Callable[[], Awaitable[Iterable[Address]]]


class Fleet:
    """The replicas and the sessions on them.

    find: tells which replicas there are; secret: lets the front in at each of them.
    left: sessions that were kept before there was this front, to go on with.
    """

    def __init__(self, config: ServerConfig, metrics: Metrics, find: Find, secret: str, left: Iterable[KeptAsked] = ()):
        self.config, self.metrics = config, metrics
        self.is_draining = False
        self._find, self._secret, self._left = find, secret, left
        self._links: dict[str, Link] = {}
        self._gone: set[str] = set()
        self._sessions: dict[str, RemoteSession] = {}
        self._tasks: set[asyncio.Task] = set()

    @property
    def is_ready(self) -> bool:
        """Whether a session could be opened, limits aside."""
        return not self.is_draining and any(link.is_ready for link in self._links.values())

    @property
    def links(self) -> list[Link]:
        """The replicas that can be asked, those with the fewest sessions first."""
        return sorted((link for link in self._links.values() if link.is_ready), key=self._load)

    def of(self, owner: str) -> list[RemoteSession]:
        """The sessions of an owner, oldest first."""
        return [session for session in self._sessions.values() if session.owner == owner]

    def find(self, session_id: str, owner: str) -> RemoteSession:
        """The session of this id. Raises Refusal, the same for one that is not there and one of somebody else."""
        session = self._sessions.get(session_id)
        if session is None or session.owner != owner:
            raise Refusal(404, "there is no such session; it may have ended and been forgotten")
        return session

    async def open(self, asked: SessionAsked, owner: str) -> dict[str, Any]:
        """Open a session where there is room, and return it as its replica shows it. Raises Refusal."""
        if self.is_draining:
            raise Refusal(503, f"{_SHUTTING_DOWN}; ask another", retry_after_s=10)
        kept = KeptAsked(id=new_id(), owner=owner, **asked.model_dump(exclude_none=True))
        path, content = f"{REPORT_PATH}/sessions", kept.model_dump(mode="json", exclude_none=True)
        async with self.anywhere("POST", path, owner, json=content) as (link, response):
            try:
                await read(response)
            except UnreachableError:
                raise Refusal(503, "the replica has gone before it had the session; try again") from None
            if response.status_code != 201:
                raise refused_there(response)
            is_pushed = asked.source.push
            self._sessions[kept.id] = RemoteSession(kept.id, owner, is_pushed, self, link)
        log.info("session opened", extra={"session": kept.id, "owner": owner, "replica": link.address.id})
        return response.json()

    @asynccontextmanager
    async def anywhere(
        self, method: str, path: str, owner: str, **content: Any
    ) -> AsyncIterator[tuple[Link, httpx.Response]]:
        """Ask one replica after another until one has room, and have its answer as it comes. Raises Refusal."""
        refused = None
        for link in self.links:
            link.num_asked += 1
            try:
                async with link.answer(method, path, owner, **content) as response:
                    if response.status_code not in _NO_ROOM:
                        yield link, response
                        return
                    await read(response)
                    refused = refused_there(response)
            except UnreachableError:
                await self.doubt(link)
            finally:
                link.num_asked -= 1
        raise refused or Refusal(503, "no replica is ready; try again", retry_after_s=5)

    async def doubt(self, link: Link):
        """A replica did not answer as it should: look at it now, and give what follows from it a moment."""
        await self._look(link)
        await asyncio.sleep(_AGAIN_S)

    async def run(self):
        """Look at the replicas for as long as the front runs."""
        for asked in self._left:
            self._sessions[asked.id] = RemoteSession(asked.id, asked.owner, asked.source.push, self, None)
            self._begin_to_move(self._sessions[asked.id])
        # To find new ones may take long when one of those that there are has just died: the others are not to wait.
        await asyncio.gather(_again_and_again(self._find_new, _FIND_S), _again_and_again(self._look_around, _LOOK_S))

    async def begin(self):
        """Find the replicas and look at each."""
        await self._find_new()
        await self._look_around()

    async def drain(self):
        """Open no session any more; let those that there are speak of what they have, within the limit."""
        self.is_draining = True
        deadline_s = time.monotonic() + self.config.limits.drain_s
        live = [session for session in self._sessions.values() if session.is_live]
        log.info("draining", extra={"num_sessions": len(live)})
        for session in live:
            session.finish()
        while any(session.is_live or session.log.num_listeners for session in live) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.05)

    async def close(self):
        """Let go of everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in self._links.values():
            await link.close()

    async def _find_new(self):
        for address in await self._find():
            if address.id not in self._links and address.id not in self._gone:
                log.info("a replica has come", extra={"replica": address.id, "url": address.url, "pid": address.pid})
                self._links[address.id] = Link(address, self._secret)

    async def _look_around(self):
        await asyncio.gather(*(self._look(link) for link in list(self._links.values())))

    async def _look(self, link: Link):
        if link.address.id in self._gone:
            return
        try:
            self._note(link, await link.look())
        except TimeoutError:
            if time.monotonic() - link.heard_s > _SILENT_S:
                await self._miss(link)
        except UnreachableError:
            await self._miss(link)

    def _note(self, link: Link, report: dict[str, Any]):
        for session_id, reported in report["sessions"].items():
            session = self._sessions.get(session_id)
            if session is None:  # of a front before this one
                session = RemoteSession(
                    session_id, reported["owner"], reported["is_pushed"], self, link, reported["kept_s"]
                )
                self._sessions[session_id] = session
            if session.link is link:
                session.note(reported)
                if link.is_leaving and session.is_live:
                    session.unsettle()
        for session in self._on(link):
            if not session.is_live and session.id not in report["sessions"]:
                del self._sessions[session.id]

    async def _miss(self, link: Link):
        """A replica is no more: have its sessions go on elsewhere."""
        if self._links.pop(link.address.id, None) is None:
            return
        self._gone.add(link.address.id)
        moving = self._on(link)
        log.warning("a replica has gone", extra={"replica": link.address.id, "num_sessions": len(moving)})
        for session in moving:
            if session.is_live:
                self._begin_to_move(session)
            else:
                self._lose(session, "it has ended, and its replica has gone")
        await link.close()

    def _begin_to_move(self, session: RemoteSession):
        session.unsettle()
        task = asyncio.create_task(self._move(session))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _move(self, session: RemoteSession):
        """Have a session taken up by a replica with room, as soon as there is one."""
        began_s = time.monotonic()
        while time.monotonic() - began_s < self.config.limits.idle_s:
            for link in self.links:
                try:
                    if await self._take_up(session, link):
                        moved_s = round(time.monotonic() - began_s, 3)
                        log.info(
                            "session moved",
                            extra={"session": session.id, "replica": link.address.id, "moved_s": moved_s},
                        )
                        return
                except Refusal as refusal:
                    self._lose(session, refusal.detail)
                    return
                except UnreachableError:
                    await self.doubt(link)
            await asyncio.sleep(_AGAIN_S)
        self._lose(session, "its replica has gone, and no other had room for it")

    async def _take_up(self, session: RemoteSession, link: Link) -> bool:
        """Try one replica; returns whether it has room. Raises Refusal where the session cannot be taken up at all."""
        response = await link.request("POST", f"{REPORT_PATH}/sessions/{session.id}", session.owner)
        if response.status_code in _NO_ROOM:
            return False
        if response.status_code != 200:
            raise Refusal(410, f"its replica has gone, and another cannot go on ({error_of(response)})")
        await session.settle(link, response.json()["kept_s"])
        return True

    def _lose(self, session: RemoteSession, why: str):
        log.warning("session lost", extra={"session": session.id, "reason": why})
        session.lose(why)
        asyncio.get_running_loop().call_later(self.config.limits.kept_s, self._sessions.pop, session.id, None)

    def _load(self, link: Link) -> int:
        return link.num_asked + sum(session.is_live for session in self._on(link))

    def _on(self, link: Link) -> list[RemoteSession]:
        return [session for session in self._sessions.values() if session.link is link]


async def _again_and_again(act: Callable[[], Awaitable[None]], pause_s: float):
    while True:
        try:
            await act()
        except Exception:
            log.exception("the front could not look at its replicas")  # it would be blind if it gave up
        await asyncio.sleep(pause_s)
