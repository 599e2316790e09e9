"""State that several threads use: regression tests of races."""

import asyncio
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from streamingvlm.serving.chat_requests import ClipTurns
from streamingvlm.serving.metrics import Metrics
from streamingvlm.serving.pushed_turns import PushedTurns
from streamingvlm.serving.served_session import ServedSession, SessionInfo, SessionResources
from streamingvlm.serving.server_config import ServerLimits

NUM_FRAMES = 2000
FRAME = torch.zeros(3, 2, 2, dtype=torch.uint8)


def frame():
    return FRAME


@pytest.fixture(autouse=True)
def _switch_threads_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def pushed_turns(policy, waiting_s=1000):
    return PushedTurns(
        fps=2,
        turn_s=1,
        policy=policy,
        max_lag_s=3,
        max_waiting_s=waiting_s,
        max_waiting_bytes=10**8,
        max_frame_bytes=12,
    )


def run_together(*actions):
    """Run actions in threads of their own, and raise what any of them raised."""
    with ThreadPoolExecutor(len(actions)) as threads:
        for future in [threads.submit(action) for action in actions]:
            future.result()


def test_a_frame_that_is_pushed_during_a_close_is_not_kept():
    source, closing = pushed_turns("drop"), []

    def decode_while_closing():
        closing.append(threading.Thread(target=source.close))
        closing[-1].start()
        closing[-1].join(0.1)
        return FRAME

    source.push(decode_while_closing, 0)
    for thread in closing:
        thread.join()
    assert not source.push(frame, 0.5)
    assert list(source) == []


def test_a_close_releases_a_push_that_waits_for_room():
    source = pushed_turns("wait", waiting_s=1)
    pushing = threading.Thread(target=lambda: [source.push(frame, number / 2) for number in range(8)])
    pushing.start()
    time.sleep(0.05)
    source.close()
    pushing.join(10)
    assert not pushing.is_alive()


def test_room_is_read_while_turns_are_taken():
    source = pushed_turns("wait")

    def push():
        try:
            for number in range(NUM_FRAMES):
                assert source.has_room
                source.push(frame, number / 2)
        finally:
            source.finish()

    taken = []
    run_together(push, lambda: taken.extend(source))
    assert len(taken) == NUM_FRAMES // 2


def test_every_dropped_second_is_counted_once():
    source = pushed_turns("drop")

    def push():
        for number in range(NUM_FRAMES):
            source.push(frame, number / 2)
        source.finish()

    taken = []
    run_together(push, lambda: taken.extend(source))
    assert len(taken) + sum(turn.dropped_s for turn in taken) == NUM_FRAMES // 2


def test_a_clip_is_closed_while_a_turn_is_decoded():
    decoding, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def turns():
        try:
            decoding.set()
            go_on.wait(10)
            yield None
        finally:
            closed.set()

    clip = ClipTurns(turns())
    reading = threading.Thread(target=next, args=(clip,))
    reading.start()
    assert decoding.wait(10)
    threading.Timer(0.05, go_on.set).start()
    clip.close()
    reading.join()
    assert closed.is_set()


class _Source:
    policy = "wait"

    def close(self):
        pass


def session_in_a_loop():
    executor = ThreadPoolExecutor(1)
    info = SessionInfo("test", "", "wait", 2.0, 1.0)
    return ServedSession(_Source(), info, "local", SessionResources(ServerLimits(), Metrics(), executor, executor))


def test_a_listener_that_joins_in_mid_turn_gets_the_text_from_its_beginning():
    async def joined():
        session = session_in_a_loop()
        session.on_token("a ")
        following = asyncio.ensure_future(anext(session.log.follow(0)))
        await asyncio.sleep(0)
        session.on_token("goal")
        return (await following).data

    assert asyncio.run(joined()) == {"text": "a goal"}


def test_a_token_after_the_loop_is_closed_is_ignored():
    async def left_behind():
        session = session_in_a_loop()
        session.log._listeners.add(asyncio.Event())
        return session

    asyncio.run(left_behind()).on_token("late")
